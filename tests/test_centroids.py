"Centroids against scipy, crops that always hold their class, and an index that survives what happens to files."
import json, os, warnings
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

import children
from selftrain_nb.all import *
from selftrain_nb import centroids as module


# Against scipy

def reference(mask, tile, parts=False):
    "(class, y, x, n, cy, cx) by brute force: scipy's centre of mass in the coordinates of the whole map, and the nearest of all class pixels"
    tiles = np.arange(mask.shape[0])[:, None] // tile * (mask.shape[1] + 1) + np.arange(mask.shape[1]) // tile
    out = []
    for c in np.setdiff1d(np.unique(mask), [VOID]):
        for t in np.unique(tiles[mask == c]):
            of = (mask == c) & (tiles == t)
            pieces, k = ndimage.label(of) if parts else (of.astype(int), 1)
            for i in range(1, k + 1):
                cy, cx = ndimage.center_of_mass(of, pieces, i)
                ys, xs = np.nonzero(pieces == i)
                near = np.argmin((ys - cy)**2 + (xs - cx)**2)
                out.append((c, ys[near], xs[near], len(ys), cy, cx))
    return sorted(out)

def same(mask, tile, parts=False): assert sorted(class_centroids(mask, tile, parts=parts).tolist()) == reference(mask, tile, parts)

masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda hw: arrays(np.uint8, hw, elements=st.sampled_from([0, 1, 2, 7, VOID])))

@settings(max_examples=150, deadline=None)
@given(masks, st.integers(1, 30), st.booleans())
def test_random_maps(mask, tile, parts): same(mask, tile, parts)

def street(seed, shape=(40, 61)):
    "A map of areas, with void and single pixels"
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 5, (8, 8)), np.ones((9, 9))).astype(np.uint8)[:shape[0], :shape[1]]
    mask[rng.random(mask.shape) < .02] = rng.integers(0, 9); mask[rng.random(mask.shape) < .05] = VOID
    return mask

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('parts', [False, True])
def test_areas_and_specks(seed, parts):
    for tile in (7, 20, 64): same(street(seed), tile, parts)

def test_the_default_tile_keeps_edges_and_small_images():
    for shape in [(1, 1), (1, 9), (9, 1), (5, 8)]:
        found = class_centroids(np.zeros(shape, np.uint8))
        assert found['n'].sum() == np.prod(shape)
    assert len(class_centroids(np.empty((0, 4), np.uint8))) == 0

@pytest.mark.skipif('SELFTRAIN_NB_DATA' not in os.environ, reason='needs real data')
@pytest.mark.parametrize('reader,folder', [(camvid, 'camvid'), (idd_lite, 'idd_lite')])
def test_all_of_a_data_set(reader, folder):
    table = reader(Path(os.environ['SELFTRAIN_NB_DATA'])/folder).labelled
    for i in range(len(table)): same(table.mask(i), default_tile(table.mask(i).shape))


# Crops

def ring(n=41):
    y, x = np.mgrid[:n, :n] - n // 2
    return ((np.hypot(y, x) < n / 2.2) & (np.hypot(y, x) > n / 2.6)).astype(np.uint8)

def single(y, x, shape=(50, 70)):
    mask = np.zeros(shape, np.uint8); mask[y, x] = 1
    return mask

ADVERSARIES = dict(ring=ring(), checkerboard=(np.indices((37, 53)).sum(0) % 2).astype(np.uint8), pixel_corner=single(0, 0), pixel_edge=single(49, 33), pixel=single(20, 31),
                   column=np.eye(1, 60, 17, dtype=np.uint8).repeat(40, 0), row=np.eye(1, 40, 3, dtype=np.uint8).repeat(60, 0).T, diagonal=np.eye(64, dtype=np.uint8),
                   one=np.zeros((1, 1), np.uint8), line=np.arange(9, dtype=np.uint8)[None], void_around=np.pad(np.zeros((1, 1), np.uint8), 30, constant_values=VOID), specks=street(1))

def crops_hold_their_class(mask, n, crop=(32, 48), seed=0, scale=(.5, 2.)):
    image, mask, rng = Image.new('RGB', mask.shape[::-1]), Image.fromarray(mask), np.random.default_rng(seed)
    found = class_centroids(np.asarray(mask))
    for k in range(n):
        c, y, x = (int(v) for v in found[rng.integers(len(found))][['cls', 'y', 'x']])
        m = np.asarray(augment(image, mask, rng, crop, scale, colour=0, blur=0, centroid=(c, y, x))[1])
        assert m.shape == crop and (m == c).any()

