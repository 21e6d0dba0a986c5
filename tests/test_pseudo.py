"Labelling that is killed fifty times, alone and in company; statistics, thresholds and calibration against brute force."
import json, shutil, time

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import children
from children import assert_same, contents
from selftrain_nb.all import *


def label(home, dest, shard=(0, 1), **kwargs):
    pseudo_label(load_predictor(home/'w.safetensors'), home/'scenes/images', dest, bs=3, shard=shard, progress=False, **kwargs)

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A teacher, 50 images, and their labels by one process that nobody stopped"
    home = tmp_path_factory.mktemp('home')
    space = scenes(n=50, n_val=0, n_test=0, size=(32, 64), path=home/'scenes').space
    scenes(n=2, n_val=0, n_test=0, size=(32, 64), path=home/'two')
    save_weights(seg_model(len(space), 'test_byobnet'), home/'w.safetensors', encoder='test_byobnet', arch='fpn', space=space.to_dict(), size=None)
    children.run(label, home, home/'once')
    return home

@pytest.fixture(scope='module')
def store(home): return PseudoStore.open(home/'once')


# Kills

def killed_together(jobs, rng, seconds):
    "Start jobs at once, kill each at a moment of its own; how many were hit"
    begin, moments = time.time(), np.sort(rng.uniform(0, seconds, len(jobs)))
    started = [children._start(label, args) for args in jobs]
    for (p, _), t in zip(started, moments):
        p.join(max(0, begin + t - time.time())); p.kill(); p.join()
    return sum(children._last(conn) is EOFError for _, conn in started)

@pytest.mark.parametrize('world', [1, 3])
def test_fifty_kills(home, tmp_path, world):
    rng, hits, dest = np.random.default_rng(world), 0, tmp_path/'labels'
    jobs = [(home, dest, (r, world)) for r in range(world)]
    while hits < 50:
        hits += killed_together(jobs, rng, .3 + .3 * world)
        if (dest/'centroids.npz').exists():  # everything is done: check it, and begin again
            children.run(label, *jobs[0])
            assert_same(dest, home/'once'); shutil.rmtree(dest)
    for j in jobs: children.run(label, *j)
    assert_same(dest, home/'once')
    names = [json.loads(l)['name'] for l in (dest/'manifest.jsonl').read_text('utf-8').splitlines()]
    assert len(names) == len(set(names)) == 50 and not list(dest.glob('manifest.*.jsonl'))

def test_three_at_once(home, tmp_path):
    started = [children._start(label, (home, tmp_path/'labels', (r, 3))) for r in range(3)]
    assert [children._last(conn) for _, conn in started] == [None] * 3
    assert_same(tmp_path/'labels', home/'once')


# Statistics and selection

def brute_hist(store):
    out = np.zeros((len(store.space), 256), int)
    for r in store.table:
        label, conf = (np.asarray(Image.open(p)) for p in (r.label, r.conf))
        np.add.at(out, (label.ravel(), conf.ravel()), 1)
    return out

