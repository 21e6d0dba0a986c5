"A training that is stopped and goes on, what is counted, and what stops a run."

import math, re
from functools import partial

import numpy as np, pandas as pd, pytest, torch
import torch.nn as nn, torch.nn.functional as F
from fastai.callback.core import Callback, CancelBatchException, CancelFitException, CancelStepException
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.interpret import Interpretation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import DiceMulti, foreground_acc
from fastai.optimizer import SGD, Adam, OptimWrapper

import children
from selftrain_nb.augment import strong
from selftrain_nb.crops import CropSchedule
from selftrain_nb.labels import VOID
from selftrain_nb.losses import SegLoss
from selftrain_nb.metrics import mIoU
from selftrain_nb.mixing import *
from selftrain_nb.models import *
from selftrain_nb.scenes import scenes
from selftrain_nb.streams import *
from selftrain_nb.table import SegTable
from selftrain_nb.training import *

NET = 'test_byobnet'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    scenes(n=10, n_val=2, n_test=0, size=(32, 64), path=home / 'scenes').save(home / 'table.csv')
    return home


@pytest.fixture(scope='module')
def table(home):
    return SegTable.load(home / 'table.csv')


def loaders(table, n=6, bs=(2, 1), **kwargs):
    return seg_dls(
        Stream(table, n=n), Stream(table, augment=strong, weight=0.5, name='more'), crop=(32, 32), bs=bs, **kwargs
    )


def learner(table, cbs=(), n=6, **kwargs):
    return seg_learner(loaders(table, n), NET, cbs=cbs, **kwargs)


def fit(table, path, *cbs, epochs=3, **kwargs):
    learn = learner(table, **kwargs)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, cbs=[Checkpoint(path), *cbs])
    return learn


class StopAt(Callback):
    "Ctrl-C at an event of an epoch"

    def __init__(self, event, epoch):
        setattr(self, event, self.stop)
        self.at = epoch

    def stop(self):
        if self.epoch == self.at:
            raise KeyboardInterrupt


class Epochs(Callback):
    "Notes the epochs that are trained"

    def before_fit(self):
        self.seen = []

    def before_train(self):
        self.seen.append(self.epoch)


def stopped(table, path, event, epoch, *cbs, **kwargs):
    "A training that goes on after a stop: not one that begins anew, which would end alike"
    with pytest.raises(KeyboardInterrupt):
        fit(table, path, *[c() for c in cbs], StopAt(event, epoch), **kwargs)
    kept, spy = len(pd.read_csv(path / 'history.csv')), Epochs()
    again = fit(table, path, *[c() for c in cbs], spy, **kwargs)
    assert kept >= epoch and spy.seen == [*range(kept, 3)]
    return again


def same(a, b, *folders):
    "Two trainings are the same: weights, records, history"
    assert weights_hash(a.model) == weights_hash(b.model)
    assert (
        torch.equal(torch.stack([*a.recorder.losses]), torch.stack([*b.recorder.losses]))
        and a.recorder.lrs == b.recorder.lrs
    )
    assert [list(v) for v in a.recorder.values] == [
        list(v) for v in b.recorder.values
    ] and a.recorder.iters == b.recorder.iters
    assert (a.step_count.steps, a.step_count.samples) == (b.step_count.steps, b.step_count.samples)
    h1, h2 = (pd.read_csv(f / 'history.csv').drop(columns='seconds') for f in folders)
    pd.testing.assert_frame_equal(h1, h2)
    for (t1, v1), (t2, v2) in [(opt_state(a.opt), opt_state(b.opt))]:
        assert v1 == v2 and t1.keys() == t2.keys() and all(torch.equal(t1[k], t2[k]) for k in t1)


# Going on

OPTS = dict(
    adamw=ADAMW,
    fastai=partial(Adam, decouple_wd=True),
    sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9),
    fastai_sgd=SGD,
)


@pytest.mark.parametrize('opt', OPTS)
def test_a_stopped_training_ends_as_one_that_ran_through(opt, table, tmp_path):
    kwargs = dict(opt_func=OPTS[opt])
    once = fit(table, tmp_path / 'a', **kwargs)
    same(once, stopped(table, tmp_path / 'b', 'after_step', 1, **kwargs), tmp_path / 'a', tmp_path / 'b')


