"""What each crop schedule does to a teacher and its student: results/scenes_crops.csv, results/camvid_crops.csv

    python benchmarks/effect_crops.py scenes results/scenes_crops.csv --known results/scenes_selftrain.csv
    python benchmarks/effect_crops.py path/to/camvid results/camvid_crops.csv --known results/camvid_quarter.csv --schedules coarse2fine+

`--known` takes the rows of `constant` from a table that `selftrain-run` has made with the same settings; without it, name `constant` among the schedules.
Column `time` is what the schedule's fit takes in shares of a fit with constant crops, measured as in benchmarks/crops.py before the first run.
`--budget half` gives each schedule as many epochs as fit into the time of half the epochs of `constant`.

Trains one run for each schedule and seed, and writes the table again after each.
Stopped, it goes on where it was; several processes may share the work (`--schedules`, `--seeds`), and each collects what all have done.
"""
import json
from pathlib import Path

import numpy as np, pandas as pd, torch
from fastcore.script import call_parse

from common import SETTINGS
from crops import learner, measure
from selftrain_nb.all import *
from selftrain_nb.cli import open_data


SCHEDULES = {**{k: k for k in PRESETS},
             'zoom2fine': dict(phases=[[1, .6]], final=.2, batch='constant')}  # the first choice of search_crops.py


def times(data, name, out, epochs=(25, 15)):
    "{schedule: share of the time of constant crops} for teacher and student, measured once"
    file = out/f'{name} times.json'
    known = json.loads(file.read_text()) if file.exists() else {}
    if set(SCHEDULES) - set(known):
        found = measure(learner(data, name), epochs, schedules=SCHEDULES)
        known = {k: [round(f[k][0] / f['constant'][0], 3) for f in found] for k in SCHEDULES}
        with atomic_write(file) as tmp: tmp.write_text(json.dumps(known))
    return known


def budgeted(schedule, epochs, budget, time):
    "Epochs of teacher and student"
    return epochs if budget == 'epochs' else tuple(max(2, round(e / 2 / t)) for e, t in zip(epochs, time[schedule]))


def rows_of(run, schedule, budget, time, csv, known):
    "A run's rows, with the share of `constant`'s time that the fit takes"
    c, whole = run.config, dict(zip(('teacher', 'student'), SETTINGS[run.path.name.split()[0]]['fit']['epochs']))
    share = {r: time[schedule][i] * c['epochs'][i] / whole[r] for i, r in enumerate(whole)}
    command = f'python benchmarks/effect_crops.py {run.path.name.split()[0]} results/{csv.name} --schedules {schedule} --seeds {c["seed"]} --budget {budget}' + f' --known results/{Path(known).name}' * bool(known)
    df = run.results
    return df.assign(schedule=schedule, budget=budget, epochs=df.row.map(dict(zip(whole, c['epochs']))), time=df.row.map(share).round(3), command=command)


def collect(name, out, csv, known, time):
    "The rows of all runs that are complete"
    runs = [Run(f.parent.parent) for f in sorted(out.glob(f'{name} *seed*/student/metrics.json'))]
    parts = [rows_of(r, *r.path.name.split()[1:3], time, csv, known) for r in runs]
    if known:
        old = pd.read_csv(known).query('row in ("teacher", "student")').drop(columns='data')
        parts.append(old.assign(schedule='constant', budget='epochs', epochs=old.row.map(dict(zip(('teacher', 'student'), SETTINGS[name]['fit']['epochs']))), time=1.))
    if not parts: return
    df = pd.concat(parts, ignore_index=True)
    df.insert(0, 'data', name)
    for k, c in enumerate(('schedule', 'budget', 'epochs', 'time')): df.insert(3 + k, c, df.pop(c))
    df['command'] = df.pop('command')
    order = dict(schedule=[*SCHEDULES], budget=['epochs', 'half'], row=['teacher', 'student'], split=['val', 'test'])
    for k, v in order.items(): df[k] = pd.Categorical(df[k], v)
    with atomic_write(csv) as tmp: df.sort_values(['budget', 'schedule', 'seed', 'row', 'split']).to_csv(tmp, index=False)


@call_parse
def main(
    data:str, # 'scenes', or the folder of CamVid
    csv:str, # The table to write
    out:str='runs/crops', # Folder of the runs
    known:str='', # Table of `selftrain-run` with the rows of `constant`
    schedules:str=','.join(k for k in PRESETS if k != 'constant'), # In order of worth
    seeds:str='0,1,2',
    budget:str='epochs', # 'epochs': as many as `constant`; 'half': as many as fit into half of its time
):
    torch.set_num_threads(1)
    name, out = 'scenes' if data == 'scenes' else 'camvid', Path(out)
    out.mkdir(parents=True, exist_ok=True)
    s, time = SETTINGS[name], times(data, name, out)
    for schedule in schedules.split(','):
        for seed in map(int, seeds.split(',')):
            few = open_data(data).keep_labels(s['keep'], seed=seed)
            fit = {**s['fit'], 'epochs': budgeted(schedule, s['fit']['epochs'], budget, time)}
            self_train(few, out/f'{name} {schedule} {budget} seed{seed}', schedule=SCHEDULES[schedule], seed=seed, progress=False, **fit)
            collect(name, out, Path(csv), known, time)
            print(f'{name} {schedule} {budget} seed={seed}', flush=True)
