"""What a teacher's confidence is worth before and after calibration: results/scenes_calibration.csv, results/camvid_calibration.csv

    python benchmarks/calibration.py results/camvid_calibration.csv runs/camvid/seed0,runs/camvid/seed1,runs/camvid/seed2

Temperature and thresholds by class are found on a run's validation images; every figure is then measured on its test images, which have no part in that.
`kept` and `right` are percent of the pixels at confidence 0.9 or more, and of those; `by class`, at thresholds that were to be right for nine pixels of ten.
"""
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse

from selftrain_nb.all import *


def of_all(c, min_conf, temperature=None):
    "Percent kept, and percent of it that is right"
    one = Calibration(c.logp, c.truth, c.space, temperature or c.temperature).kept(min_conf).loc['all']
    return round(100 * one.kept, 1), round(100 * one.accuracy, 1)


def measure(run):
    "One row"
    teacher, table = run.predictor('teacher'), run.table
    cal = calibrate(teacher, table.val.real)
    test = Calibration(*pixel_sample(teacher, table.test.real), table.space, cal.temperature)
    (c0, _, ok0), (c1, _, ok1) = test.confident(1.), test.confident()
    kept = dict(before=of_all(test, .9, 1.), after=of_all(test, .9), by_class=of_all(test, cal.thresholds(.9)))
    return dict(seed=run.config['seed'], temperature=round(cal.temperature, 3), pixels=len(test.truth), accuracy=round(100 * ok0.mean(), 1), ece_before=round(100 * ece(c0, ok0), 2), ece_after=round(100 * ece(c1, ok1), 2),
                **{f'{what}_{k}': v for k, vs in kept.items() for what, v in zip(('kept', 'right'), vs)})


@call_parse
def main(
    csv:str, # The table to write
    runs:str, # Folders of finished runs, separated by commas
):
    name = Path(csv).name.split('_')[0]
    rows = []
    for path in runs.split(','):
        rows.append(dict(data=name, **measure(Run(path)), command=f'python benchmarks/calibration.py results/{Path(csv).name} {Path(path).name}'))
        with atomic_write(csv) as tmp: pd.DataFrame(rows).to_csv(tmp, index=False)
        print(pd.DataFrame(rows).drop(columns='command').tail(1).to_string(index=False), flush=True)
