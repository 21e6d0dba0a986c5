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
from selftrain_nb.checkpoint import Checkpoint, OtherRunError
from selftrain_nb.ema import EMA, MeanTeacher
from selftrain_nb.labels import VOID
from selftrain_nb.losses import SegLoss
from selftrain_nb.mixing import CutMix
from selftrain_nb.models import WeakNorm, fixed_statistics
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
    "Each batch, the teacher's logits of it, and the weights of the streams that the loss gets"
    run_valid = False

    def __init__(self, order):
        self.order, self.batches, self.logits, self.weights = order, [], [], []

    def before_batch(self):
        self.batches.append([t.as_subclass(torch.Tensor).clone() for t in (*self.xb, *self.yb)])
        with torch.no_grad():
            self.logits.append(deepcopy(self.ema.average.module).eval()(self.batches[-1][0]))

    def after_pred(self):
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
    learn.add_cbs([Before(4.5), After(6)])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    pasted = 0
    for (x, y, _), (x2, y2, _) in zip(learn.before.batches, learn.after.batches):
        for k in (2, 3, 4):
            from_others = torch.zeros_like(y[0], dtype=torch.bool)
            same = {j: (x2[k] == x[j]).all(0) for j in (2, 3, 4)}
            for j in {2, 3, 4} - {k}:
                from_others |= same[j] & ~same[k]
                assert y2[k][same[j] & ~same[k]].equal(y[j][same[j] & ~same[k]])
            assert y2[k][~from_others].equal(y[k][~from_others])
            pasted += from_others.any().item()
    assert pasted >= 4


def test_human_labels_that_are_pasted_in_count(few):
    "The weight of the stream is the share of the pixels that have a label after mixing"
    learn = learner(few, EMA(), MeanTeacher(1.0, ramp=0.0), CutMix(1.0, across=True), After(6))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    shares = [(y[2:] != VOID).float().mean().item() for _, y, _ in learn.after.batches]
    assert [w[1] for w in learn.after.weights] == pytest.approx(shares) and max(shares) > 0.05


def test_what_it_needs(few):
    with pytest.raises(ValueError, match='EMA'):
        learner(few, MeanTeacher()).fit(1)
    plain = learner(few, EMA(), MeanTeacher())
    plain.loss_func = SegLoss()
    labelled = seg_learner(seg_dls(Stream(few, n=4), Stream(few), crop=(32, 64), bs=2), 'test_byobnet')
    for learn, cbs in ((plain, []), (labelled, [EMA(), MeanTeacher()])):
        with pytest.raises(ValueError, match='no labels, SegLoss'):
            learn.fit(1, cbs=cbs)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f'stream {wrong} has no labels'):
            learner(few, EMA(), MeanTeacher(stream=wrong)).fit(1)


def test_a_search_for_the_learning_rate_goes_by(few):
    learn = learner(few, EMA(), MeanTeacher())
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=20, show_plot=False)
    assert learn.loss_func.stream_weights.tolist() == [1, 1]


def test_augment_is_an_augment(few):
    "Strong views are made of a batch: a function of PIL images cannot, and says so before the first step"
    def own(image, mask, rng): return image, mask
    learn = learner(few, EMA(), MeanTeacher(augment=own))
    with pytest.raises(ValueError, match='own changes PIL images'), learn.no_bar(), learn.no_logging():
        learn.fit(1)
    with pytest.raises(ValueError, match="augment='strong'"):
        MeanTeacher(augment='strong')


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


@pytest.mark.parametrize('init, same', [('fresh', False), ('teacher', True)])
def test_the_arm_starts_as_the_student_does(few, tmp_path, init, same):
    recipe, file = replace(TINY, student_init=init), tmp_path / 'teacher.safetensors'
    arms = [recipe.arm(a, few, few.revealed, file) for a in ('student', 'control', 'online')]
    assert {a.init for a in arms} == {file if same else None}
    assert len({(a.epochs, a.network, a.averaged, a.mixed) for a in arms}) == 1


def test_centroids_need_labels(few):
    "Crops around class centroids are for streams that have labels; the unlabelled one is drawn at random"
    first, second = replace(TINY, sampler='centroid').arm('online', few).streams
    assert 'centroid' in repr(first) and 'random' in repr(second)


def test_the_arm_takes_as_many_steps_as_the_control(few, tmp_path):
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
    assert learn.model.weak == 0
    parts = [torch.autograd.grad(part.sum(), p, retain_graph=True) for part in (out[:2], out[2:])
             for p in [next(learn.model.parameters())]]
    assert all(g.abs().sum() > 0 for (g,) in parts)
    momenta = {m.momentum for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert 0 not in momenta


def test_weak_norm_changes_a_training(few):
    a, b = learner(few), learner(few, WeakNorm())
    for learn in (a, b):
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
    assert not all(p.equal(q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))


def test_with_weak_norm_it_is_another_training(few, tmp_path):
    with pytest.raises(OtherRunError, match='norm'):
        for cbs in ([], [WeakNorm()]):
            learn = learner(few, *cbs, Checkpoint(tmp_path))
            with learn.no_bar(), learn.no_logging():
                learn.fit(1, 1e-3)
