"""How long each crop schedule takes, against constant full crops, and how well `CropSchedule.plan` predicts that

    python benchmarks/crops.py [--data path/to/camvid] [--quick] [--json FILE]

One epoch of each size is trained and validated, in turns, in some rounds; a schedule's time is the sum over its epochs, from the best round of each size.
So whatever else the machine does, it does to all schedules alike. The predictions are taken between the rounds.
"""
import time

import numpy as np, torch
from fastai.vision.all import Callback
from fastcore.script import call_parse, store_true

from common import SETTINGS, show
from selftrain_nb.all import *
from selftrain_nb.cli import open_data


def learner(data, name, n=None, seed=0, bf16=False):
    "The teacher's learner, untrained"
    s = SETTINGS[name]
    fit = {**{k: v for k, v in s['fit'].items() if k != 'epochs'}, **({'n': n} if n else {})}
    learn = seg_learner(mixed_dls(open_data(data).keep_labels(s['keep'], seed=seed), ratio=0, seed=seed, **fit), model_kwargs=dict(bf16=bf16))
    learn.logger = lambda *_: None
    return learn


class At(Callback):
    "Every epoch at one size"
    order = CropSchedule.order
    def __init__(self, setting): self.setting = setting
    def before_train(self): self.learn.dl = self.dls.train.resized(self.setting.crop, self.setting.bs)


def epoch_seconds(learn, setting):
    "Seconds of one epoch, validation included"
    begin = time.perf_counter()
    with learn.no_bar(): learn.fit(1, cbs=At(setting))
    return time.perf_counter() - begin


def measure(learn, epochs=(25,), rounds=5, schedules=None):
    "[{name: (measured, predicted) seconds of a fit} for each number of epochs]; `schedules` {name: as in `self_train`}, the presets if not given"
    as_schedule = lambda how: CropSchedule(**how) if isinstance(how, dict) else CropSchedule(how)
    dl, named = learn.dls.train, schedules or {k: k for k in PRESETS}
    plans = [{k: as_schedule(how).settings(e, dl.n, dl.bs, learn.dls.crop) for k, how in named.items()} for e in epochs]
    different = {s for plan in plans for ss in plan.values() for s in ss}
    real, predicted = {s: np.inf for s in different}, {s: np.inf for s in different}
    for cost in [CropCost(learn) for _ in range(rounds)]:
        for s in different: 
            real[s] = min(real[s], epoch_seconds(learn, s))
            predicted[s] = min(predicted[s], cost.epoch(s, dl.n))
    return [{k: (sum(real[s] for s in ss), sum(predicted[s] for s in ss)) for k, ss in plan.items()} for plan in plans]


@call_parse
def main(
    data:str='scenes', # 'scenes', or the folder of CamVid
    epochs:int=25, # Of the fits
    rounds:int=5, # In which the sizes take turns; the best one counts
    quick:store_true=False, # Within a minute: short epochs, one round
    json:str='', # File for the figures
):
    torch.set_num_threads(1)
    name = 'scenes' if data == 'scenes' else 'camvid'
    learn = learner(data, name, 48 if quick else None)
    found, = measure(learn, [epochs], 1 if quick else rounds)
    results = {f'{name} {k}, seconds for {epochs} epochs': (m, found['constant'][0]) for k, (m, _) in found.items()}
    results.update({f'{name} {k}, predicted (baseline: measured)': (p, m) for k, (m, p) in found.items()})
    step = lambda learn: CropCost(learn).step(learn.dls.crop, learn.dls.train.bs)
    results[f'{name} a step in bfloat16, s (baseline: float32)'] = step(learner(data, name, bf16=True)), step(learn)
    show(results, json)