@pytest.mark.parametrize('name', ADVERSARIES)
def test_every_crop_holds_its_class(name): 
    crops_hold_their_class(ADVERSARIES[name], 1200)
    crops_hold_their_class(ADVERSARIES[name], 200, crop=(33, 17), scale=(.1, 3.))

def test_every_crop_holds_its_class_on_scenes(tmp_path):
    ds = scenes(n=20, n_val=0, n_test=0, path=tmp_path)
    for i in range(20): crops_hold_their_class(ds.mask(i), 200, (64, 96), i)

@pytest.mark.skipif('SELFTRAIN_NB_DATA' not in os.environ, reason='needs real data')
def test_every_crop_holds_its_class_on_camvid():
    table = camvid(Path(os.environ['SELFTRAIN_NB_DATA'])/'camvid').train
    for i in range(0, 360, 9): crops_hold_their_class(table.mask(i), 100, (160, 224), i)

@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_a_box_holds_its_point_and_pads_no_more_than_it_must(H, W, data):
    y, x = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    h, w, s = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)), data.draw(st.floats(.5, 2))
    l, t, r, b = crop_box((H, W), (h, w), s, np.random.default_rng(0), (y, x))
    assert l <= x < r and t <= y < b
    assert (0 <= l and r <= W) or (l <= 0 and r >= W)
    assert (0 <= t and b <= H) or (t <= 0 and b >= H)


# Plans

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    ds = scenes(n=24, n_val=4, n_test=0, size=(48, 96), path=tmp_path_factory.mktemp('scenes'))
    few = ds.keep_labels(8)
    hid = few.unlabelled.df
    return few + SegTable.make(hid.image, hid.truth, ds.space, kind='pseudo')

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.floats(0, 1), st.integers(0, 5))
def test_an_epoch_is_exactly_what_was_asked_for(table, n_real, n_pseudo, p, epoch):
    t = table.train
    index = _index(t)
    plan = index.plan(n_real, n_pseudo, p, 3, epoch)
    kinds = t.df.kind.to_numpy()[plan['row']]
    for kind, n in (('real', n_real), ('pseudo', n_pseudo)):
        cls = plan['cls'][kinds == kind]
        assert (len(cls), (cls >= 0).sum()) == (n, round(n * p))
        counts = np.bincount(cls[cls >= 0], minlength=len(t.space))[[*index.lists[kind]]]
        assert counts.max(initial=0) - counts.min(initial=99) <= 1
    assert (plan == index.plan(n_real, n_pseudo, p, 3, epoch)).all()

_indexes = {}
def _index(t): return _indexes.setdefault(id(t.space), CentroidIndex.build(t)) if id(t.space) not in _indexes else _indexes[id(t.space)]

@pytest.mark.parametrize('ratio', [1, 3, 5, 7])
def test_ratios_are_exact(table, ratio):
    dl = mixed_dls(table, ratio=ratio, n=16, crop=(32, 32), bs=8, sampler='centroid').train
    kinds = dl.table.df.kind.to_numpy()[[i for i, *_ in dl.get_idxs()]]
    assert ((kinds == 'real').sum(), (kinds == 'pseudo').sum()) == (16, 16 * ratio)

def test_p_0_is_the_random_sampler(table):
    a, b = (mixed_dls(table, n=16, crop=(32, 32), bs=8, **kw).train for kw in (dict(sampler='centroid', p=0), {}))
    for (x, y), (v, w) in zip(a, b): assert torch.equal(x, v) and torch.equal(y, w)

def test_workers_resuming_and_ranks_draw_the_same(table):
    make = lambda **kw: mixed_dls(table, n=17, crop=(32, 32), bs=4, sampler='centroid', **kw).train
    one, two = make(), make(num_workers=2)
    list(one); first = [y for _, y in one]                      # the second epoch …
    two.epoch = 1; second = [y for _, y in two]                 # … resumed in two processes
    assert len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))
    whole = make().get_idxs()
    ranks = [make(shard=(r, 3)) for r in range(3)]
    assert sorted(s for dl in ranks for s in dl.get_idxs()) == sorted(whole)
    assert [len(dl.get_idxs()) for dl in ranks] == [dl.n for dl in ranks]

def test_pseudo_labels_alone(table):
    t = table[(table.df.kind == 'pseudo') | (table.df.split == 'val')]
    assert len(mixed_dls(t, n=16, crop=(32, 32), bs=8, sampler='centroid').train.get_idxs()) == 16


# The index and its files

