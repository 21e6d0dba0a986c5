"""What a student makes of one teacher's labels, read in different ways: results/scenes_pseudo.csv, results/camvid_pseudo.csv

    selftrain-run --data scenes …                # as in results/scenes_selftrain.csv: teachers, controls and the rows of all labels
    python benchmarks/effect_pseudo.py scenes results/scenes_pseudo.csv --base runs/scenes --known results/scenes_selftrain.csv
    python benchmarks/effect_pseudo.py path/to/camvid results/camvid_pseudo.csv --base runs/camvid_small

`--base` is the folder of those runs (`seed0`, `seed1`, …); a teacher that is not there is trained first. `--known` is their table: its rows are taken over. Without it control and all are trained there, too.
Each variant of `VARIANTS` takes over the teacher of its seed, labels, chooses, and trains a student; a student of another network gets a control of its own.

After each run the table is written again: rows of runs in `--out` replace those it has, others stay. Stopped, it goes on where it was; several processes may share the work (`--variants`, `--seeds`), and each collects what all have done.
"""
from pathlib import Path

import numpy as np, pandas as pd, torch
from fastcore.script import call_parse

from common import SETTINGS, update_table
from selftrain_nb.all import *
from selftrain_nb.cli import open_data


VARIANTS = {
    'up to 3 rounds': dict(rounds=3),  # its first round is what `self_train` does by itself
    'no threshold': dict(min_conf=0.),
    'soft': dict(min_conf=0., labels='soft'),
    'weighted': dict(min_conf=0., labels='weighted'),
    'right at 0.9': dict(select=dict(accuracy=.9)),
    'surest half of each class': dict(min_conf=0., select=dict(share=.5)),
    'threshold 0.9': dict(min_conf=.9),
    'ratio 3': dict(ratio=3.),
    'no TTA': dict(tta=None),
    'weights undone': dict(unweight=True),
    'best half of the images': dict(min_conf=0., select=dict(best=.5)),
    'ratio 7': dict(ratio=7.),
    'ratio 5': dict(ratio=5.),
    'EMA 0.99': dict(ema=.99),
    'student resnet18': dict(student=dict(encoder='resnet18', arch='fpn')),
    'student mobilenetv3_small_100': dict(student=dict(encoder='mobilenetv3_small_100', arch='fpn')),
    'student unet': dict(student=dict(encoder='resnet10t', arch='unet')),
}
FIRST = 'threshold 0.7'  # of the rounds, the first; and what `--known` has


def teacher_of(few, base, seed, fit, rows=('teacher',)):
    "The run whose teacher all variants share"
    path = base/f'seed{seed}'
    if not {*rows} <= {*Run(path).done}: self_train(few, path, rows=rows, seed=seed, progress=False, **fit)
    return Run(path)


def quality(run):
    "Share of the pixels kept, and how many of them are right, where the truth was hidden"
    file = run.path/'quality.csv'
    if not file.exists():
        kept = SegTable.load(run.path/'selected.csv')
        q = pseudo_quality(kept, [kept.remaps['pseudo'].min_conf], most=10_000).iloc[0]
        share = q.kept * len(kept) / run.table.train.unlabelled.df.image.nunique()
        with atomic_write(file) as tmp: pd.DataFrame([dict(kept=round(100 * share, 2), right=round(100 * q.accuracy, 2))]).to_csv(tmp, index=False)
    return pd.read_csv(file).iloc[0].to_dict()


def rows_of(run, csv, name, known):
    "The students of a run, and their controls; of its rounds, too"
    variant, seed = run.path.name.rsplit(' seed', 1)
    command = f"python benchmarks/effect_pseudo.py {name} results/{csv.name} --variants '{variant}' --seeds {seed}" + f' --known results/{Path(known).name}' * bool(known)
    for k, r in enumerate(run.rounds, 1):
        if 'student' not in r.done: continue
        label = variant if 'round' not in variant else FIRST if k == 1 else f'round {k}'
        yield r.results.query('row != "teacher"').assign(variant=label, command=command, **quality(r))


def _known(file):
    "The rows of `selftrain-run`"
    df = pd.read_csv(file).drop(columns='data')
    return df.assign(variant=np.where(df.row == 'student', FIRST, ''))


def _bases(base, csv, name):
    "The rows of the teachers' own runs"
    runs = [(p.name.removeprefix('seed'), Run(p)) for p in sorted(base.glob('seed*'))]
    return [r.results.query('row != "student"').assign(variant='', command=f"python benchmarks/effect_pseudo.py {name} results/{csv.name} --variants '' --seeds {seed}") for seed, r in runs if r.done]


def collect(name, out, csv, known, base):
    "Add the rows of all runs that are complete to the table"
    runs = [Run(p) for p in sorted((out/name).glob('* seed*')) if (p/'student/metrics.json').exists()]
    parts = [rows for r in runs for rows in rows_of(r, csv, name, known)] + ([] if known else _bases(base, csv, name))
    order = dict(variant=['', FIRST, 'round 2', 'round 3', *VARIANTS], row=ROWS, split=['val', 'test'])
    update_table(csv, [p.assign(data=name) for p in parts], order, ('variant', 'row', 'seed', 'split'), _known(known).assign(data=name) if known else None)


@call_parse
def main(
    data:str, # 'scenes', or the folder of CamVid
    csv:str, # The table to write
    base:str='runs/base', # Folder of the runs whose teachers are used
    out:str='runs/pseudo', # Folder of the runs
    known:str='', # Table of `selftrain-run` with the rows teacher, control and all
    variants:str=','.join(VARIANTS), # In order of worth; '' for the teachers' own runs alone
    seeds:str='0,1,2',
):
    torch.set_num_threads(1)
    name, out, base, csv = 'scenes' if data == 'scenes' else 'camvid', Path(out), Path(base), Path(csv)
    s = SETTINGS['scenes' if data == 'scenes' else 'camvid_small']
    for variant in variants.split(','):
        for seed in map(int, seeds.split(',')):
            few = open_data(data).keep_labels(s['keep'], seed=seed)
            teacher = teacher_of(few, base, seed, s['fit'], ('teacher',) if variant or known else ('teacher', 'control', 'all'))
            if variant:
                rows = ('student', 'control') if 'student' in VARIANTS[variant] else ('student',)
                run = self_train(few, out/name/f'{variant} seed{seed}', teacher=teacher, rows=rows, seed=seed, progress=False, **s['fit'], **VARIANTS[variant])
                for r in run.rounds: quality(r)
            collect(name, out, csv, known, base)
            print(f'{name} {variant} seed={seed}', flush=True)