@pytest.mark.parametrize('event', ['before_train', 'after_loss', 'before_validate', 'after_epoch'])
def test_with_an_average_at_any_event(event, table, tmp_path):
    once = fit(table, tmp_path / 'a', EMA(0.9))
    again = stopped(table, tmp_path / 'b', event, 1, partial(EMA, 0.9))
    same(once, again, tmp_path / 'a', tmp_path / 'b')


def child(home, path):
    "What a process does"
    learn = fit(SegTable.load(home / 'table.csv'), path, EMA(0.9))
    save_tensors(path / 'end.safetensors', learn.model.state_dict())


@pytest.fixture(scope='module')
def once(home, tmp_path_factory):
    path = tmp_path_factory.mktemp('once')
    children.run(child, home, path)
    return path


@pytest.mark.parametrize(
    'point', ['train.checkpoint:1', 'train.checkpoint:2', 'write.temp:2', 'write.replace:3', 'write.temp:7']
)
def test_a_process_that_dies_while_it_writes(point, home, once, tmp_path):
    children.stopped_at(point, child, home, tmp_path)
    kept = children.histories(tmp_path)
    children.run(child, home, tmp_path)
    children.assert_kept(kept, tmp_path)
    assert (once / 'end.safetensors').read_bytes() == (tmp_path / 'end.safetensors').read_bytes()
    h1, h2 = (pd.read_csv(f / 'history.csv').drop(columns='seconds') for f in (once, tmp_path))
    pd.testing.assert_frame_equal(h1, h2)


def test_a_finished_training_does_nothing(table, tmp_path):
    once = fit(table, tmp_path / 'a', EMA(0.9))
    before = (tmp_path / 'a/state.safetensors').read_bytes()
    same(once, fit(table, tmp_path / 'a', EMA(0.9)), tmp_path / 'a', tmp_path / 'a')
    assert (tmp_path / 'a/state.safetensors').read_bytes() == before


def test_the_history_has_these_columns(table, tmp_path):
    fit(table, tmp_path / 'a', ValidEvery(2))
    df = pd.read_csv(tmp_path / 'a/history.csv')
    assert df.columns.tolist() == [
        'epoch',
        'train_loss',
        'valid_loss',
        'miou',
        'acc',
        'lr',
        'steps',
        'samples',
        'seconds',
    ]
    assert df.steps.tolist() == [3, 6, 9] and df.samples.tolist() == [9, 18, 27]
    assert df.miou.isna().tolist() == [True, False, False]


@pytest.mark.parametrize(
    'change,words',
    [
        (dict(epochs=2), 'epochs is 3 there and 2 here'),
        (dict(lr=1e-3), 'lr is 0.004 there and 0.001 here'),
        (dict(wd=0.1), 'wd is 0.01 there and 0.1 here'),
        (dict(opt_func=SGD), "optimiser is 'AdamW' there and 'Optimizer' here"),
        (dict(n=4), 'batches is 3 there and 2 here'),
    ],
)
def test_another_training_is_refused_in_words(change, words, table, tmp_path):
    fit(table, tmp_path / 'a')
    before = (tmp_path / 'a/state.safetensors').read_bytes()
    with pytest.raises(OtherRunError, match=re.escape(words)) as e:
        fit(table, tmp_path / 'a', **change)
    assert (
        str(e.value).startswith(str(tmp_path / 'a'))
        and '\n' not in str(e.value)
        and (tmp_path / 'a/state.safetensors').read_bytes() == before
    )


