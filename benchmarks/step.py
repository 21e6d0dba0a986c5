"""A training step, against what it replaced: fastai's Adam and the loss of the first edition

    python benchmarks/step.py [--quick] [--json FILE]

Both learners have the same network and the same batch: uint8 images, masks, and for ours the stream of each sample. A
step is all that a `Learner` does with a batch: its transforms, callbacks, forward, loss, backward, optimiser. The
learners take turns; the median of all steps counts. The parts of a step follow, and the step in bfloat16. On a CPU,
times are processor time of one thread, which other work on the machine changes little.
"""
import time
from copy import deepcopy
from functools import partial

import common
from common import show
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from fastai.callback.core import Callback, CancelValidException
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.vision.augment import IntToFloatTensor
from fastai.data.transforms import Normalize
from fastcore.script import call_parse
from selftrain_nb.labels import VOID
from selftrain_nb.models import SegModel
from selftrain_nb.scenes import scenes
from selftrain_nb.streams import Stream, seg_dls
from selftrain_nb.training import seg_learner

ENCODERS = 'resnet10t', 'tf_efficientnet_lite0'  # of the first edition, and the default of this one
PARTS = 'optimiser', 'loss', 'forward', 'backward', 'rest'  # rest: transforms of the batch, and callbacks


class FirstLoss(nn.Module):
    "The loss of the first edition: one mean over all pixels that are not void"
    def __init__(self, weight):
        super().__init__()
        self.register_buffer('weight', weight)

    def forward(self, pred, mask):
        pred, mask = pred.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)
        w = self.weight[mask.clamp(max=len(self.weight) - 1)]
        total = (w * (mask != VOID)).sum()
        return F.cross_entropy(pred, mask, self.weight, ignore_index=VOID, reduction='sum') / total.clamp(min=1e-6)


def now():
    "Processor time; wall clock time where a GPU works, when it has finished"
    if not torch.cuda.is_available(): return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock(Callback):
    "Notes when each event of a step begins and ends; one stands before all other callbacks, one behind them"
    run_valid = False
    def __init__(self, order, times): self.order, self.times = order, times

    def note(self, event): self.times[event, self.order > 0] = now()

EVENTS = 'before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch'.split()
for event in EVENTS:
    setattr(Clock, event, lambda self, event=event: self.note(event))


class Steps:
    "A DataLoader that gives the same batch `n` times; `found` gets the seconds of each step and of its parts"
    def __init__(self, batch, transforms, n, times):
        self.batch, self.transforms, self.n, self.times, self.found = batch, transforms, n, times, []

    def __len__(self): return self.n

    def __iter__(self):
        for _ in range(self.n):
            begin = now()
            yield self.transforms(self.batch)
            self.found.append(parts(self.times, now() - begin))


class Use(Callback):
    "A fit reads `steps` instead of its own data, and does not validate"
    order, run_valid = 200, False
    def __init__(self, steps): self.steps = steps
    def before_train(self): self.learn.dl = self.steps
    def before_validate(self): raise CancelValidException()


def parts(t, step):
    "Seconds of a step and of its parts, from {(event, is the last callback): time}"
    spans = dict(forward=('before_batch', 'after_pred'), loss=('after_pred', 'after_loss'),
                 backward=('before_backward', 'after_backward'), optimiser=('before_step', 'after_step'))
    found = {k: t[end, False] - t[begin, True] for k, (begin, end) in spans.items()}
    return dict(found, step=step, rest=step - sum(found.values()))


def moved(transforms, device):
    "Transforms of a batch, on the device of the network"
    def apply(b): return tuple(transforms(tuple(t.to(device) for t in b)))
    return apply


def learners(encoder, crop, bs):
    "{name: (learner, batch, transforms)}: ours, the step that it replaced, and ours in bfloat16"
    table = scenes(n=16, n_val=2, n_test=0).train
    dls = seg_dls(Stream(table), crop=crop, bs=bs, size=(crop[0], 2 * crop[0]), valid=table[[0]])
    ours = seg_learner(dls, encoder)
    dl, device = dls.train, dls.device
    batch = dl.before_batch([dl.do_item(i) for i in range(bs)])
    batch = dl.create_batch(batch)  # not transformed yet: images are of type uint8
    net, mean, std = ours.model.net, ours.model.mean.flatten(), ours.model.std.flatten()
    plain = SegModel(deepcopy(net), (0., 0., 0.), (1., 1., 1.), ours.model.multiple)
    first = Learner(dls, plain, FirstLoss(ours.loss_func.weight).to(device), lr=ours.lr, wd=.01, splitter=ours.splitter,
                    opt_func=partial(Adam, decouple_wd=True), metrics=[])
    normalise = Normalize.from_stats(mean.cpu(), std.cpu(), cuda=device.type == 'cuda')
    def before(b): return normalise(IntToFloatTensor()(b[:2]))
    res = dict(ours=(ours, batch, moved(dl.after_batch, device)), first=(first, batch, moved(before, device)))
    less = seg_learner(dls, encoder, model_kwargs=dict(bf16=True))
    return {**res, 'bf16': (less, batch, moved(dl.after_batch, device))}


def measure(work, rounds, n):
    "{name: {part: median seconds}}; the learners take turns of `n` steps"
    found = {k: [] for k in work}
    for r in range(rounds + 1):
        for k, (learn, batch, transforms) in work.items():
            times = {}
            steps = Steps(batch, transforms, n, times)
            cbs = [Clock(-1000, times), Clock(1000, times), Use(steps)]
            with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=cbs)
            if r: found[k] += steps.found  # the first round warms up
    return {k: {p: float(np.median([s[p] for s in steps])) for p in steps[0]} for k, steps in found.items()}


@call_parse
def main(
    encoders:str=','.join(ENCODERS), # timm names
    crop:str='96,128', # height and width of the crops
    bs:int=8, # samples in a batch
    rounds:int=12, # turns of each learner
    quick:bool=False, # within a minute: fewer turns
    json:str='', # file for the figures
):
    "See above"
    size, results = tuple(map(int, crop.split(','))), {}
    for encoder in encoders.split(','):
        name = f'{encoder}, {bs} of {size[0]}x{size[1]}, ms'
        m = measure(learners(encoder, size, bs), 3 if quick else rounds, 5 if quick else 10)
        ms = lambda k, part: 1e3 * m[k][part]
        results[f'{name} a step'] = ms('ours', 'step'), ms('first', 'step')
        for p in PARTS: results[f'  {p}, {encoder}, ms'] = ms('ours', p), ms('first', p)
        results[f'{name} in bfloat16 (baseline: float32)'] = ms('bf16', 'step'), ms('ours', 'step')
        shares = ', '.join(f'{p} {ms("ours", p) / ms("ours", "step"):.0%}' for p in PARTS)
        print(f'{encoder}: of our step, {shares}', flush=True)
    show(results, json)
