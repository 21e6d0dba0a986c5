"""How long each crop schedule takes, against constant full crops, and how well `CropSchedule.plan` predicts that

    python benchmarks/crops.py [--data FOLDER of CamVid] [--quick] [--json FILE]

One epoch of each size is trained and validated, in turns, in some rounds. A schedule's time is the sum over its epochs,
from the best round of each size. So whatever else the machine does, it does to all schedules alike.
"""
import common
from common import seconds, show
import numpy as np
from fastai.callback.core import Callback, CancelValidException
from fastcore.script import call_parse
from selftrain_nb.cli import open_data
from selftrain_nb.crops import PRESETS, CropCost, CropSchedule
from selftrain_nb.streams import Stream, seg_dls
from selftrain_nb.training import seg_learner

SETTINGS = dict(scenes=dict(keep=32, n=240, crop=(96, 128)), camvid=dict(keep=1/4, n=240, crop=(128, 176), size=240))


def learner(data, n=None):
    "A teacher that is not trained yet"
    s = SETTINGS['scenes' if data == 'scenes' else 'camvid']
    few = open_data(data).keep_labels(s['keep'], seed=0)
    return seg_learner(seg_dls(Stream(few, n=n or s['n']), crop=s['crop'], size=s.get('size')))


class At(Callback):
    "Every epoch at one size, as `CropSchedule` sets it"
    order = CropSchedule.order
    def __init__(self, setting, validate): self.setting, self.validate = setting, validate

    def before_train(self):
        dl, s = self.dls.train, self.setting
        zoom = np.sqrt(np.prod(s.crop) / np.prod(dl.crop))
        self.learn.dl = dl.resized(s.crop, s.bs, zoom)

    def before_validate(self):
        if not self.validate: raise CancelValidException()


def epoch(learn, setting, validate=True):
    "Train one epoch, and validate"
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=At(setting, validate))


def measure(
    learn, # of `learner`
    epochs, # of the fits
    rounds, # in which the sizes take turns
    validate=True, # each epoch ends with validation
) -> dict: # {preset: (measured, predicted) seconds of a fit}
    "Time each size that a preset uses, and add up; predictions are of fits that validate"
    dl = learn.dls.train
    plans = {k: CropSchedule(k).settings(epochs, dl.n_first, dl.stream_bs[0], dl.crop) for k in PRESETS}
    sizes = {s for plan in plans.values() for s in plan}
    real, told = {s: np.inf for s in sizes}, {s: np.inf for s in sizes}
    for s in sizes: epoch(learn, s, validate)  # warm up
    for _ in range(rounds):
        cost = CropCost(learn)
        for s in sizes:
            real[s] = min(real[s], seconds(epoch, learn, s, validate))
            told[s] = min(told[s], cost.epoch(s, dl.n_first))
    return {k: (sum(real[s] for s in plan), sum(told[s] for s in plan)) for k, plan in plans.items()}


@call_parse
def main(
    data:str='scenes', # 'scenes', or the folder of CamVid
    epochs:int=25, # of the fits
    rounds:int=5, # in which the sizes take turns; the best one counts
    quick:bool=False, # within a minute: short epochs, one round
    json:str='', # file for the figures
):
    "See above"
    found = measure(learner(data, 32 if quick else None), epochs, 1 if quick else rounds)
    constant, results = found['constant'][0], {}
    for k, (real, _) in found.items(): results[f'{k}, s for {epochs} epochs (baseline: constant)'] = real, constant
    for k, (real, told) in found.items(): results[f'{k}, predicted s (baseline: measured)'] = told, real
    show(results, json)