def test_other_images_averages_and_given_settings_are_refused(table, tmp_path):
    def run(t, *cbs, **identity):
        learn = learner(t)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, cbs=[Checkpoint(tmp_path / 'a', **identity), *cbs])

    run(table, EMA(0.9), recipe=dict(a=1, b=2))
    for args, words in (
        ((table, EMA(0.8)), 'ema is 0.9 there and 0.8 here'),
        ((table,), 'ema is 0.9 there and None here'),
        ((table[table.df.index != 0], EMA(0.9)), 'the images of stream more are others'),
    ):
        with pytest.raises(OtherRunError, match=words):
            run(*args, recipe=dict(a=1, b=2))
    with pytest.raises(OtherRunError, match='recipe.b is 2 there and 3 here'):
        run(table, EMA(0.9), recipe=dict(a=1, b=3))
    run(table, EMA(0.9), recipe=dict(b=2, a=1))


def test_other_shares_of_a_batch_are_refused(table, tmp_path):
    def run(bs):
        learn = seg_learner(seg_dls(Stream(table), Stream(table), crop=(32, 32), bs=bs), NET)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, cbs=[Checkpoint(tmp_path / 'a')])

    run((2, 2))
    with pytest.raises(OtherRunError, match=re.escape('bs is [2, 2] there and [2, 6] here')):
        run((2, 6))


def test_another_mix_is_refused_beside_a_second_one(table, tmp_path):
    fit(table, tmp_path / 'a', CutMix(0.5), ClassMix(0.5), epochs=1)
    for cbs, words in (
        ((CutMix(0.9), ClassMix(0.5)), 'CutMix.p is 0.5 there and 0.9 here'),
        ((CutMix(0.5), ClassMix(0.5, 0)), 'ClassMix.streams'),
        ((CutMix(0.5, (0.2, 0.3)), ClassMix(0.5)), 'CutMix.area'),
    ):
        with pytest.raises(OtherRunError, match=words):
            fit(table, tmp_path / 'a', *cbs, epochs=1)


def test_a_damaged_state_is_named(table, tmp_path):
    fit(table, tmp_path / 'a')
    data = (tmp_path / 'a/state.safetensors').read_bytes()
    (tmp_path / 'a/state.safetensors').write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match='state.safetensors: damaged'):
        fit(table, tmp_path / 'a')


def test_a_note_is_kept(table, tmp_path):
    learn = learner(table)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Checkpoint(tmp_path, note=dict(classes=['a'])))
    assert read_tensors(tmp_path / 'state.safetensors', tensors=False)[1]['note'] == dict(classes=['a'])


def test_the_scale_of_half_precision_goes_on(tmp_path):
    class Scaled(Callback):
        order = 10

        def before_fit(self):
            self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=8.0)

        def after_batch(self):
            self.learn.scaler._init_scale, self.learn.scaler._scale = 2.0, None

    plain(tmp_path, Scaled())
    assert read_tensors(tmp_path / 'state.safetensors', tensors=False)[1]['scaler']['scale'] == 2
    learn = plain_learner()
    learn.add_cb(Scaled())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=Checkpoint(tmp_path))
    assert learn.scaler.get_scale() == 2


# Any learner


def plain_learner(**kwargs):
    torch.manual_seed(0)
    data = [(torch.rand(3, 8, 8), torch.randint(0, 2, (8, 8))) for _ in range(8)]
    dls = DataLoaders(*[DataLoader(data, bs=4) for _ in range(2)])
    return Learner(
        dls,
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
        nn.CrossEntropyLoss(),
        **kwargs,
    )


def plain(path, *cbs, epochs=2):
    learn = plain_learner()
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, cbs=[Checkpoint(path), *cbs])
    return learn


def test_each_callback_works_on_a_plain_learner(tmp_path):
    for cb in (EpochSeed(3), FiniteLoss(), StepCount(), EMA(), ValidEvery(2), LogLines()):
        learn = plain_learner(cbs=cb)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2)
        assert learn.validate()[0] > 0
    plain(tmp_path / 'a')
    assert pd.read_csv(tmp_path / 'a/history.csv').columns.tolist() == [
        'epoch',
        'train_loss',
        'valid_loss',
        'lr',
        'seconds',
    ]


def test_a_plain_learner_goes_on(tmp_path):
    once = plain(tmp_path / 'a')
    with pytest.raises(KeyboardInterrupt):
        plain(tmp_path / 'b', StopAt('before_batch', 1))
    spy = Epochs()
    assert weights_hash(plain(tmp_path / 'b', spy).model) == weights_hash(once.model)
    assert spy.seen[0] == 1


