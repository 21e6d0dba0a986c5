__version__ = "0.0.1"

import warnings
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)  # fastai and timm still call it when they are imported
