"""The crop schedule does what its plan says in every kind of fit, leaves nothing behind, and survives a stop in
the middle of a cycle."""

import itertools, json
from contextlib import nullcontext

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.schedule import ParamScheduler, SchedPoly
from fastai.vision.all import Callback, CancelFitException, CancelTrainException, DataLoaders, Learner
from hypothesis import given, settings, strategies as st

import children
from selftrain_nb.scenes import scenes
from selftrain_nb.table import *
from selftrain_nb.augment import *
from selftrain_nb.centroids import *
from selftrain_nb.streams import *
from selftrain_nb.training import *
from selftrain_nb.crops import *


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    return scenes(n=12, n_val=3, n_test=0, size=(64, 96), path=tmp_path_factory.mktemp('scenes')).keep_labels(6)


def learner(few, n=16, bs=4, more=(), sampler='random', **kwargs):
    learn = seg_learner(
        seg_dls(Stream(few, n=n, sampler=sampler), *more, crop=(64, 96), bs=bs, **kwargs), 'test_byobnet'
    )
    learn.logger = lambda *_: None
    return learn


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.state_dict().values()])


def rules(**kwargs):
    return CropRules(**kwargs)


TWO = [(0.5, (32, 32)), (0.5, 1.0)]


# The plan

phases = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from([0.25, 0.5, 0.75, 1.0, 32, (64, 32)])), min_size=1, max_size=5
).map(lambda p: [(a / sum(a for a, _ in p), s) for a, s in p])


@settings(max_examples=200, deadline=None)
@given(phases, st.integers(1, 60), st.none() | st.integers(1, 9), st.sampled_from([0, 0.1, 0.5, 1.0]))
def test_which_size_comes_when(phases, epochs, cycle, final):
    got = epoch_sizes(epochs, phases, cycle, final)
    last = max(1, round(epochs * final)) if final else 0
    body = epochs - last
    length = min(cycle or body, max(1, body))
    assert len(got) == epochs and got[body:] == [1.0] * last
    for e in range(body):
        at, so_far = (e % length + 0.5) / length, 0
        for share, size in phases:
            so_far += share
            if at <= so_far + 1e-9:
                break
        assert got[e] == size or abs(at - so_far) < 1e-9


@settings(max_examples=200, deadline=None)
@given(
    phases,
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(1, 16),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(['pixels', 'constant']),
    st.sampled_from([1, 2, 4.5]),
)
def test_settings_keep_their_promises(phases, epochs, n, bs, h, w, batch, growth):
    for s in CropSchedule(phases, rules=rules(batch=batch, max_growth=growth, rate='linear')).settings(
        epochs, n, bs, (h, w)
    ):
        assert s.crop == (h, w) or all(c >= 32 and c % 32 == 0 for c in s.crop)
        assert 1 <= s.bs <= max(n, bs) and s.rate == s.bs / bs
        if batch == 'constant':
            assert s.bs == bs
        else:
            assert s.bs <= max(1, round(growth * bs)) and (s.bs - 0.5) * s.crop[0] * s.crop[1] <= max(
                bs * h * w, 0.5 * s.crop[0] * s.crop[1]
            )


@pytest.mark.parametrize('name', PRESETS)
def test_presets_end_as_they_say(name):
    for epochs in (2, 5, 30):
        crops = [s.crop for s in CropSchedule(name).settings(epochs, 100, 8, (512, 512))]
        assert (crops[-1] == (512, 512)) == (name != 'fine2coarse')
        assert len(set(crops)) == (1 if name == 'constant' else min(3, epochs))


def test_plan_adds_up():
    df = CropSchedule('coarse2fine+').plan(10, n=100, bs=8, crop=(256, 512))
    assert (df.steps == np.ceil(100 / df.bs)).all()
    assert (df.megapixels * 1e6 == df.steps * df.bs * df.height * df.width).all()
    assert np.isclose(df.speedup.iloc[-1], 10 * 104 * 256 * 512 / 1e6 / df.megapixels.sum())


