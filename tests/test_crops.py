"The crop schedule does what its plan says in every kind of fit, leaves nothing behind, and survives a kill in the middle of a cycle."
import itertools, warnings

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.schedule import ParamScheduler, SchedPoly
from fastai.vision.all import Callback, CancelFitException, CancelTrainException, DataLoaders, Learner
from hypothesis import given, settings, strategies as st

import children
from children import assert_same
from selftrain_nb.all import *
from selftrain_nb.crops import _pick


@pytest.fixture(scope='module')
def few(tmp_path_factory): return scenes(n=12, n_val=3, n_test=0, size=(64, 96), path=tmp_path_factory.mktemp('scenes')).keep_labels(6)

def learner(few, n=16, bs=4, **kwargs):
    learn = seg_learner(mixed_dls(few, crop=(64, 96), bs=bs, n=n, **kwargs), 'test_byobnet')
    learn.logger = lambda *_: None
    return learn

TWO = [(.5, (32, 32)), (.5, 1.)]


# The plan

phases = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([.25, .5, .75, 1., 32, (64, 32)])), min_size=1, max_size=5).map(lambda p: [(a / sum(a for a, _ in p), s) for a, s in p])

@settings(max_examples=200, deadline=None)
@given(phases, st.integers(1, 60), st.none() | st.integers(1, 9), st.sampled_from([0, .1, .5, 1.]))
def test_which_size_comes_when(phases, epochs, cycle, final):
    got = _pick(epochs, phases, cycle, final)
    last = max(1, round(epochs * final)) if final else 0
    body = epochs - last
    length = min(cycle or body, max(1, body))
    assert len(got) == epochs and got[body:] == [1.] * last
    for e in range(body):
        at, so_far = (e % length + .5) / length, 0
        for share, size in phases:
            so_far += share
            if at <= so_far + 1e-9: break
        assert got[e] == size or abs(at - so_far) < 1e-9

@settings(max_examples=200, deadline=None)
@given(phases, st.integers(1, 20), st.integers(1, 300), st.integers(1, 16), st.integers(1, 300), st.integers(1, 300), st.sampled_from(['pixels', 'constant']), st.sampled_from([1, 2, 4.5]))
def test_settings_keep_their_promises(phases, epochs, n, bs, h, w, batch, growth):
    for s in CropSchedule(phases, batch=batch, max_growth=growth, rate='linear').settings(epochs, n, bs, (h, w)):
        assert s.crop == (h, w) or all(c >= 32 and c % 32 == 0 for c in s.crop)
        assert 1 <= s.bs <= n and s.rate == s.bs / bs
        if batch == 'constant': assert s.bs == min(bs, n)
        else: assert s.bs <= max(1, round(growth * bs)) and (s.bs - .5) * s.crop[0] * s.crop[1] <= max(bs * h * w, .5 * s.crop[0] * s.crop[1])

@pytest.mark.parametrize('name', PRESETS)
def test_presets_end_as_they_say(name):
    for epochs in (2, 5, 30):
        crops = [s.crop for s in CropSchedule(name).settings(epochs, 100, 8, (512, 512))]
        assert (crops[-1] == (512, 512)) == (name != 'fine2coarse')
        assert len(set(crops)) == (1 if name == 'constant' else min(3, epochs))

def test_plan_adds_up():
    df = CropSchedule('coarse2fine+').plan(10, n=100, bs=8, crop=(256, 512))
    assert (df.steps == np.ceil(100 / df.bs)).all()
    assert np.isclose(df.speedup.iloc[-1], 10 * 100 * 256 * 512 / 1e6 / df.megapixels.sum())


# The fit

class Spy(Callback):
    "What each training step sees: epoch, size of the batch, size of the crops, learning rate, share of the training done"
    order = 56
    def before_fit(self): self.seen = []
    def before_step(self): self.seen.append((self.epoch, *self.xb[0].shape[::2][:1], tuple(self.xb[0].shape[-2:]), self.opt.hypers[-1]['lr'], float(self.pct_train)))

FITS = dict(
    one_cycle=lambda learn, n, cbs: learn.fit_one_cycle(n, 1e-3, cbs=cbs),
    flat_cos=lambda learn, n, cbs: learn.fit_flat_cos(n, 1e-3, cbs=cbs),
    poly=lambda learn, n, cbs: learn.fit(n, 1e-3, cbs=[ParamScheduler({'lr': SchedPoly(1e-3, 0, .9)}), *cbs]),
    plain=lambda learn, n, cbs: learn.fit(n, 1e-3, cbs=cbs))

class Base(Callback):
    "The rate that the fit itself asks for"
    order = 61
    def before_fit(self): self.asked = []
    def before_batch(self): 
        if self.training: self.asked.append(self.opt.hypers[-1]['lr'])

