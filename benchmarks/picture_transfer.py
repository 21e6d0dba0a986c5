"""What the networks of results/transfer_scenes.csv say of three test images of city B: nbs/images/transfer.png

    python benchmarks/effect_transfer.py city results/transfer_scenes.csv --labels 100,10 --seeds 0
    python benchmarks/picture_transfer.py

The images are those that show most of the trams and most of the fences, and the middle one of all other streets.
"""
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np
from fastcore.script import call_parse

from effect_transfer import STREETS
from selftrain_nb.all import *


@call_parse
def main(
    runs:str='runs/transfer', # Folder of the transfers, see `effect_transfer.py --out`
    png:str='nbs/images/transfer.png', # The picture to write
    seed:int=0,
):
    few, many = (Transfer(Path(runs)/f'city N{n} seed{seed}') for n in (10, 100))
    whole = next(t for t in (few, many) if 'all' in t.done)
    test = scenes(**STREETS, city='B').test
    counts = np.array([test[[i]].counts() for i in range(len(test))])
    tram, fence = (int(counts[:, CITY_B.index(c)].argmax()) for c in ('tram', 'fence'))
    others = [i for i, g in enumerate(test.df.group) if g not in {*test.df.group[[tram, fence]]}]
    shown = [tram, fence, others[len(others) // 2]]
    models = {'source': few.predictor('source')}
    models |= {f'{r}, {n} labels': t.predictor(r) for n, t, rows in ((10, few, ('finetune', 'joint', 'student')), (100, many, ('student',))) for r in rows}
    show_predictions({**models, 'all labels': whole.predictor('all')}, test, shown)
    plt.savefig(png, dpi=90, bbox_inches='tight')