def test_a_schedule_is_plain_json():
    for s in (CropSchedule('coarse2fine+'), CropSchedule(TWO, cycle=2, final=0.2, rules=rules(warmup=3))):
        d = json.loads(json.dumps(s.to_dict()))
        again = CropSchedule(d['phases'], d['cycle'], d['final'], CropRules(**d['rules']), d['multiple'])
        assert again.settings(9, 100, 8, (64, 96)) == s.settings(9, 100, 8, (64, 96)) and s.identity == dict(
            crops=s.to_dict()
        )


# The fit


class Spy(Callback):
    "What each training step sees: epoch, samples, size of the crops, learning rate"

    order = 56

    def before_fit(self):
        self.seen = []

    def before_step(self):
        self.seen.append((self.epoch, len(self.xb[0]), tuple(self.xb[0].shape[-2:]), self.opt.hypers[-1]['lr']))


FITS = dict(
    one_cycle=lambda learn, n, cbs: learn.fit_one_cycle(n, 1e-3, cbs=cbs),
    flat_cos=lambda learn, n, cbs: learn.fit_flat_cos(n, 1e-3, cbs=cbs),
    poly=lambda learn, n, cbs: learn.fit(n, 1e-3, cbs=[ParamScheduler({'lr': SchedPoly(1e-3, 0, 0.9)}), *cbs]),
    plain=lambda learn, n, cbs: learn.fit(n, 1e-3, cbs=cbs),
)


class Base(Callback):
    "The rate that the fit itself asks for"

    order = 61

    def before_fit(self):
        self.asked = []

    def before_batch(self):
        if self.training:
            self.asked.append(self.opt.hypers[-1]['lr'])


@pytest.mark.parametrize('kind', FITS)
def test_sizes_batches_and_rates_are_the_plan(few, kind):
    learn, spy, base = learner(few), Spy(), Base()
    cb = CropSchedule(TWO, cycle=2, rules=rules(rate='linear', warmup=1, max_growth=4))
    with learn.no_bar():
        FITS[kind](learn, 4, [cb, spy, base])
    df, at = cb.plan(4, n=16, bs=4, crop=(64, 96)), 0
    assert df.bs.tolist() == [16, 4, 16, 4]
    for e, row in df.iterrows():
        steps = [s for s in spy.seen if s[0] == e]
        assert len(steps) == row.steps
        for i, (_, bs, crop, lr) in enumerate(steps):
            assert (bs, crop) == (row.bs, (row.height, row.width))
            assert np.isclose(lr, base.asked[at] * row.rate * (0.5 if e and i == 0 else 1))
            at += 1
    assert at == len(base.asked) == learn.step_count.steps and (kind != 'plain' or set(base.asked) == {1e-3})
    assert np.allclose(learn.recorder.lrs, [s[3] for s in spy.seen])
    logged = pd.DataFrame([v[-4:] for v in learn.recorder.values], columns=['height', 'width', 'bs', 'lr'])
    assert (logged[['height', 'width', 'bs']] == df[['height', 'width', 'bs']]).all(axis=None)


def test_all_streams_grow_in_proportion(few):
    learn, seen = learner(few, bs=(4, 2), more=[Stream(few.revealed, name='more')]), []

    class Count(Callback):
        order = 56

        def before_step(self):
            seen.append(
                np.bincount(
                    next(y for y in self.yb if isinstance(y, TensorStream)).as_subclass(torch.Tensor), minlength=2
                ).tolist()
            )

    with learn.no_bar():
        learn.fit(2, cbs=[CropSchedule(TWO, rules=rules(max_growth=4)), Count()])
    assert seen == [[16, 8]] + [[4, 2]] * 4
    assert learn.step_count.samples == {'real': 32, 'more': 16}