def test_batches_of_a_block_without_streams(table):
    dls = seg_block(table.space).dataloaders(table, bs=2)
    learn = SegLearner(dls, seg_model(len(table.space), NET), SegLoss(), cbs=[StepCount(), EMA(), FiniteLoss()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert learn.step_count.samples == dict(all=10)
    with pytest.raises(ValueError, match='seg_learner needs DataLoaders from seg_dls'):
        seg_learner(dls, NET)


def test_validating_and_predicting_change_nothing(table, tmp_path):
    learn = learner(table, [EMA(0.9), Checkpoint(tmp_path / 'a')])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)

    def state():
        return (
            weights_hash(learn.model),
            weights_hash(learn.ema.average),
            learn.step_count.steps,
            learn.step_count.samples,
            len(learn.checkpoint.history),
            (tmp_path / 'a/state.safetensors').read_bytes(),
        )

    before, last = state(), learn.recorder.values[-1][1:]
    with learn.no_bar():
        assert list(learn.validate()) == list(last)
        preds, targs, losses = learn.get_preds(with_loss=True)
        assert preds.shape == (2, len(table.space), 32, 64) and losses.shape[0] == 2
        mask, *_ = learn.predict(table.df.image[0])
        assert mask.shape == (32, 64)
        Interpretation.from_learner(learn).top_losses(1)
    assert state() == before


def test_the_learning_rate_finder_is_left_alone(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = learner(table, [EMA(0.9), Checkpoint(tmp_path / 'a')])
    before = weights_hash(learn.model)
    with learn.no_bar():
        learn.lr_find(num_it=12, show_plot=False, end_lr=1e9)
    assert weights_hash(learn.model) == before and not (tmp_path / 'a').exists() and learn.step_count.steps == 0
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert learn.step_count.steps == 3


# A loss that is not finite


def test_a_learning_rate_that_is_too_large_stops_the_run(table, tmp_path):
    learn = learner(table, lr=1e9)
    with pytest.raises(DivergedError) as e, learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=Checkpoint(tmp_path / 'a'))
    text = str(e.value)
    assert re.match(
        r'(training|validation) in epoch \d of 2, batch \d of \d: the (loss is (nan|inf)|weights are not finite)\.',
        text,
    )
    assert 'lower learning rate than 1e+09' in text and '\n' not in text and not (tmp_path / 'a').exists()
    assert isinstance(e.value, FloatingPointError) and isinstance(e.value, ValueError)


class Break(Callback):
    "Make a loss, or a weight, not finite in the second epoch"

    def __init__(self, what, order):
        self.what, self.order = what, order

    def after_loss(self):
        if self.epoch == 1 and self.iter == 2 and self.training and self.what == 'loss':
            self.learn.loss = self.learn.loss_grad = self.loss_grad * math.nan

    def after_batch(self):
        if self.epoch == 1 and self.training and self.iter == 2 and self.what == 'weight':
            next(self.model.parameters()).data[0] = math.inf


@pytest.mark.parametrize(
    'what,words',
    [
        ('loss', 'training in epoch 2 of 3, batch 3 of 3: the loss is nan'),
        ('weight', 'epoch 2 of 3, batch 3 of 3: the weights are not finite'),
    ],
)
def test_it_says_where(what, words, table, tmp_path):
    learn = learner(table)
    with pytest.raises(DivergedError, match=words), learn.no_bar(), learn.no_logging():
        learn.fit(3, cbs=[Break(what, 40), Checkpoint(tmp_path)])
    assert len(pd.read_csv(tmp_path / 'history.csv')) == 1


# What is counted


@pytest.mark.parametrize('n,bs', [(7, (3, 2)), (6, (2, 2)), (5, (8, 1)), (1, (1, 1))])
def test_steps_and_samples_are_those_that_were_taken(n, bs, table):
    learn = seg_learner(loaders(table, n, bs), NET)
    learn.create_opt()
    taken, step = [], learn.opt.opt.step
    learn.opt.opt.step = lambda *a, **k: (taken.append(1), step(*a, **k))[1]
    seen = torch.zeros(2, dtype=torch.long)

    class Look(Callback):
        run_valid = False

        def before_batch(self):
            seen.add_(
                torch.bincount(
                    next(y for y in self.yb if isinstance(y, TensorStream)).as_subclass(torch.Tensor), minlength=2
                )
            )

    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=Look())
    assert learn.step_count.steps == len(taken) == 2 * -(-n // bs[0])
    assert list(learn.step_count.samples.values()) == seen.tolist() == [len(taken) * b for b in bs]


class SkipStep(Callback):
    def before_step(self):
        if self.iter == 0:
            raise CancelStepException


class SkipBatch(Callback):
    def before_backward(self):
        if self.iter == 0:
            raise CancelBatchException


@pytest.mark.parametrize('cb,steps,samples', [(SkipStep, 4, 18), (SkipBatch, 4, 12)])
def test_what_is_skipped_does_not_count(cb, steps, samples, table):
    learn = learner(table)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=cb())
    assert (learn.step_count.steps, sum(learn.step_count.samples.values())) == (steps, samples)


