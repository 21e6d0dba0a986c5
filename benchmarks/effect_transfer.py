"""A network taken to another domain with other classes, against the baselines: results/transfer_scenes.csv, results/transfer_camvid_idd.csv

    python benchmarks/effect_transfer.py city results/transfer_scenes.csv
    python benchmarks/effect_transfer.py night results/transfer_scenes.csv
    python benchmarks/effect_transfer.py camvid-idd results/transfer_camvid_idd.csv --camvid path/to/camvid --idd path/to/idd_lite
    python benchmarks/effect_transfer.py idd-camvid results/transfer_camvid_idd.csv --camvid path/to/camvid --idd path/to/idd_lite

Each number of target labels and each seed is one `transfer`; the source's network is trained once for each seed, and so is row `all`. `asked` is the number of labels: 0 for row `source`. The rows of all tasks that go into one table are collected in it.
With `--alone` student and control learn from the target only, without the source's labels: rows `student alone` and `control alone`.
With other `--epochs` than 10 all rows are trained for that long (`--alone`: finetune and all, too), and have that number in the column `epochs`, which is 0 for row `source`.
The table is written again after each transfer. Stopped, it goes on where it was; several processes may share the work (`--labels`, `--seeds`).
"""
import re
from pathlib import Path

import numpy as np, torch
from fastcore.script import call_parse

from common import SETTINGS, update_table
from selftrain_nb.all import *

STREETS = dict(n=256, n_val=64, n_test=128)  # by night, those of another seed: other streets, too
STRETCH = {10: 5.}  # seconds of CamVid that are labelled or not as a whole; twenty seconds hold 22 to 40 frames
USUAL = 10  # epochs
HOMES = dict(night='city')  # both are from city A by day: one source
TABLES = dict(transfer_scenes=('city', 'night'), transfer_camvid_idd=('camvid-idd', 'idd-camvid'))


def same(space): return Mapping(space, space, {n: n for n in space.names})

def task_of(name, n, camvid_path, idd_path):
    "Source, target, mapping, settings of the fits"
    if name == 'city': return scenes(**STREETS), scenes(**STREETS, city='B'), CITY_A_TO_B, SETTINGS['scenes']['fit']
    if name == 'night': return scenes(**STREETS), scenes(**STREETS, domain='night', seed=1), same(CITY_A), SETTINGS['scenes']['fit']
    idd, fit = idd_lite(idd_path), SETTINGS['camvid_small']['fit']
    if name == 'camvid-idd': return camvid(camvid_path), idd, CAMVID_TO_IDD_LITE, fit
    if name == 'idd-camvid': return idd, camvid(camvid_path, stretch=STRETCH.get(n, 20.)), IDD_LITE_TO_CAMVID, fit
    raise ValueError(f'no task {name!r}: choose of city, night, camvid-idd, idd-camvid')


def folder(task, n, seed, epochs, alone): return f'{task} N{n} seed{seed}' + f' epochs{epochs}' * (epochs != USUAL) + ' alone' * alone

def lines_of(t, task, csv):
    "The rows of one transfer"
    n, seed, epochs, alone = re.fullmatch(r'N(\d+) seed(\d+)(?: epochs(\d+))?( alone)?', t.path.name.removeprefix(task + ' ')).groups()
    df = t.results
    if alone: df = df[df.row.isin(['student', 'control', *['finetune', 'all'] * bool(epochs)])].replace(dict(row=dict(student='student alone', control='control alone')))
    df.insert(0, 'data', task)
    df.insert(1, 'epochs', np.where(df.row == 'source', 0, int(epochs or USUAL)))
    df.insert(2, 'asked', df.row.map({'source': 0, 'all': df.n_real.max()}).fillna(int(n)).astype(int))  # those two are the same for all N
    return df.assign(command=f'python benchmarks/effect_transfer.py {task} results/{csv.name} --labels {n} --seeds {seed}' + f' --epochs {epochs}' * bool(epochs) + ' --alone' * bool(alone))

def collect(out, csv):
    "The rows of all transfers of one table"
    parts = [lines_of(t, task, csv) for task in TABLES[csv.stem] for f in sorted(out.glob(f'{task} N* seed*/transfer.json')) if (t := Transfer(f.parent)).done]
    order = dict(row=(*TRANSFER_ROWS, 'student alone', 'control alone'), split=('val', 'test'))
    update_table(csv, parts, order, ('data', 'epochs', 'asked', 'row', 'seed', 'split'))


@call_parse
def main(
    task:str, # 'city', 'night', 'camvid-idd' or 'idd-camvid'
    csv:str, # The table to write
    out:str='runs/transfer', # Folder of the transfers
    camvid:str='', # Folder of CamVid
    idd:str='', # Folder of IDD-lite
    labels:str='100,10,30', # Target labels, in order of worth; row `all` is trained with the first of them
    seeds:str='0,1,2',
    pseudo_on:str='target', # Images that get pseudo labels
    epochs:int=USUAL, # Of finetuning, and of the student; row `all` gets both, the source 25
    alone:bool=False, # Student and control without the source's labels, and nothing else
    lr:float=1e-3, # Peak learning rate of all fits that begin as the source; that of the others is 3e-3
):
    torch.set_num_threads(1)
    out, csv = Path(out), Path(csv)
    name = next(k for k, tasks in TABLES.items() if task in tasks)
    if csv.stem != name: raise ValueError(f'{csv}: the rows of task {task} go into {name}.csv')
    for n in map(int, labels.split(',')):
        source, target, mapping, fit = task_of(task, n, camvid, idd)
        fit = {**fit, 'bf16': True}
        first, _ = fit.pop('epochs')
        for seed in map(int, seeds.split(',')):
            home = self_train(source, out/f'{HOMES.get(task, task)} source seed{seed}', rows=('teacher',), epochs=(first, 1), seed=seed, progress=False, **fit)
            here = out/folder(task, n, seed, epochs, alone)
            rows = TRANSFER_ROWS if not alone else ('student', 'control') if epochs == USUAL else ('finetune', 'student', 'control', 'all')
            if [p for a in (False, True) for p in out.glob(folder(task, '*', seed, epochs, a) + '/all') if p.parent != here]: rows = [r for r in rows if r != 'all']
            transfer(home, target, mapping, here, n, pseudo_on=pseudo_on, replay=False if alone else None, rows=rows, epochs=(first, epochs, epochs), seed=seed, lr=lr, progress=False, **fit)
            collect(out, csv)
            print(f'{task} N={n} seed={seed}', flush=True)