@pytest.mark.parametrize('kind', FITS)
def test_sizes_batches_and_rates_are_the_plan(few, kind):
    learn, cb, spy, base = learner(few), CropSchedule(TWO, cycle=2, rate='linear', warmup=1, max_growth=4), Spy(), Base()
    with learn.no_bar(): FITS[kind](learn, 4, [cb, spy, base])
    df, at = cb.plan(4, cost=None, n=16, bs=4, crop=(64, 96)), 0
    assert df.bs.tolist() == [16, 4, 16, 4]
    for e, row in df.iterrows():
        steps = [s for s in spy.seen if s[0] == e]
        assert len(steps) == row.steps
        for i, (_, bs, crop, lr, _) in enumerate(steps):
            assert (bs, crop) == (row.bs, (row.height, row.width))
            warm = .5 if e and i == 0 else 1
            assert np.isclose(lr, base.asked[at] * row.rate * warm); at += 1
    assert at == len(base.asked) and (kind != 'plain' or set(base.asked) == {1e-3})
    assert np.allclose(learn.recorder.lrs, [s[3] for s in spy.seen])
    logged = pd.DataFrame([v[-4:] for v in learn.recorder.values], columns=['height', 'width', 'bs', 'lr'])
    assert (logged[['height', 'width', 'bs']] == df[['height', 'width', 'bs']]).all(axis=None)

def state(learn): 
    dl = learn.dls.train
    return id(dl), dl.bs, dl.drop_last, dl.n, len(dl), dl.crop, id(learn.dls.valid), learn.dls.valid.bs, [*learn.metrics.attrgot('name')], {type(c) for c in learn.cbs}

class Raise(Callback):
    order = 70
    def __init__(self, what): self.what = what
    def before_batch(self): 
        if self.training and self.epoch == 0 and self.iter == 1: raise self.what

class RaiseInStep(Raise):
    def before_batch(self): pass
    def after_step(self): raise self.what

@pytest.mark.parametrize('error,where', [(e, w) for e in (KeyboardInterrupt(), OSError('full'), CancelFitException(), CancelTrainException()) for w in (Raise, RaiseInStep)])
def test_nothing_is_left_after_a_stop(few, error, where):
    learn = learner(few, n=32); before = state(learn)
    cbs = [CropSchedule([(1, (32, 64))]), where(error)]
    try: 
        with learn.no_bar(): learn.fit_one_cycle(2, cbs=cbs)
    except (KeyboardInterrupt, OSError): pass
    assert state(learn) == before
    assert tuple(learn.dls.one_batch()[0].shape) == (4, 3, 64, 96)
    spy = Spy()
    with learn.no_bar(): learn.fit(1, 1e-3, cbs=spy)
    assert {s[1:4] for s in spy.seen} == {(4, (64, 96), 1e-3)}