# Averages


def test_the_average_by_hand(table):
    weights, buffers = [], []

    class Watch(Callback):
        order, run_valid = 61, False

        def after_batch(self):
            weights.append(self.model.net.segmentation_head[0].weight.detach().clone())
            buffers.append(self.model.net.encoder.state_dict()['model.stem.bn.running_mean'].clone())

    learn = learner(table, [EMA(0.5), Watch()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(4)
    for values, found in (
        (weights, learn.model.net.segmentation_head[0].weight),
        (buffers, learn.model.net.encoder.state_dict()['model.stem.bn.running_mean']),
    ):
        want = values[0]
        for t, v in enumerate(values[1:], 1):
            want = want + (v - want) * (1 - min(0.5, (1 + t) / (10 + t)))
        assert torch.allclose(found, want, atol=1e-6)
    n = learn.model.net.encoder.state_dict()['model.stem.bn.num_batches_tracked']
    assert n == 12


def test_validation_measures_the_average_and_training_goes_on_from_the_weights(table, tmp_path):
    with_ema, without = fit(table, tmp_path / 'a', EMA(0.9)), fit(table, tmp_path / 'b')
    assert torch.equal(torch.stack([*with_ema.recorder.losses]), torch.stack([*without.recorder.losses]))
    values = list(with_ema.recorder.values[-1][1:])
    assert values != list(without.recorder.values[-1][1:])
    with with_ema.no_bar():
        assert list(with_ema.validate()) == values


# Log and validation


@pytest.mark.parametrize('k,epochs,done', [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (3, 3, [2]), (9, 4, [3])])
def test_validation_of_some_epochs_and_the_last(k, epochs, done, table):
    learn = learner(table, ValidEvery(k))
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs)
    assert [i for i, v in enumerate(learn.recorder.values) if not math.isnan(v[1])] == done
    assert {len(v) for v in learn.recorder.values} == {4}
    with learn.no_bar():
        assert learn.validate()[0] > 0


def test_one_line_an_epoch_where_stdout_is_no_terminal(table, capsys):
    learn = learner(table)
    learn.fit(2)
    learn.validate()
    with learn.no_logging():
        learn.fit(1)
    out = capsys.readouterr().out
    assert re.fullmatch(
        r'(epoch \d/2  train_loss [\d.]+  valid_loss [\d.]+  miou [\d.]+  acc [\d.]+  time 00:\d\d\n){2}', out
    ), out


def test_lines_can_be_asked_for_in_a_fit(table, capsys):
    learn = plain_learner()
    learn.fit(1, cbs=LogLines(True))
    assert capsys.readouterr().out.startswith('epoch 1/1  train_loss')


# The learner


def test_weights_of_classes_come_from_the_first_stream(table):
    few = table.keep_labels(2, by='image')
    learn = seg_learner(seg_dls(Stream(few), Stream(table, weight=0.25, name='b'), crop=(32, 32), bs=2), NET)
    assert torch.allclose(learn.class_weights, class_weights(few.train.real.counts()))
    assert learn.loss_func.stream_weights.tolist() == [1, 0.25] and torch.equal(
        learn.loss_func.weight, learn.class_weights
    )
    assert (learn.encoder, learn.arch, learn.model_kwargs) == (NET, 'fpn', {})
    assert seg_learner(learn.dls, NET, weight_power=0).class_weights is None


def test_a_network_of_ones_own_and_other_parts(table):
    class Lines(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 10, 1)

        def forward(self, x):
            return self.conv(x)

    learn = seg_learner(
        loaders(table),
        Lines(),
        loss_func=lambda p, y, *more: F.cross_entropy(p, y, ignore_index=255),
        metrics=[],
        opt_func=SGD,
    )
    assert (
        isinstance(learn.model, SegModel)
        and learn.model.multiple == 1
        and learn.encoder == ''
        and len(learn.metrics) == 0
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    model = seg_model(10, NET, bf16=True)
    assert seg_learner(loaders(table), model).model is model


def test_the_same_seed_gives_the_same_network(table):
    a, b, c = (seg_learner(loaders(table, seed=s), NET) for s in (1, 1, 2))
    assert weights_hash(a.model) == weights_hash(b.model) != weights_hash(c.model)


def test_pretrained_and_two_learning_rates(table):
    learn = seg_learner(loaders(table), pretrained=True)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    assert len(learn.opt.hypers) == 2 and learn.opt.hypers[0]['lr'] < learn.opt.hypers[1]['lr']


def test_the_state_of_a_fused_optimiser_keeps_its_layout():
    "A state in another order of memory would be read wrongly, without an error"
    torch.manual_seed(0)
    a, b = (nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last) for _ in range(2))
    b.load_state_dict(a.state_dict())
    opts = [ADAMW(m.parameters(), lr=0.1) for m in (a, b)]

    def step(m, opt):
        opt.zero_grad()
        m(torch.ones(1, 4, 5, 5)).square().sum().backward()
        opt.step()

    step(a, opts[0])
    b.load_state_dict(a.state_dict())
    tensors, values = opt_state(opts[0])
    set_opt_state(opts[1], {k: v.contiguous() for k, v in tensors.items()}, values)
    for m, o in zip((a, b), opts):
        step(m, o)
    assert torch.equal(a.weight, b.weight)


# What a practitioner does in a notebook


def test_the_same_learner_goes_on_after_ctrl_c(table, tmp_path):
    "Neither gradients nor weights of the epoch that was stopped remain"

    class StopBackward(Callback):
        def after_backward(self):
            if (self.epoch, self.iter) == (1, 1):
                raise KeyboardInterrupt

    once, learn = fit(table, tmp_path / 'a', epochs=2), learner(table)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt):
            learn.fit_one_cycle(2, cbs=[Checkpoint(tmp_path / 'b'), StopBackward()])
        learn.fit_one_cycle(2, cbs=Checkpoint(tmp_path / 'b'))
    assert weights_hash(learn.model) == weights_hash(once.model)


