"""What centroid sampling does to a teacher and its student: results/scenes_centroids.csv, results/camvid_centroids.csv

    python benchmarks/effect_centroids.py scenes results/scenes_centroids.csv --known results/scenes_selftrain.csv --shares 0.5,1,0.25
    python benchmarks/effect_centroids.py path/to/camvid results/camvid_centroids.csv --known results/camvid_quarter.csv --shares 0.5

`--known` takes the rows of p = 0 from a table that `selftrain-run` has made with the same settings; without it, `--shares 0,…` trains them.

Trains one run for each share p of crops by centroid and each seed, and writes the table again after each.
Stopped, it goes on where it was; several processes may share the work (`--shares`, `--seeds`), and each collects what all have done.
"""
from pathlib import Path

import numpy as np, pandas as pd
from fastcore.script import call_parse

from common import SETTINGS
from selftrain_nb.all import *
from selftrain_nb.cli import open_data


def exposure(run, row):
    "{name: value}: percent of an epoch's labelled pixels, and percent of its crops, that show each class"
    c, table = run.config, run.table
    if row == 'student': table += pseudo_label(run.predictor('teacher'), table.train.unlabelled, run.path/'pseudo', tta=c['tta'], min_conf=c['min_conf'], bs=c['bs'], centroids=c['sampler'] == 'centroid', progress=False)
    n = c['n'] // 2 if row == 'student' else c['n']
    index = [run.path/d/'centroids.npz' for d in (row, 'teacher', 'pseudo')]
    dls = mixed_dls(table, ratio=c['ratio'] if row == 'student' else 0, n=n, crop=tuple(c['crop']), size=c['size'], bs=c['bs'], seed=c['seed'], scale=tuple(c['scale']), sampler=c['sampler'], p=c['p'], index=index, colour=0, blur=0)
    return shown(dls)


def shown(dls):
    e = class_exposure(dls.train)
    return {**{f'pixels_{k}': v for k, v in e.pixels.round(2).items()}, **{f'crops_{k}': v for k, v in e.crops.round(1).items()}}


def _exposures(run):
    "Of each row, computed once"
    file = run.path/'exposure.csv'
    if not file.exists():
        with atomic_write(file) as tmp: pd.DataFrame([dict(row=r, **exposure(run, r)) for r in run.done]).to_csv(tmp, index=False)
    return pd.read_csv(file)


def random_crops(data, out, name, seed):
    "What a teacher's epoch shows with random crops, without a run"
    file, s = out/f'{name} random seed{seed}.csv', SETTINGS[name]
    if not file.exists():
        fit = {k: v for k, v in s['fit'].items() if k != 'epochs'}
        row = shown(mixed_dls(open_data(data).keep_labels(s['keep'], seed=seed), ratio=0, seed=seed, colour=0, blur=0, **fit))
        with atomic_write(file) as tmp: pd.DataFrame([dict(row='teacher', seed=seed, **row)]).to_csv(tmp, index=False)
    return pd.read_csv(file)


def collect(data, out, name, csv, known):
    "The rows of all runs that are complete, rare classes summed up"
    runs = [Run(f.parent.parent) for f in sorted(out.glob(f'{name} p* seed*/student/metrics.json'))]
    if not runs: return
    share = lambda run: float(run.path.name.split()[1][1:])
    command = lambda run: f'python benchmarks/effect_centroids.py {name} results/{csv.name} --shares {share(run):g} --seeds {run.config["seed"]}' + f' --known results/{Path(known).name}' * bool(known)
    df = pd.concat([r.results.assign(p=share(r), command=command(r)).merge(_exposures(r), on='row') for r in runs], ignore_index=True)
    if known:
        old = pd.read_csv(known).query('row in ("teacher", "student")').drop(columns='data').assign(p=0.)
        crops = pd.concat([random_crops(data, out, name, s) for s in old.seed.unique()])
        df = pd.concat([df[df.p > 0], old.merge(crops, on=['row', 'seed'], how='left')], ignore_index=True)
    space = runs[0].table.space
    pixels = runs[0].table.revealed.train.counts()
    rare = [f'iou_{space.names[i]}' for i in np.argsort(pixels)[:4]]
    df.insert(0, 'data', name); df.insert(3, 'p', df.pop('p')); df.insert(6, 'miou_rare4', df[rare].mean(axis=1).round(2))
    df['rare'] = ' '.join(r[4:] for r in rare)
    df['command'] = df.pop('command')
    with atomic_write(csv) as tmp: df.sort_values(['p', 'seed', 'row', 'split'], ascending=[True, True, False, False]).to_csv(tmp, index=False)


@call_parse
def main(
    data:str, # 'scenes', or the folder of CamVid
    csv:str, # The table to write
    out:str='runs/centroids', # Folder of the runs
    known:str='', # Table of `selftrain-run` with the rows of p = 0
    shares:str='0.5,0,1,0.25', # Shares p of crops by centroid, in order of worth
    seeds:str='0,1,2',
):
    name = 'scenes' if data == 'scenes' else 'camvid'
    s, out = SETTINGS[name], Path(out)
    for p in map(float, shares.split(',')):
        for seed in map(int, seeds.split(',')):
            few = open_data(data).keep_labels(s['keep'], seed=seed)
            self_train(few, out/f'{name} p{p:g} seed{seed}', sampler='centroid' if p else 'random', p=p, seed=seed, progress=False, **s['fit'])
            collect(data, out, name, Path(csv), known)
            print(f'{name} p={p:g} seed={seed}', flush=True)