def test_zooming_out_changes_the_scale_of_the_augmentation(few):
    zooms = []

    class Look(Callback):
        order = 56

        def before_train(self):
            zooms.append(self.learn.dl.plan.augments[0].scale)

    learn = learner(few)
    with learn.no_bar():
        learn.fit(2, cbs=[CropSchedule(TWO), Look()])
    with learn.no_bar():
        learn.fit(2, cbs=[CropSchedule(TWO, rules=rules(zoom=0)), Look()])
    f = (32 * 32 / 64 / 96) ** 0.5
    assert np.allclose(zooms, [(0.5 * f, 2 * f), (0.5, 2), (0.5, 2), (0.5, 2)])


def state(learn):
    dl = learn.dls.train
    return (
        id(dl),
        dl.bs,
        dl.n,
        len(dl),
        dl.crop,
        id(learn.dls.valid),
        learn.dls.valid.bs,
        [*learn.metrics.attrgot('name')],
        {type(c) for c in learn.cbs},
    )


class Raise(Callback):
    order = 70

    def __init__(self, what):
        self.what = what

    def before_batch(self):
        if self.training and self.epoch == 0 and self.iter == 1:
            self.raised = True
            raise self.what


class RaiseInStep(Raise):
    def before_batch(self):
        pass

    def after_step(self):
        self.raised = True
        raise self.what


@pytest.mark.parametrize(
    'error,where',
    [
        (e, w)
        for e in (KeyboardInterrupt(), OSError('full'), CancelFitException(), CancelTrainException())
        for w in (Raise, RaiseInStep)
    ],
)
def test_nothing_is_left_after_a_stop(few, error, where):
    learn, stop = learner(few, n=32), where(error)
    before, passed = state(learn), not isinstance(error, (KeyboardInterrupt, OSError))
    with nullcontext() if passed else pytest.raises(type(error)), learn.no_bar():
        learn.fit_one_cycle(2, cbs=[CropSchedule([(1, (32, 64))]), stop])
    assert stop.raised and state(learn) == before
    assert tuple(learn.dls.one_batch()[0].shape) == (4, 3, 64, 96)
    spy = Spy()
    with learn.no_bar():
        learn.fit(1, 1e-3, cbs=spy)
    assert {s[1:] for s in spy.seen} == {(4, (64, 96), 1e-3)}