def test_two_averages_are_refused(table):
    learn = learner(table, [EMA(0.9)])
    with pytest.raises(ValueError, match='two EMA callbacks'), learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=EMA(0.99))


def right(pred, mask, ignore=255):
    assert ignore == 255
    return (pred.argmax(1) == mask).float().mean()


def test_metrics_that_are_functions_see_masks_alone(table, tmp_path):
    learn = seg_learner(loaders(table, valid_bs=1), NET, metrics=right)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert learn.recorder.metric_names[3] == 'right' and 0 <= learn.recorder.values[0][2] <= 1
    learn.path = tmp_path
    learn.export('x.pkl')  # functions of a module can be pickled, and stay so


def test_metrics_of_fastai_see_masks_alone(table, tmp_path):
    learn = seg_learner(loaders(table), NET, metrics=[DiceMulti(), foreground_acc, mIoU()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        pred, (mask, *_) = learn.get_preds()
    of_class = [(pred.argmax(1) == c, mask == c) for c in range(pred.shape[1])]
    dice = [2 * float((p & t).sum() / (p.sum() + t.sum())) for p, t in of_class if t.any() or p.any()]
    assert learn.recorder.metric_names[3:6] == ['dice_multi', 'foreground_acc', 'miou']
    assert learn.recorder.values[-1][-3] == pytest.approx(sum(dice) / len(dice), abs=1e-5)
    learn.metrics = [DiceMulti, mIoU]  # set later, and as classes
    with learn.no_bar():
        assert learn.validate()[1] == pytest.approx(sum(dice) / len(dice), abs=1e-5)
    learn.path = tmp_path
    learn.export('x.pkl')


def test_a_loss_of_ones_own_has_its_own_class_weights(table):
    assert learner(table).class_weights is not None
    assert learner(table, loss_func=SegLoss(None, [1.0, 1.0])).class_weights is None


def test_a_validation_after_ctrl_c_is_one(table):
    learn = learner(table, [ValidEvery(2)])
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt):
            learn.fit(4, cbs=StopAt('after_loss', 0))
        assert all(math.isfinite(v) for v in learn.validate()[:2])


@pytest.mark.parametrize('cb', [CutMix(streams=[1]), CropSchedule()])
def test_an_exported_learner_predicts(cb, table, tmp_path):
    from fastai.learner import load_learner

    learn = learner(table, [cb])
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    learn.export('x.pkl')
    again = load_learner(tmp_path / 'x.pkl')
    with again.no_bar():
        assert again.predict(table.df.image[0])[1].shape == (32, 64)


def test_a_schedule_leaves_few_samples_and_the_search_of_a_rate_alone(table):
    learn = seg_learner(loaders(table, n=2, bs=(4, 1)), NET, cbs=CropSchedule('constant'))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert next(iter(learn.step_count.samples.values())) == 4
    learn = learner(table, [CropSchedule([(1.0, (32, 32))])], n=20)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=8, show_plot=False, stop_div=False)
    assert len(learn.recorder.lrs) == 8