def test_statistics_are_those_of_the_files(store):
    assert (store.stats['class_hist'] == brute_hist(store)).all()
    assert len(store) == 50 and [store.name(i) for i in range(3)] == [r.image.split('/')[-1] for r in list(store.table)[:3]]
    for i in (0, 7, 49):
        r = store.table.df.iloc[i]
        label, conf = (np.asarray(Image.open(p)) for p in (r.label, r.conf))
        assert (store.stats['counts'][i] == np.bincount(label.ravel(), minlength=len(store.space))).all()
        assert store.stats['conf'][i] == pytest.approx(conf.mean() / 255, abs=1e-4)
        assert (store.stats['hist'][i] == np.bincount(conf.ravel() // 16, minlength=16)).all()

@settings(max_examples=200, deadline=None)
@given(arrays(np.int64, (3, 256), elements=st.integers(0, 3)), st.floats(0, 1))
def test_the_surest_share(hist, share):
    t = surest(hist, share)
    for h, level in zip(hist, np.ceil(t * 255).astype(int)):
        kept = [h[v:].sum() for v in range(256)]
        assert kept[level] >= share * h.sum()
        assert all(k < share * h.sum() for k in kept[level + 1:]) or not h.sum() or share == 0

@pytest.mark.parametrize('how', [dict(), dict(min_conf=.2), dict(min_conf=np.linspace(.1, .3, 10)), dict(share=.3), dict(share=.3, min_conf=.12)])
def test_selection_is_what_the_files_say(store, how):
    t, hist = store.select(**how), store.stats['class_hist']
    level = np.maximum(np.ceil(np.broadcast_to(how.get('min_conf', 0), 10) * 255), np.ceil(surest(hist, how['share']) * 255) if 'share' in how else 0)
    for i in (0, 20):
        r = store.table.df.iloc[i]
        label, conf = (np.asarray(Image.open(p)) for p in (r.label, r.conf))
        assert (t.mask(i) == np.where(conf >= level[label], label, VOID)).all()
    assert (t.counts() == [h[int(l):].sum() for h, l in zip(hist, level)]).all()

def test_the_best_images_and_the_bad_ones(store):
    order = store.ranked('conf')
    assert (np.diff(store.stats['conf'][order]) <= 0).all()
    assert {r.image for r in store.select(best=.1, by='conf')} == {store.table.df.image[i] for i in order[:5]}
    store.mark([0, store.name(3)])
    assert len(store.select()) == 48 and len(store.select(bad=True)) == 50 and len(store.select(drop=[1])) == 47
    store.mark([0, 3], bad=False)
    assert len(store.select()) == 50

def test_more_images_bring_the_statistics_up_to_date(home, tmp_path):
    images = tmp_path/'images'; images.mkdir()
    files = sorted((home/'scenes/images').rglob('*.png')) or sorted((home/'scenes/images').rglob('*.jpg'))
    for f in files[:4]: shutil.copy(f, images/f.name)
    teacher = load_predictor(home/'w.safetensors')
    pseudo_label(teacher, images, tmp_path/'p', progress=False)
    for f in files[4:6]: shutil.copy(f, images/f.name)
    pseudo_label(teacher, images, tmp_path/'p', progress=False)
    store = PseudoStore.open(tmp_path/'p')
    assert len(store) == 6 and (store.stats['class_hist'] == brute_hist(store)).all()

def test_unfinished_or_other_folders(home, tmp_path):
    with pytest.raises(FileNotFoundError, match='store.json is missing'): PseudoStore.open(tmp_path)
    label(home, tmp_path/'p', (0, 2))
    with pytest.raises(ValueError, match='not finished; call pseudo_label again'): PseudoStore.open(tmp_path/'p')
    with pytest.raises(ValueError, match='temperature is 1.0 there and 2.0 here'): label(home, tmp_path/'p', temperature=2.)

def test_several_teachers_and_views(home, tmp_path):
    a, b = load_predictor(home/'w.safetensors'), load_predictor(home/'w.safetensors')
    images = home/'two/images'
    alone, twins = (PseudoStore.open(tmp_path/d) for d in 'ab' if pseudo_label([a, b] if d == 'b' else a, images, tmp_path/d, progress=False) is not None)
    assert (alone.stats['class_hist'] == twins.stats['class_hist']).all() and alone.how['teacher'] != twins.how['teacher']
    pseudo_label(a, images, tmp_path/'c', scales=(.5, 1.), window=(32, 32), temperature=.5, progress=False)
    assert PseudoStore.open(tmp_path/'c').stats['conf'].mean() > alone.stats['conf'].mean()  # a low temperature is sure

def test_an_empty_or_full_export(store, tmp_path):
    store.export(tmp_path/'out', progress=False)
    masks = sorted((tmp_path/'out').rglob('*.png'))
    assert len(masks) == 50 and (np.asarray(Image.open(masks[0])) == store.table.mask(0)).all()


# Calibration

@pytest.mark.parametrize('t', [.5, 1., 2.5])
def test_the_temperature_is_found(t):
    torch.manual_seed(0)
    logits = torch.randn(20_000, 5) * 2
    truth = torch.multinomial(logits.softmax(1), 1)[:, 0]
    cal = Calibration((logits * t).log_softmax(1), truth, LabelSpace([*'abcde']))
    assert cal.temperature == pytest.approx(t, rel=.05)
    conf, _, ok = cal.confident()
    assert ece(conf, ok) < .02

@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_ece_by_hand(pixels, bins):
    conf, ok = zip(*pixels)
    by_hand = 0
    for k in range(bins):
        mine = [(c, o) for c, o in pixels if min(int(c * bins), bins - 1) == k]
        if mine: by_hand += abs(sum(c for c, _ in mine) - sum(o for _, o in mine)) / len(pixels)
    assert ece(conf, ok, bins) == pytest.approx(by_hand, abs=1e-9)

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([.3, .6, .9]))
def test_thresholds_keep_their_promise(seed, accuracy):
    rng = np.random.default_rng(seed)
    logp = torch.tensor(rng.normal(size=(400, 3)) * 2).float().log_softmax(1)
    cal = Calibration(logp, torch.tensor(rng.integers(0, 3, 400)), LabelSpace([*'abc']), 1.)
    conf, label, ok = cal.confident()
    for c, t in enumerate(cal.thresholds(accuracy, least=10)):
        of, hit = conf[label == c], ok[label == c]
        good = [v for v in of if (of >= v).sum() >= 10 and hit[of >= v].mean() >= accuracy]
        assert t == (min(good) if good else 1.01)


# Labels that may be doubted

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.integers(1, 4), st.booleans(), st.booleans())
def test_the_loss_by_hand(seed, channels, n, weighted, partial):
    rng = np.random.default_rng(seed)
    pred, targ = rng.normal(size=(2, n, 3, 4)), rng.choice([*range(n), VOID], (2, 3, 4))
    known = rng.random((2, n)) < (.6 if partial else 2)
    for b in range(2): targ[b][~np.isin(targ[b], np.flatnonzero(known[b]))] = VOID            # a label cannot hold what it has no name for
    belief = rng.integers(0, 256, (2, channels, 3, 4))
    if channels == 3: belief[:, 1], belief[:, 2] = (np.where(targ == VOID, 0, targ) + 1) % n, (255 - belief[:, 0]) // (1 if n == 2 else 2)
    weight, total, norm = rng.uniform(.1, 3, n) if weighted else np.ones(n), 0, 0
    for b, y, x in np.ndindex(targ.shape):
        if targ[b, y, x] == VOID: continue
        logp = np.where(known[b], pred[b, :, y, x] - np.log(np.exp(pred[b, known[b], y, x]).sum()), 0)
        p, (first, *second) = np.zeros(n), belief[b, :, y, x]
        if channels == 3 and n > 1: p[:] = max(0, 1 - (first + second[1]) / 255) / max(1, n - 2); p[second[0]] = second[1] / 255
        p[targ[b, y, x]] = first / 255
        p *= known[b]
        total, norm = total - (weight * p * logp).sum(), norm + (weight * p).sum()
    loss = SegLoss(torch.tensor(weight) if weighted else None)(torch.tensor(pred), torch.tensor(targ), torch.tensor(belief, dtype=torch.uint8), *[torch.tensor(known)] * partial)
    assert loss.item() == pytest.approx(total / max(norm, 1e-6), rel=1e-4, abs=1e-6)

