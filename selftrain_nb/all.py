"Everything that is public, for notebooks and scripts: `from selftrain_nb.all import *`"
from .labels import *
from .scenes import *
from .datasets import *
from .public import *
from .mapping import *
from .metrics import *
from .centroids import *
from .data import *
from .models import *
from .crops import *
from .calibration import *
from .pseudo import *
from .selftrain import *
from .transfer import *
from .report import *
from .widgets import *