def test_tied_weights_and_networks_that_give_a_dict(tmp_path, table):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 10, 1)
            self.parts = nn.ModuleList([self.head])

        def forward(self, x):
            return dict(out=self.head(x))

    learn = seg_learner(loaders(table), Tied())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Checkpoint(tmp_path / 'a'))
    assert (tmp_path / 'a/state.safetensors').exists()


def test_the_network_that_is_kept_is_the_one_that_was_measured(table, tmp_path):
    "fastai's SaveModelCallback saves, and loads back, the average, which the metrics are of"
    from fastai.callback.tracker import SaveModelCallback

    learn = learner(table, [EMA(0.9)])
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, cbs=SaveModelCallback(monitor='miou', fname='best'))
        best = max(v[2] for v in learn.recorder.values)
        assert learn.validate()[1] == pytest.approx(best, abs=1e-6)


def test_the_average_is_of_steps_and_not_of_batches(table):
    from fastai.callback.training import GradientAccumulation

    learn = learner(table, [EMA(0.9)])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=GradientAccumulation(6))
    assert 0 < learn.step_count.steps == int(learn.ema.average.n_averaged) < 6


def test_a_training_that_was_stopped_early_is_finished(table, tmp_path):
    from fastai.callback.tracker import EarlyStoppingCallback

    stop = lambda: EarlyStoppingCallback('valid_loss', min_delta=10, patience=2)
    found = {weights_hash(fit(table, tmp_path / 'a', stop(), EMA(0.9), epochs=6).model) for _ in range(3)}
    assert len(found) == 1 and len(pd.read_csv(tmp_path / 'a/history.csv')) == 3


class Drawn(Callback):
    "The sum of each batch that trains, mixed or not"
    order = 6

    def __init__(self): self.sums = []

    def before_batch(self):
        if self.training:
            self.sums.append(float(self.xb[0].double().sum()))


def small(table, **kwargs):
    kwargs = dict(pretrained=False, encoder='test_byobnet') | kwargs
    return seg_learner(seg_dls(Stream(table, n=8), crop=(32, 32), bs=4), **kwargs)