def test_soft_labels_read_as_hard_ones(home, tmp_path):
    label(home, tmp_path/'soft', soft=True)
    soft, hard = PseudoStore.open(tmp_path/'soft'), PseudoStore.open(home/'once')
    for k in hard.stats: assert np.array_equal(soft.stats[k], hard.stats[k]), k
    for i in (0, 20, 49):
        assert (soft.select(.2).mask(i) == hard.select(.2).mask(i)).all()
        conf, second, conf2 = np.moveaxis(read_conf(soft.table.df.conf[i], soft=True), -1, 0)
        assert (conf == read_conf(hard.table.df.conf[i])).all() and (conf2 <= conf).all() and (second != soft.table.mask(i)).all()
    with pytest.raises(ValueError, match='soft is False there and True here'): label(home, home/'once', soft=True)

def test_hard_labels_cannot_be_read_as_soft(home, store):
    table = scenes(n=4, n_val=1, n_test=0, size=(32, 64), path=home/'four') + store.table
    with pytest.raises(ValueError, match='no second class in this file; label anew'): [*mixed_dls(table, crop=(16, 16), labels='soft', strict=True).train]

def test_a_truth_with_ids_of_its_own(home, tmp_path):
    "The hidden labels of a data set are read as that data set says, beside pseudo labels in class ids"
    ds = scenes(n=6, n_val=0, n_test=0, size=(32, 64), path=home/'six')
    (tmp_path/'ids').mkdir()
    for i in range(6): Image.fromarray(np.where(ds.mask(i) == VOID, 0, ds.mask(i) + 20).astype(np.uint8)).save(tmp_path/f'ids/{i}.png')
    own = Remap({0: VOID, **{k + 20: k for k in range(10)}})
    few = SegTable.make(ds.df.image, [tmp_path/f'ids/{i}.png' for i in range(6)], ds.space, own, name='city', group=[*'abcdef']).keep_labels(2)
    made = pseudo_label(load_predictor(home/'w.safetensors'), few.unlabelled, tmp_path/'p', progress=False)
    again = SegTable.load(tmp_path/'p/table.csv')
    for t in (made, again, (few + made).train.pseudo, PseudoStore.open(tmp_path/'p').select(.5)):
        right = [k for k in range(6) if ds.df.image[k] == t.df.image.iloc[0]]
        assert (t.mask(t.df.index[0], 'truth') == ds.mask(right[0])).all()
    assert 0 <= pseudo_quality(made).accuracy[0] <= 1


