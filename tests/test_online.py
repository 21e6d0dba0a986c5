"The online sibling, and whose statistics batch normalisation keeps, against plain PyTorch."

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain_nb.augment import GREY, strong
from selftrain_nb.ema import EMA, MeanTeacher
from selftrain_nb.labels import VOID
from selftrain_nb.losses import SegLoss
from selftrain_nb.mixing import CutMix
from selftrain_nb.models import SegModel, WeakNorm, fixed_statistics
from selftrain_nb.scenes import scenes
from selftrain_nb.selftrain import Options, Recipe, self_train
from selftrain_nb.streams import Stream, seg_dls
from selftrain_nb.training import seg_learner

TINY = Recipe(encoder='test_byobnet', pretrained=False, crop=(32, 64), bs=2, n=6, epochs=(1, 2))
QUIET = Options(progress=False)


@pytest.fixture(scope='module')
def few():
    return scenes(n=10, n_val=2, n_test=2, size=(48, 96)).keep_labels(2, seed=0)


def learner(few, *cbs, bs=(2, 3)):
    dls = seg_dls(Stream(few, n=4), Stream(few.unlabelled), crop=(32, 64), bs=bs)
    return seg_learner(dls, 'test_byobnet', cbs=[*cbs])


class Keep(Callback):
    "What each batch is before the callbacks, after them, and the teacher's logits of the weak views"
    run_valid = False

    def __init__(self, order):
        self.order, self.batches, self.logits, self.weights = order, [], [], []

    def before_batch(self):
        self.batches.append([t.as_subclass(torch.Tensor).clone() for t in (*self.xb, *self.yb)])
        with torch.no_grad():
            self.logits.append(deepcopy(self.ema.average.module).eval()(self.batches[-1][0]))
        self.weights.append(self.loss_func.stream_weights.tolist())


class Before(Keep): pass


class After(Keep): pass


def kept(few, teacher, *more):
    "The batches of a training of two epochs, before and after the callback"
    learn = learner(few, EMA(0.9), teacher, Before(3), After(4.5), *more)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3)
    return learn, learn.before, learn.after


@settings(max_examples=8, deadline=None)
@given(min_conf=st.sampled_from([0.0, 0.11, 0.13, 1.0]), views=st.integers(1, 3), ramp=st.sampled_from([0.0, 0.5, 1.0]))
def test_what_the_student_is_told(few, min_conf, views, ramp):
    "Labels, views and the weight of the stream, worked out again from each batch"
    learn, before, after = kept(few, MeanTeacher(min_conf, ramp=ramp, views=views))
    for k, (old, new, logits) in enumerate(zip(before.batches, after.batches, before.logits)):
        (x, y, stream), (x2, y2, stream2) = old, new
        assert stream.tolist() == [0, 0, 1, 1, 1] and stream2.tolist() == stream.tolist() + [1] * 3 * (views - 1)
        assert x2[:2].equal(x[:2]) and y2[:2].equal(y[:2]) and (y[2:] == VOID).all()
        conf, ids = logits[2:].softmax(1).max(1)
        grey = (x[2:] * 255).round().permute(0, 2, 3, 1).eq(torch.tensor(GREY)).all(-1)
        expected = torch.where((conf < min_conf) | grey, VOID, ids)
        for v in range(views):
            assert y2[2 + 3 * v : 5 + 3 * v].equal(expected.to(y2.dtype))
            assert x2[2 + 3 * v : 5 + 3 * v].shape == x[2:].shape and not x2[2 + 3 * v : 5 + 3 * v].equal(x[2:])
        t = k / len(before.batches)
        rise = np.exp(-5 * max(0, 1 - t / ramp) ** 2) if ramp else 1
        share = (expected != VOID).float().mean().item()
        assert after.weights[k] == pytest.approx([1, rise * share], abs=1e-6)
    assert learn.loss_func.stream_weights.tolist() == [1, 1]
    assert learn.step_count.samples == {'real': 8, 'unlabelled': 12 * views}


def test_views_differ_and_repeat(few):
    a, b = (kept(few, MeanTeacher(0.0, views=2))[2].batches for _ in range(2))
    assert all(s.equal(t) for x, y in zip(a, b) for s, t in zip(x, y))
    assert not a[0][0][2:5].equal(a[0][0][5:])