@pytest.fixture
def labels(tmp_path, table):
    "Eight labels of their own files"
    t = table.train.real
    for i in range(len(t)): write_mask(tmp_path/f'{i}.png', t.mask(i))
    return SegTable(t.df.assign(label=[str(tmp_path/f'{i}.png') for i in range(len(t))]), t.space, t.remaps)

@pytest.fixture
def decoded(monkeypatch):
    "Which labels are read"
    seen, whole = [], SegTable.mask
    monkeypatch.setattr(SegTable, 'mask', lambda self, i, *a, **k: (seen.append(i), whole(self, i, *a, **k))[1])
    return seen

def equal(a, b): return a.ends.tolist() == b.ends.tolist() and a.entries.tolist() == b.entries.tolist()

def test_only_what_changed_is_read_again(labels, tmp_path, decoded):
    path = tmp_path/'index.npz'
    CentroidIndex.build(labels, path=path); assert sorted(decoded) == [*range(8)]
    decoded.clear(); CentroidIndex.build(labels, path=path); assert not decoded
    write_mask(labels.df.label[5], np.zeros((48, 96)))
    os.utime(labels.df.label[2])                                # touched, but the same
    index = CentroidIndex.build(labels, path=path); assert decoded == [5]
    assert set(index.of(5)['cls']) == {0} and equal(index, CentroidIndex.build(labels))

def test_a_moved_folder_and_another_order_are_not_read_again(labels, tmp_path, decoded):
    CentroidIndex.build(labels, path=tmp_path/'index.npz'); decoded.clear()
    (tmp_path/'moved').mkdir()
    for i in range(8): os.rename(tmp_path/f'{i}.png', tmp_path/f'moved/{i}.png')
    moved = SegTable(labels.df.assign(label=[str(tmp_path/f'moved/{i}.png') for i in range(8)])[::-1], labels.space, labels.remaps)
    index = CentroidIndex.build(moved, path=tmp_path/'index.npz')
    assert not decoded and equal(index, CentroidIndex.build(moved))

def test_a_threshold_is_part_of_a_label(table, tmp_path):
    "Pixels below it do not count, and another threshold is another label"
    write_mask(tmp_path/'l.png', np.ones((20, 20))); conf = np.full((20, 20), 255); conf[:, 5:] = 100; write_mask(tmp_path/'c.png', conf)
    make = lambda m: SegTable.make(['im.png'], [tmp_path/'l.png'], table.space, Remap.identity(len(table.space), min_conf=m), kind='pseudo', conf=str(tmp_path/'c.png'))
    n = [CentroidIndex.build(make(m), path=tmp_path/'i.npz', warn=False).entries['n'].sum() for m in (0, .9, 0)]
    assert n == [400, 100, 400]

def test_a_corrupt_label_in_the_middle(labels, tmp_path):
    Path(labels.df.label[4]).write_bytes(Path(labels.df.label[4]).read_bytes()[:60])
    with pytest.raises(OSError, match='4.png: cannot be read as a label'): CentroidIndex.build(labels, path=tmp_path/'i.npz', strict=True)
    with pytest.warns(UserWarning, match='1 of 8 labels could not be read.*4.png'): index = CentroidIndex.build(labels, path=tmp_path/'i.npz')
    assert len(index.of(4)) == 0 and len(index.of(5))
    write_mask(labels.df.label[4], np.zeros((48, 96)))          # mended
    assert len(CentroidIndex.build(labels, path=tmp_path/'i.npz').of(4))

def test_an_unknown_id_is_an_error(labels, tmp_path):
    write_mask(labels.df.label[3], np.full((48, 96), 77))
    with pytest.raises(ValueError, match='3.png: unknown id 77'): CentroidIndex.build(labels, path=tmp_path/'i.npz')

def test_an_index_of_something_else(labels, tmp_path):
    path = tmp_path/'i.npz'
    CentroidIndex.build(labels, path=path)
    with pytest.raises(ValueError, match='tile is None there and 9 here'): CentroidIndex.build(labels, 9, path)
    other = SegTable(labels.df, LabelSpace([*labels.space.names[:-1], 'tram']), labels.remaps)
    with pytest.raises(ValueError, match='classes is .*Choose another file'): CentroidIndex.build(other, path=path)
    assert equal(CentroidIndex.build(labels, path=path), CentroidIndex.build(labels))

def test_an_index_of_another_version(labels, tmp_path, monkeypatch):
    CentroidIndex.build(labels, path=tmp_path/'i.npz')
    monkeypatch.setattr(module, 'VERSION', 99)
    with pytest.warns(UserWarning, match='another version'): CentroidIndex.build(labels, path=tmp_path/'i.npz')