def test_two_fits_in_a_row(few):
    learn, cb, spy = learner(few), CropSchedule(TWO, rules=rules(max_growth=4)), Spy()
    for epochs in (2, 4):
        with learn.no_bar():
            learn.fit_one_cycle(epochs, cbs=[cb, spy])
        assert [[*g] for _, g in itertools.groupby(s[2] for s in spy.seen)] == [
            [(32, 32)] * (epochs // 2),
            [(64, 96)] * 4 * (epochs // 2),
        ]
    assert len(learn.recorder.metric_names) == len(set(learn.recorder.metric_names))


def test_validation_is_at_full_size(few):
    sizes = set()

    class Valid(Callback):
        def before_batch(self):
            if not self.training:
                sizes.add((self.dl.bs, tuple(self.xb[0].shape[-2:])))

    learn, cb = learner(few), CropSchedule([(1, 32)])
    learn.add_cb(cb)  # stays: neither validation nor prediction minds
    with learn.no_bar():
        learn.validate()
        learn.fit(2, cbs=Valid())
        learn.validate()
        learn.get_preds()
    assert sizes == {(4, (64, 96))}


def test_without_epoch_seed_each_epoch_is_a_new_one(few):
    learn, first = learner(few), []
    learn.remove_cb(EpochSeed)

    class Look(Callback):
        def before_batch(self):
            if self.training and self.iter == 0:
                first.append(self.xb[0].clone())

    with learn.no_bar():
        learn.fit(2, cbs=[CropSchedule([(1, 32)]), Look()])
    assert not torch.equal(first[0], first[1]) and learn.dls.train.epoch == 2


def test_a_constant_schedule_changes_nothing(few):
    def trained(*cbs):
        learn = learner(few)
        with learn.no_bar():
            learn.fit_one_cycle(2, cbs=cbs)
        return weights(learn)

    assert torch.equal(trained(CropSchedule('constant')), trained())
    assert not torch.equal(trained(CropSchedule(TWO)), trained())


def test_any_number_of_workers(few):
    def trained(workers):
        learn = learner(few, num_workers=workers, sampler=CentroidSampler(p=1.0))
        with learn.no_bar():
            learn.fit_one_cycle(2, cbs=CropSchedule(TWO))
        return weights(learn)

    assert torch.equal(trained(0), trained(2))


def test_small_crops_by_centroid_hold_their_class(few):
    dl = learner(few, n=64, sampler=CentroidSampler(p=1.0)).dls.train.resized((32, 32), 8)
    for k, s in enumerate(dl.drawn()[0]):
        assert (np.asarray(dl.do_item(k)[1]) == s['cls']).any()


@pytest.mark.filterwarnings('ignore')  # that there is no GPU
def test_mixed_precision(few):
    learn, spy = learner(few), Spy()
    with learn.no_bar():
        learn.fit_one_cycle(
            2, cbs=[CropSchedule(TWO, rules=rules(max_growth=4)), spy, MixedPrecision(amp_mode=AMPMode.BF16)]
        )
    assert [s[2] for s in spy.seen] == [(32, 32)] + [(64, 96)] * 4


def test_every_batch_is_full(few):
    learn, spy = learner(few, n=17, bs=2), Spy()
    with learn.no_bar():
        learn.fit(1, cbs=[CropSchedule([(1, 64)], rules=rules(max_growth=2)), spy])
    assert [s[1] for s in spy.seen] == [3] * 6


def test_own_data_loaders_of_any_learner(few):
    "A plain fastai Learner with a loss of its own"
    dls = seg_dls(Stream(few, n=8), crop=(64, 96), bs=4)

    def loss(pred, mask, *_):
        return torch.nn.functional.cross_entropy(pred, mask.as_subclass(torch.Tensor).long(), ignore_index=255)

    learn, spy = Learner(dls, torch.nn.Conv2d(3, 10, 1), loss), Spy()
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=[CropSchedule(TWO, rules=rules(max_growth=4)), spy])
    assert [s[1:3] for s in spy.seen] == [(8, (32, 32))] + [(4, (64, 96))] * 2


# A stop


def train(home, out, schedule='coarse2fine+'):
    learn = learner(SegTable.load(home / 'table.csv'), n=8)
    with learn.no_bar():
        learn.fit_one_cycle(4, cbs=[CropSchedule(schedule, rules=rules(warmup=1)), Checkpoint(out)])
    np.save(out / 'weights.npy', weights(learn).numpy())


def test_stopped_in_mid_cycle(few, tmp_path):
    few.save(tmp_path / 'table.csv')
    train(tmp_path, tmp_path / 'once')
    for k in (1, 2):
        children.stopped_at(f'train.checkpoint:{k}', train, tmp_path, tmp_path / 'out')
    kept = children.histories(tmp_path / 'out')
    children.run(train, tmp_path, tmp_path / 'out')
    children.assert_kept(kept, tmp_path / 'out')
    assert kept
    assert np.array_equal(*(np.load(tmp_path / d / 'weights.npy') for d in ('once', 'out')))
    h = pd.read_csv(tmp_path / 'out/history.csv')
    assert h[['height', 'width', 'bs']].values.tolist() == [[32, 64, 8], [64, 64, 6], [64, 96, 4], [64, 96, 4]]
    with pytest.raises(ValueError, match='crops.phases is .* there and .* here'):
        train(tmp_path, tmp_path / 'out', 'fine2coarse')


# What cannot be


@pytest.mark.parametrize(
    'make,says',
    [
        (lambda: CropSchedule('nonsense'), 'choose one of constant'),
        (lambda: CropSchedule([(0.5, 64), (0.6, 32)]), 'add up to 1.1, not 1'),
        (lambda: CropSchedule([(2, 64), (-1, 32)]), 'negative'),
        (lambda: CropSchedule([]), 'list of'),
        (lambda: CropSchedule([0.5, 0.5]), 'list of'),
        (lambda: CropSchedule([(1, 0)]), 'must be 1 or more'),
        (lambda: CropSchedule([(1, 0.0)]), 'above 0'),
        (lambda: CropSchedule([(1, (64, -1))]), 'must be 1 or more'),
        (lambda: CropSchedule([(1, 64)], cycle=0), 'cycle=0'),
        (lambda: CropSchedule([(1, 64)], final=2), 'final=2'),
        (lambda: CropRules(batch='huge'), "batch='huge'"),
        (lambda: CropRules(rate='cubic'), "rate='cubic'"),
        (lambda: CropRules(max_growth=0.5), 'max_growth=0.5'),
        (lambda: CropRules(warmup=-1), 'warmup=-1'),
        (lambda: CropSchedule().plan(4, n=10, bs=0, crop=64), 'bs=0'),
        (lambda: CropSchedule().plan(0, n=10, bs=4, crop=64), 'epochs=0'),
        (lambda: CropSchedule().plan(4, n=10, bs=4), 'or a learner'),
    ],
)
def test_impossible_schedules(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_crop_larger_than_every_image(few):
    with pytest.raises(ValueError, match='larger than every image .*64x96'):
        learner(few).fit(1, cbs=CropSchedule([(1, (128, 96))]))


def test_data_loaders_of_someone_else():
    data = [(torch.zeros(3), torch.zeros(1))]
    with pytest.raises(ValueError, match='seg_dls'):
        Learner(DataLoaders(data, data), torch.nn.Linear(3, 1), torch.nn.MSELoss()).fit(1, cbs=CropSchedule())


# What it costs


@pytest.mark.parametrize('crop,bs', [((64, 96), 4), ((32, 32), 24)])
def test_memory_is_what_a_step_takes(few, crop, bs):
    "Against the allocations that PyTorch's profiler sees; weights and moments are there before the step"
    learn = learner(few)
    cost, model = CropCost(learn), learn.model.train()
    opt = learn.opt_func(learn.splitter(model), lr=0.0)

    def step():
        learn.loss_func(model(torch.rand(bs, 3, *crop)), torch.randint(0, 9, (bs, *crop))).backward()
        opt.step()
        opt.zero_grad()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == '[memory]']
    peak = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()
    standing = 12 * sum(p.numel() for p in model.parameters())
    assert cost.memory(crop, bs) - standing == pytest.approx(peak, rel=0.35)


def test_memory_grows_with_the_pixels_of_all_streams(few):
    one, two = CropCost(learner(few)), CropCost(learner(few, bs=(4, 2), more=[Stream(few.revealed)]))
    base = one.memory((64, 64), 4), two.memory((64, 64), 4)
    fixed = 16 * sum(p.numel() for p in one.learn.model.parameters())
    assert (one.memory((64, 128), 4) - fixed) == pytest.approx(2 * (base[0] - fixed), rel=0.02)
    assert (base[1] - fixed) == pytest.approx(1.5 * (base[0] - fixed), rel=1e-6)
    assert two.samples(8) == 12


def test_costs_are_measured_on_the_device_of_the_data(few):
    "Before the first fit the network is not there yet; the device `meta` stands for a GPU"
    assert CropCost(learner(few, device='meta')).device == torch.device('meta')


@pytest.mark.parametrize('workers', [0, 1])
def test_costs_touch_nothing(few, workers):
    learn = learner(few, num_workers=workers)
    before, epoch = weights(learn), learn.dls.train.epoch
    df = CropSchedule(TWO).plan(2, cost=CropCost(learn, repeats=1))
    assert (df.seconds > 0).all() and (df.memory > 0).all() and (df.speedup > 0).all()
    assert torch.equal(weights(learn), before) and learn.dls.train.epoch == epoch