def test_two_fits_in_a_row(few):
    learn, cb, spy = learner(few), CropSchedule(TWO, max_growth=4), Spy()
    for epochs in (2, 4):
        with learn.no_bar(): learn.fit_one_cycle(epochs, cbs=[cb, spy])
        assert [[*g] for _, g in itertools.groupby(s[2] for s in spy.seen)] == [[(32, 32)] * (epochs // 2), [(64, 96)] * 4 * (epochs // 2)]
    assert len(learn.recorder.metric_names) == len(set(learn.recorder.metric_names))

def test_validation_is_at_full_size(few):
    sizes = set()
    class Valid(Callback):
        def before_batch(self): 
            if not self.training: sizes.add((self.dl.bs, tuple(self.xb[0].shape[-2:])))
    learn = learner(few)
    with learn.no_bar(): learn.fit(2, cbs=[CropSchedule([(1, 32)]), Valid()])
    assert sizes == {(4, (64, 96))}

def test_without_epoch_seed_each_epoch_is_a_new_one(few):
    learn, first = learner(few), []
    learn.remove_cb(EpochSeed)
    class Look(Callback):
        def before_batch(self): 
            if self.training and self.iter == 0: first.append(self.xb[0].clone())
    with learn.no_bar(): learn.fit(2, cbs=[CropSchedule([(1, 32)]), Look()])
    assert not torch.equal(first[0], first[1]) and learn.dls.train.epoch == 2

@pytest.mark.parametrize('sampling', [{}, dict(sampler='centroid', p=1.)])
def test_any_number_of_workers(few, sampling):
    def weights(workers):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            learn = learner(few, num_workers=workers, **sampling)
        with learn.no_bar(): learn.fit_one_cycle(2, cbs=CropSchedule(TWO))
        return weights_hash(learn.model)
    assert weights(0) == weights(2)

def test_small_crops_by_centroid_hold_their_class(few):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dl = mixed_dls(few, crop=(64, 96), bs=4, n=64, sampler='centroid', p=1.).train.resized((32, 32), 8)
    for s in dl.get_idxs(): assert (np.asarray(dl.do_item(s)[1]) == s[2][0]).any()

def test_mixed_precision(few):
    learn, spy = learner(few), Spy()
    with learn.no_bar(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that there is no GPU
        learn.fit_one_cycle(2, cbs=[CropSchedule(TWO, max_growth=4), spy, MixedPrecision(amp_mode=AMPMode.BF16)])
    assert [s[2] for s in spy.seen] == [(32, 32)] + [(64, 96)] * 4

def test_batches_of_one_are_left_out(few):
    learn, spy = learner(few, n=17, bs=2), Spy()
    with learn.no_bar(): learn.fit(1, cbs=[CropSchedule([(1, 64)], max_growth=2), spy])  # batches of 3, and of 2 in the end
    assert [s[1] for s in spy.seen] == [3] * 5 + [2]
    learn = learner(few, n=17, bs=2)
    with learn.no_bar(): learn.fit(1, cbs=[CropSchedule([(1, 32)], max_growth=4), spy])  # of 8, and one left
    assert [s[1] for s in spy.seen] == [8, 8]


# A kill, a run

TINY = dict(encoder='test_byobnet', epochs=(4, 4), n=8, bs=2, crop=(64, 64), schedule='coarse2fine+', sampler='centroid', progress=False)

def train(home, out): self_train(SegTable.load(home/'table.csv'), out, **TINY)

def test_killed_in_mid_cycle(tmp_path):
    from test_resume import stopping
    scenes(n=8, n_val=2, n_test=0, size=(64, 64), path=tmp_path/'few').keep_labels(4).save(tmp_path/'table.csv')
    children.run(train, tmp_path, tmp_path/'once')
    kills = [children.killed_by_itself(stopping, n, train, tmp_path, tmp_path/'out') for n in (8, 5, 6, 9)]
    assert sum(kills) >= 3
    children.run(train, tmp_path, tmp_path/'out')
    assert_same(tmp_path/'out', tmp_path/'once')
    run = Run(tmp_path/'once')
    h = run.history('student')
    assert h[['height', 'bs']].values.tolist() == [[32, 4], [64, 2], [64, 2], [64, 2]]
    assert run.metrics('student')['steps'] == 2 + 3 * 4
    assert run.results.setting.str.endswith('crops coarse2fine+').all()
    with pytest.raises(ValueError, match='schedule'): self_train(run.table, run.path, **{**TINY, 'schedule': 'constant'})


# What cannot be

@pytest.mark.parametrize('make,says', [
    (lambda: CropSchedule('nonsense'), 'choose of constant'),
    (lambda: CropSchedule([(.5, 64), (.6, 32)]), 'add up to 1.1, not 1'),
    (lambda: CropSchedule([(2, 64), (-1, 32)]), 'add up|negative'),
    (lambda: CropSchedule([]), 'list of'),
    (lambda: CropSchedule([.5, .5]), 'list of'),
    (lambda: CropSchedule([(1, 0)]), 'must be 1 or more'),
    (lambda: CropSchedule([(1, 0.)]), 'above 0'),
    (lambda: CropSchedule([(1, (64, -1))]), 'must be 1 or more'),
    (lambda: CropSchedule([(1, 64)], cycle=0), 'cycle=0'),
    (lambda: CropSchedule([(1, 64)], final=2), 'final=2'),
    (lambda: CropSchedule(batch='huge'), "batch='huge'"),
    (lambda: CropSchedule(rate='cubic'), "rate='cubic'"),
    (lambda: CropSchedule(max_growth=.5), 'max_growth=0.5'),
    (lambda: CropSchedule(warmup=-1), 'warmup=-1'),
    (lambda: CropSchedule().plan(4, n=10, bs=0, crop=64), 'bs=0'),
    (lambda: CropSchedule().plan(0, n=10, bs=4, crop=64), 'epochs=0'),
    (lambda: CropSchedule().plan(4, n=10, bs=4), 'or a learner')])
def test_impossible_schedules(make, says):
    with pytest.raises(ValueError, match=says): make()

def test_a_crop_larger_than_every_image(few):
    with pytest.raises(ValueError, match='larger than every image .*64x96'): learner(few).fit(1, cbs=CropSchedule([(1, (128, 96))]))

def test_dataloaders_of_someone_else():
    data = [(torch.zeros(3), torch.zeros(1))]
    with pytest.raises(ValueError, match='mixed_dls'): Learner(DataLoaders(data, data), torch.nn.Linear(3, 1), torch.nn.MSELoss()).fit(1, cbs=CropSchedule())

@pytest.mark.parametrize('crop,bs', [((64, 96), 4), ((32, 32), 24), ((64, 96), 16)])
def test_memory_is_what_a_step_takes(few, crop, bs):
    "Against the allocations that PyTorch's profiler sees; weights and moments are there before the step"
    learn = learner(few)
    cost, model = CropCost(learn), learn.model.train()
    opt = learn.opt_func(learn.splitter(model), lr=0.)
    def step():
        learn.loss_func(model(torch.randn(bs, 3, *crop)), torch.randint(0, 9, (bs, *crop))).backward()
        opt.step(); opt.zero_grad()
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof: step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == '[memory]']
    peak = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()
    standing = 12 * sum(p.numel() for p in model.parameters())
    assert cost.memory(crop, bs) - standing == pytest.approx(peak, rel=.25)

def test_memory_grows_with_the_pixels(few):
    cost = CropCost(learner(few))
    weights = cost.memory((64, 64), 0)
    assert (cost.memory((64, 128), 4) - weights) == pytest.approx(2 * (cost.memory((64, 64), 4) - weights), rel=1e-6)
