"""Which sizes, shares, batches, rates and zoom: results/scenes_crops_search.csv

    python benchmarks/search_crops.py results/scenes_crops_search.csv --known results/scenes_selftrain.csv

One teacher on scenes for each candidate, seed 0 first; goes on where it was stopped. The candidates differ in one thing at a time from one that is there.
Single seeds: a difference below two points of mIoU says little, and what is chosen here is confirmed by results/*_crops.csv.
"""
import json
from pathlib import Path

import pandas as pd, torch
from fastcore.script import call_parse

from common import SETTINGS
from crops import learner, measure
from selftrain_nb.all import *
from selftrain_nb.cli import open_data

SMALL, WIDE = [64, 64], [64, 96]  # a third, and half, of the pixels of a full crop of 96x128
how = lambda share, size=SMALL, **kw: dict(dict(phases=[[share, size], [round(1 - share, 2), 1.]], batch='constant', max_growth=4., rate='sqrt', warmup=0, zoom=0.), **kw)
px = dict(batch='pixels')
turn = lambda sizes, **kw: dict(dict(phases=[[1/len(sizes), s] for s in sizes], cycle=len(sizes), final=.1, batch='pixels', max_growth=2., rate='sqrt', warmup=0, zoom=1.), **kw)
CANDIDATES = {
    'small 80 %': how(.8),
    'small 80 %, pixels': how(.8, **px),
    'small 80 %, zoom': how(.8, zoom=1.),
    'small 80 %, zoom, pixels': how(.8, zoom=1., **px),
    'small 85 %, zoom, pixels up to 2': how(.85, zoom=1., max_growth=2., **px),
    'small 83 %, cycles of 6, zoom, pixels up to 2': dict(how(.8, zoom=1., max_growth=2., **px), phases=[[5/6, SMALL], [1/6, 1.]], cycle=6, final=.08),
    'small 85 %, zoom, pixels up to 2, rate none': how(.85, zoom=1., max_growth=2., rate='none', **px),
    'small 85 %, zoom, pixels up to 2, rate linear': how(.85, zoom=1., max_growth=2., rate='linear', **px),
    'small 85 %, zoom, pixels up to 2, warm-up 10': how(.85, zoom=1., max_growth=2., warmup=10, **px),
    'sixth, third, full in turn': turn([[32, 64], SMALL, 1.]),
    'third, third, third, full in turn': turn([SMALL, SMALL, SMALL, 1.]),
    'third, half, full in turn, rate linear': turn([SMALL, WIDE, 1.], rate='linear'),  # coarse2fine+, but for the rate
}


def times(out):
    "{candidate: time of its fit in shares of constant crops}, measured once"
    file = out/'times.json'
    known = json.loads(file.read_text()) if file.exists() else {}
    if missing := {k: v for k, v in CANDIDATES.items() if k not in known}:
        found, = measure(learner('scenes', 'scenes'), rounds=3, schedules={**missing, 'constant': 'constant'})
        known.update({k: round(v[0] / found['constant'][0], 3) for k, v in found.items()})
        with atomic_write(file) as tmp: tmp.write_text(json.dumps(known))
    return known


def collect(out, csv, known):
    time = times(out)
    parts = [Run(f.parent.parent).results.assign(candidate=n, time=time[n], schedule=json.dumps(CANDIDATES[n])) for n in CANDIDATES for f in sorted(out.glob(f'{n} seed*/teacher/metrics.json'))]
    if known: parts.append(pd.read_csv(known).query('row == "teacher" and seed == 0').assign(candidate='constant', time=1.))
    df = pd.concat(parts)[['candidate', 'seed', 'split', 'miou', 'acc', 'steps', 'time', 'seconds', 'device', 'schedule']]
    df['command'] = f'python benchmarks/search_crops.py results/{csv.name}' + f' --known results/{Path(known).name}' * bool(known)
    with atomic_write(csv) as tmp: df.to_csv(tmp, index=False)


@call_parse
def main(
    csv:str, # The table to write
    out:str='runs/search', # Folder of the runs
    known:str='', # Table of `selftrain-run` with the teacher of constant crops
    seeds:str='0',
):
    torch.set_num_threads(1)
    out = Path(out); out.mkdir(parents=True, exist_ok=True)
    s = SETTINGS['scenes']
    for seed in map(int, seeds.split(',')):
        for name, schedule in CANDIDATES.items():
            self_train(open_data('scenes').keep_labels(s['keep'], seed=seed), out/f'{name} seed{seed}', schedule=schedule, seed=seed, rows=('teacher',), progress=False, **s['fit'])
            collect(out, Path(csv), known)
            print(name, seed, flush=True)