# Runs that read one teacher in several ways

TINY = dict(encoder='test_byobnet', epochs=(2, 2), n=8, bs=2, crop=(32, 32), progress=False)
READINGS = [dict(labels='soft', ema=.9, min_conf=0., unweight=True), dict(labels='weighted', select=dict(accuracy=.3), bf16=True), dict(select=dict(share=.5, best=.75), min_conf=.1, tta=None), dict(rounds=3, ema=.5)]

def train(home, out, **how): self_train(SegTable.load(home/'table.csv'), out, **TINY, **how)

def stopped(n, how, home, out):
    from test_resume import stopping
    stopping(n, lambda home, out: train(home, out, **how), home, out)

@pytest.mark.parametrize('k', range(len(READINGS)))
def test_every_reading_can_be_stopped(tmp_path, k):
    scenes(n=8, n_val=2, n_test=0, size=(32, 64), path=tmp_path/'few').keep_labels(4).save(tmp_path/'table.csv')
    children.run(_train, tmp_path, tmp_path/'once', READINGS[k])
    kills = [children.killed_by_itself(stopped, n, READINGS[k], tmp_path, tmp_path/'out') for n in (8, 5, 11, 7)]
    assert sum(kills) >= 3
    children.run(_train, tmp_path, tmp_path/'out', READINGS[k])
    assert_same(tmp_path/'out', tmp_path/'once')

def _train(home, out, how): train(home, out, **how)

def take_over(home, out): self_train(SegTable.load(home/'table.csv'), out, teacher=home/'first', min_conf=np.linspace(.1, .3, 10), **TINY)

def taking_over(n, home, out):
    from test_resume import stopping
    stopping(n, take_over, home, out)

def test_taking_over_can_be_stopped(tmp_path):
    scenes(n=8, n_val=2, n_test=0, size=(32, 64), path=tmp_path/'few').keep_labels(4).save(tmp_path/'table.csv')
    self_train(SegTable.load(tmp_path/'table.csv').train, tmp_path/'first', rows=('teacher',), **TINY)     # of another table: it is measured again
    children.run(take_over, tmp_path, tmp_path/'once')
    assert all(children.killed_by_itself(taking_over, n, tmp_path, tmp_path/'out') for n in (3, 4, 5, 3))
    children.run(take_over, tmp_path, tmp_path/'out')
    assert_same(tmp_path/'out', tmp_path/'once')

def test_a_teacher_is_taken_over(tmp_path):
    few = scenes(n=8, n_val=2, n_test=0, size=(32, 64), path=tmp_path/'few').keep_labels(4)
    first = self_train(few, tmp_path/'first', rows=('teacher',), **TINY)
    with pytest.raises(ValueError, match='no finished teacher'): self_train(few, tmp_path/'x', teacher=tmp_path/'few', **TINY)
    second = self_train(few, tmp_path/'second', teacher=first, **{**TINY, 'encoder': 'resnet10t'})  # its network counts
    assert second.config['encoder'] == 'test_byobnet' and second.metrics('teacher') == first.metrics('teacher')
    fewer = self_train(few.train + few.val[[0]], tmp_path/'fewer', teacher=first.path, **TINY)
    assert fewer.metrics('teacher')['splits'] != first.metrics('teacher')['splits']               # measured on its own images
    other = SegTable(few.df, LabelSpace([f'{n}s' for n in few.space.names]), few.remaps)
    with pytest.raises(ValueError, match='the table is in'): self_train(other, tmp_path/'other', teacher=first, **TINY)
    with pytest.raises(ValueError, match='teacher is'): self_train(few, tmp_path/'second', **TINY)