def quiet(learn, fit=1, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(fit, **kwargs)
    return learn


def test_a_second_fit_draws_other_crops(table):
    "Five fits of one epoch are five epochs"
    seen = Drawn()
    learn = small(table, cbs=[seen, CutMix(p=1.)])
    for _ in range(5):
        quiet(learn)
    assert len(set(seen.sums)) == 10
    once = Drawn()
    quiet(small(table, cbs=[once, CutMix(p=1.)]), 5)
    assert once.sums == seen.sums


def test_epochs_without_validation_are_no_epochs_without_a_gain(table):
    best = EarlyStoppingCallback('miou', patience=2, min_delta=2.)  # which nothing gains
    learn = quiet(small(table), 9, cbs=[ValidEvery(3), best])
    assert [np.isnan(v[1]) for v in learn.recorder.values] == [True, True, False] * 3 and best.wait == 2


@pytest.mark.parametrize(
    'loss', [CrossEntropyLossFlat(axis=1, ignore_index=VOID), nn.CrossEntropyLoss(ignore_index=VOID)]
)
def test_losses_of_others(table, loss):
    learn = quiet(small(table, loss_func=loss))
    probs, _, ids = learn.get_preds(with_decoded=True)
    assert torch.equal(probs.argmax(1), ids.long()) and float(probs.sum(1).mean()) == pytest.approx(1)
    learn.show_results()
    conf = seg_dls(Stream(table, n=8), Stream(table, labels='weighted'), crop=(32, 32), bs=4)
    with pytest.raises(TypeError, match='TensorConfidence'):
        quiet(seg_learner(conf, 'test_byobnet', loss_func=loss))


def test_a_network_with_other_channels_is_named(table):
    with pytest.raises(ValueError, match='7 channels, and there are 10 classes'):
        quiet(small(table, encoder=nn.Conv2d(3, 7, 1)))


def test_a_fit_after_another_goes_on_as_if_it_was_never_stopped(table, tmp_path):
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.epoch == 1:
                raise KeyboardInterrupt

    def second(learn, path, *cbs):
        return quiet(learn, 3, cbs=[Checkpoint(tmp_path / path), *cbs])

    first = quiet(small(table))
    torch.save(first.model.state_dict(), tmp_path / 'first.pth')
    whole, seen = second(first, 'whole'), first.epochs_before
    again = quiet(small(table))
    with pytest.raises(KeyboardInterrupt):
        second(again, 'stopped', Stop())
    assert again.epochs_before == 1
    other = small(table)  # as in a new process
    other.model.load_state_dict(torch.load(tmp_path / 'first.pth'))
    second(other, 'stopped')
    assert weights_hash(other.model) == weights_hash(whole.model) and other.epochs_before == seen == 4
    assert second(first, 'whole').epochs_before == 4, 'nothing was left to train'


def test_trackers_are_on_again_after_a_stop(table):
    class Stop(Callback):
        order, run_valid = 59, False

        def after_epoch(self):
            raise CancelFitException

    best = EarlyStoppingCallback('miou', patience=2)
    learn = quiet(small(table), 4, cbs=[ValidEvery(3), best, Stop()])
    assert best.run and len(learn.recorder.values) == 1
    loss = EarlyStoppingCallback('train_loss', patience=2, min_delta=100.)
    assert len(quiet(small(table), 9, cbs=[ValidEvery(3), loss]).recorder.values) == 3


def test_what_a_loss_is_given(table):
    "Prediction and mask; all there is, where it needs more"
    seen = []

    def two(pred, mask, gamma=2.0):
        seen.append(gamma)
        return F.cross_entropy(pred, mask, ignore_index=VOID)

    def more(pred, mask, *rest):
        seen.append(len(rest))
        return two(pred, mask)

    learn = quiet(small(table, loss_func=two))
    assert {*seen} == {2.0}
    learn.loss_func = learn.loss_func
    assert learn.loss_func.loss is two
    quiet(small(table, loss_func=partial(F.cross_entropy, ignore_index=VOID)))
    seen.clear()
    quiet(small(table, loss_func=more))
    assert {*seen} == {1, 2.0}