@pytest.mark.parametrize('damage', [lambda b: b[:-200], lambda b: b'', lambda b: b'PK' + b[50:], lambda b: b.replace(b'entries.npy', b'entries.xyz')])
def test_a_damaged_index_is_built_anew(labels, tmp_path, damage):
    path = tmp_path/'i.npz'; CentroidIndex.build(labels, path=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match='i.npz: damaged.*anew'): index = CentroidIndex.build(labels, path=path)
    assert equal(index, CentroidIndex.build(labels))

def test_nothing_is_unpickled(labels, tmp_path):
    CentroidIndex.build(labels, path=tmp_path/'i.npz')
    with np.load(tmp_path/'i.npz', allow_pickle=False) as z: assert z['entries'].dtype == module.ENTRY

def test_a_full_disk(labels, tmp_path, monkeypatch, decoded):
    "The error names the file, and what was found before is not lost"
    real, n = module.Journal._write, [0]
    def write(self, f, data):
        n[0] += 1
        if n[0] < 9: return real(self, f, data)
        full = open('/dev/full', 'wb', buffering=0) if os.path.exists('/dev/full') else pytest.skip('no /dev/full')
        return real(self, full, data)
    monkeypatch.setattr(module.Journal, '_write', write)
    with pytest.raises(OSError, match='No space left.*make room.*i.npz'): CentroidIndex.build(labels, path=tmp_path/'i.npz', n_workers=1)
    monkeypatch.setattr(module.Journal, '_write', real); decoded.clear()
    index = CentroidIndex.build(labels, path=tmp_path/'i.npz')
    assert len(decoded) == 5 and equal(index, CentroidIndex.build(labels))
    assert not [*tmp_path.glob('.*')]

def test_a_damaged_journal_is_not_used(labels, tmp_path):
    for k, rows in enumerate((b'{"no\n\0\0\n', b'\xff\n')):
        (tmp_path/f'.i.npz.{k}.rows').write_bytes(rows); (tmp_path/f'.i.npz.{k}.entries').write_bytes(b'x')
    (tmp_path/'.i.npz.9.rows').write_bytes(b'{}\n{}\n')            # its entries are gone
    assert equal(CentroidIndex.build(labels, path=tmp_path/'i.npz'), CentroidIndex.build(labels))

def test_a_row_without_a_label_has_no_centroids(table):
    with pytest.raises(ValueError, match='row 8 has no label'): CentroidIndex.build(SegTable(table.train.df.assign(kind=['real'] * 8 + ['none'] * (len(table.train) - 8)), table.space, table.remaps)).of(8)

def build_slowly(home, path):
    import time
    whole = module.class_centroids
    module.class_centroids = lambda *a: (time.sleep(.01), whole(*a))[1]
    CentroidIndex.build(SegTable.load(home), path=path, n_workers=1)

def test_killed_and_built_by_several_processes(table, tmp_path):
    t = table.train.labelled
    t.save(tmp_path/'t.csv')
    rng = np.random.default_rng(0)
    seconds = children.run(build_slowly, tmp_path/'t.csv', tmp_path/'whole.npz')
    hits = sum(children.kill(rng.uniform(.05, .2) * seconds, build_slowly, tmp_path/'t.csv', tmp_path/'i.npz') for _ in range(4))
    assert hits >= 2
    jobs = [children._start(build_slowly, (tmp_path/'t.csv', tmp_path/'i.npz')) for _ in range(3)]
    assert [children._last(conn) for _, conn in jobs] == [None] * 3
    assert (tmp_path/'i.npz').read_bytes() == (tmp_path/'whole.npz').read_bytes()

def test_labels_are_indexed_while_they_are_written(table, tmp_path, decoded):
    learn = seg_learner(mixed_dls(table, n=8, crop=(32, 32), bs=4), encoder='test_byobnet')
    decoded.clear()
    pseudo = pseudo_label(learn, table.train, tmp_path/'p', min_conf=.1, progress=False)
    assert not decoded
    index = CentroidIndex.build(pseudo, path=tmp_path/'mine.npz', known=[tmp_path/'p/centroids.npz'], warn=False)
    assert not decoded and equal(index, CentroidIndex.build(pseudo, warn=False))

def test_a_damaged_index_of_someone_else_is_not_used(labels, tmp_path):
    (tmp_path/'theirs.npz').write_bytes(b'not an index')
    with pytest.warns(UserWarning, match='theirs.npz: damaged.*Not using it'):
        index = CentroidIndex.build(labels, path=tmp_path/'i.npz', known=[tmp_path/'theirs.npz'], warn=False)
    assert equal(index, CentroidIndex.build(labels, warn=False))