def test_pasted_boxes_bring_the_teachers_labels(few):
    "CutMix comes after the labels: image and mask are of the same two samples"
    learn = learner(few, EMA(), MeanTeacher(0.0, replace(strong, colour=0, hue=0, grey=0, blur=0)), CutMix(1.0))
    learn.add_cbs([After(4.5), Before(6)])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    for (x, y, _), (x2, y2, _) in zip(learn.after.batches, learn.before.batches):
        for k in (2, 3, 4):
            from_others = torch.zeros_like(y[0], dtype=torch.bool)
            same = {j: (x2[k] == x[j]).all(0) for j in (2, 3, 4)}
            for j in {2, 3, 4} - {k}:
                from_others |= same[j] & ~same[k]
                assert y2[k][same[j] & ~same[k]].equal(y[j][same[j] & ~same[k]])
            assert y2[k][~from_others].equal(y[k][~from_others])


def test_what_it_needs(few):
    with pytest.raises(ValueError, match='EMA'):
        learner(few, MeanTeacher()).fit(1)
    one = seg_learner(seg_dls(Stream(few, n=4), crop=(32, 64), bs=2), 'test_byobnet', loss_func=SegLoss())
    with pytest.raises(ValueError, match='stream_weights'):
        one.fit(1, cbs=[EMA(), MeanTeacher()])


def test_the_arm_is_checked_first(few, tmp_path):
    for recipe, table, text in (
        (replace(TINY, ema=0.0), few, 'ema=0'),
        (TINY, few.real + few.val, 'no unlabelled'),
        (replace(TINY, online_conf=1.5), few, 'online_conf=1.5'),
        (replace(TINY, online_views=0), few, 'online_views=0'),
        (replace(TINY, norm='strong'), few, "norm='strong'"),
    ):
        with pytest.raises(ValueError, match=text):
            self_train(table, tmp_path / 'run', recipe, ['online'], options=QUIET)
    assert not (tmp_path / 'run').exists()


def test_the_arm_starts_from_the_teacher_and_takes_as_many_steps(few, tmp_path):
    run = self_train(few, tmp_path / 'run', TINY, ['control', 'online'], options=QUIET)
    online, control = run.metrics('online'), run.metrics('control')
    assert run.done == ['teacher', 'control', 'online']
    assert (online['steps'], online['samples']) == (control['steps'], control['samples'])
    assert (online['n_real'], online['n_pseudo']) == (2, 8)


class StopLater(Callback):
    "A stop in the second epoch of the arm"

    def before_batch(self):
        if self.training and self.epoch == 1 and self.iter == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize('more', [{}, dict(norm='weak', online_views=2)])
def test_a_stopped_arm_ends_with_the_same_weights(few, tmp_path, more):
    recipe = replace(TINY, **more)
    whole = self_train(few, tmp_path / 'whole', recipe, ['online'], options=QUIET)
    stop = lambda arm: [StopLater()] if arm.name == 'online' and stop.on else []
    stop.on = True
    with pytest.raises(KeyboardInterrupt):
        self_train(few, tmp_path / 'stopped', recipe, ['online'], cbs=stop, options=QUIET)
    stop.on = False
    again = self_train(few, tmp_path / 'stopped', recipe, ['online'], cbs=stop, options=QUIET)
    assert again.predictor('online').hash == whole.predictor('online').hash


def test_statistics_of_weak_views_only(few):
    "Running statistics as if the first stream alone had been there; gradients of both"
    learn = learner(few, WeakNorm())
    for m in learn.model.modules():
        if isinstance(m, torch.nn.Dropout2d):
            m.p = 0
    alone = deepcopy(learn.model).train()
    x, *y = learn.dls.one_batch()
    with torch.no_grad():
        alone(x[:2])
    learn.xb, learn.yb = (x,), tuple(y)
    learn.model.train()
    learn.weak_norm.before_batch()
    out = learn.model(x)
    for (k, a), (_, b) in zip(alone.named_buffers(), learn.model.named_buffers()):
        if 'running' in k:
            assert a.equal(b), k
    strong_alone = deepcopy(alone)
    with fixed_statistics(strong_alone), torch.no_grad():
        assert strong_alone(x[2:]).allclose(out[2:], atol=1e-5)
    learn.weak_norm.after_batch()
    assert learn.model.weak == 0
    momenta = {m.momentum for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert 0 not in momenta


def test_weak_norm_changes_a_training(few):
    a, b = learner(few), learner(few, WeakNorm())
    for learn in (a, b):
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
    assert not all(p.equal(q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert isinstance(b.model, SegModel)
