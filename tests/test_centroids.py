"""Centroids against brute force, plans that are exactly what was asked for, and an index that survives what
happens to files."""

import json, os, shutil
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

import children
from selftrain_nb.labels import *
from selftrain_nb.table import *
from selftrain_nb.scenes import scenes
from selftrain_nb.augment import *
from selftrain_nb.journal import *
from selftrain_nb.centroids import *
from selftrain_nb import centroids as module, journal


# Against brute force


def reference(mask, tile, parts=False):
    """(class, y, x, n, cy, cx): scipy's centre of mass in the coordinates of the whole map, and the nearest of
    all class pixels"""
    tiles = np.arange(mask.shape[0])[:, None] // tile * (mask.shape[1] + 1) + np.arange(mask.shape[1]) // tile
    out = []
    for c in np.setdiff1d(np.unique(mask), [VOID]):
        for t in np.unique(tiles[mask == c]):
            of = (mask == c) & (tiles == t)
            pieces, k = ndimage.label(of) if parts else (of.astype(int), 1)
            for i in range(1, k + 1):
                cy, cx = ndimage.center_of_mass(of, pieces, i)
                ys, xs = np.nonzero(pieces == i)
                near = np.argmin((ys - cy) ** 2 + (xs - cx) ** 2)
                out.append((c, ys[near], xs[near], len(ys), cy, cx))
    return sorted(out)


def same(mask, tile, parts=False):
    assert sorted(class_centroids(mask, tile, parts=parts).tolist()) == reference(mask, tile, parts)


masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda hw: arrays(np.uint8, hw, elements=st.sampled_from([0, 1, 2, 7, VOID]))
)


@settings(max_examples=100, deadline=None)
@given(masks, st.integers(1, 30), st.booleans())
def test_random_maps(mask, tile, parts):
    same(mask, tile, parts)


def street(seed, shape=(40, 61)):
    "A map of areas, with void and single pixels"
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 5, (8, 8)), np.ones((9, 9))).astype(np.uint8)[: shape[0], : shape[1]]
    mask[rng.random(mask.shape) < 0.02] = rng.integers(0, 9)
    mask[rng.random(mask.shape) < 0.05] = VOID
    return mask


@pytest.mark.parametrize('parts', [False, True])
def test_areas_and_specks(parts):
    for seed in range(4):
        for tile in (7, 20, 64):
            same(street(seed), tile, parts)


def test_the_default_tile_keeps_edges_and_small_images():
    for shape in [(1, 1), (1, 9), (9, 1), (5, 8)]:
        found = class_centroids(np.zeros(shape, np.uint8))
        assert found['n'].sum() == np.prod(shape)
    assert len(class_centroids(np.empty((0, 4), np.uint8))) == 0


# Crops


def ring(n=41):
    y, x = np.mgrid[:n, :n] - n // 2
    return ((np.hypot(y, x) < n / 2.2) & (np.hypot(y, x) > n / 2.6)).astype(np.uint8)


def single(y, x, shape=(50, 70)):
    mask = np.zeros(shape, np.uint8)
    mask[y, x] = 1
    return mask


HARD = dict(
    ring=ring(),
    checkerboard=(np.indices((37, 53)).sum(0) % 2).astype(np.uint8),
    pixel_corner=single(0, 0),
    pixel_edge=single(49, 33),
    pixel=single(20, 31),
    column=np.eye(1, 60, 17, dtype=np.uint8).repeat(40, 0),
    row=np.eye(1, 40, 3, dtype=np.uint8).repeat(60, 0).T,
    diagonal=np.eye(64, dtype=np.uint8),
    one=np.zeros((1, 1), np.uint8),
    line=np.arange(9, dtype=np.uint8)[None],
    void_around=np.pad(np.zeros((1, 1), np.uint8), 30, constant_values=VOID),
    specks=street(1),
)


def crops_hold_their_class(mask, n, crop=(32, 48), seed=0, scale=(0.5, 2.0)):
    image, mask, rng = Image.new('RGB', mask.shape[::-1]), Image.fromarray(mask), np.random.default_rng(seed)
    found, augment = class_centroids(np.asarray(mask)), Augment(scale=scale)
    for k in range(n):
        c, y, x = (int(v) for v in found[rng.integers(len(found))][['cls', 'y', 'x']])
        m = np.asarray(augment(image, mask, rng, crop, (c, y, x))[1])
        assert m.shape == crop and (m == c).any()


@pytest.mark.parametrize('name', HARD)
def test_every_crop_holds_its_class(name):
    crops_hold_their_class(HARD[name], 400)
    crops_hold_their_class(HARD[name], 100, crop=(33, 17), scale=(0.1, 3.0))


# Plans


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    return scenes(n=24, n_val=4, n_test=0, size=(48, 96), path=tmp_path_factory.mktemp('scenes')).train


@pytest.fixture(scope='module')
def fitted(table):
    return CentroidSampler().fit(table)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 99),
    p=st.floats(0, 1),
    key=st.integers(0, 9) | st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
)
def test_an_epoch_is_exactly_what_was_asked_for(fitted, n, p, key):
    sampler = replace(fitted, p=p)
    plan = sampler.plan(n, key)
    by_class, random = plan[plan['cls'] >= 0], plan[plan['cls'] < 0]
    assert (len(plan), len(by_class)) == (n, round(n * p))
    for counts in (np.bincount(by_class['cls'], minlength=10), np.bincount(random['row'], minlength=24)):
        assert np.ptp(counts) <= 1
    assert (plan == sampler.plan(n, key)).all()


@settings(max_examples=40, deadline=None)
@given(n_items=st.integers(1, 20), n=st.integers(0, 100), seed=st.integers(0, 5))
def test_items_are_drawn_evenly(n_items, n, seed):
    counts = np.bincount(draw_evenly(n_items, n, np.random.default_rng(seed)), minlength=n_items)
    assert counts.sum() == n and np.ptp(counts) <= 1


def test_a_point_lies_on_its_class(table, fitted):
    for r, c, y, x in replace(fitted, p=1.0).plan(200, 0):
        assert table.mask(r)[y, x] == c


def test_entries_are_used_up_before_they_are_repeated(fitted):
    plan = replace(fitted, p=1.0).plan(100, 0)
    for c in range(10):
        points = [s.tobytes() for s in plan[plan['cls'] == c]]
        assert len(set(points)) == min(len(points), len(fitted.index.lists[c]))


def test_without_centroids_it_is_the_random_sampler(table, fitted):
    for n in (0, 1, 24, 77):
        assert (replace(fitted, p=0).plan(n, (1, 2)) == RandomSampler().fit(table).plan(n, (1, 2))).all()


def test_samplers_are_values(table, fitted):
    assert CentroidSampler(p=0.3) == CentroidSampler(p=0.3, path='elsewhere.npz') != CentroidSampler(p=0.4)
    assert CentroidSampler().index is None and fitted.index is not None
    assert json.loads(json.dumps([RandomSampler().to_dict(), fitted.to_dict()])) == [
        dict(name='random'),
        dict(name='centroid', p=0.5, tile=None, parts=False),
    ]
    for bad in (-0.1, 1.5, float('nan')):
        with pytest.raises(ValueError, match='p='):
            CentroidSampler(p=bad)
    for sampler in (RandomSampler(), CentroidSampler()):
        with pytest.raises(ValueError, match='knows no table yet'):
            sampler.plan(4, 0)


def test_another_working_size(table):
    "Points are given in pixels of the working size"
    sampler = CentroidSampler(p=1.0).fit(table, size=64)
    for r, c, y, x in sampler.plan(60, 0):
        assert np.asarray(resize(Image.fromarray(table.mask(r)), 64, Image.NEAREST))[y, x] == c


def test_labels_of_nothing(table, tmp_path):
    write_mask(tmp_path / 'void.png', np.full((8, 8), VOID))
    void = SegTable.make(['a.png'], [tmp_path / 'void.png'], table.space)
    with pytest.raises(ValueError, match='no label .*has a pixel of a class'):
        CentroidSampler().fit(void)
    with pytest.raises(ValueError, match='use RandomSampler'):
        CentroidSampler().fit(SegTable.make(['a.png'], [None], table.space))
    with pytest.raises(ValueError, match='no image to draw from'):
        RandomSampler().fit(table[[]]).plan(1, 0)


# The index and its files


@pytest.fixture
def labels(tmp_path, table):
    "Eight labels of their own files, in a folder"
    (tmp_path / 'data').mkdir()
    t = table[list(range(8))]
    files = [str(tmp_path / f'data/{i}.png') for i in range(8)]
    for i, f in enumerate(files):
        write_mask(f, t.mask(i))
    return SegTable(t.df.assign(label=files), t.space, t.remaps)


@pytest.fixture
def decoded(monkeypatch):
    "Which labels are read"
    seen, whole = [], SegTable.mask
    monkeypatch.setattr(SegTable, 'mask', lambda self, i, *a, **k: (seen.append(int(i)), whole(self, i, *a, **k))[1])
    return seen


def moved(t, to):
    return SegTable(t.df.assign(label=[str(Path(to) / Path(p).name) for p in t.df.label]), t.space, t.remaps)


def equal(a, b):
    return a.records.ends.tolist() == b.records.ends.tolist() and a.entries.tolist() == b.entries.tolist()


def test_only_what_changed_is_read_again(labels, tmp_path, decoded):
    path = tmp_path / 'index.npz'
    CentroidIndex.build(labels, path=path)
    assert sorted(decoded) == [*range(8)]
    decoded.clear()
    CentroidIndex.build(labels, path=path)
    assert not decoded
    write_mask(labels.df.label[5], np.zeros((48, 96)))
    os.utime(labels.df.label[2])  # touched, but the same
    index = CentroidIndex.build(labels, path=path)
    assert decoded == [5] and set(index.of(5)['cls']) == {0}
    assert equal(index, CentroidIndex.build(labels))


def test_a_label_changed_in_place_is_noticed_even_with_its_old_time_and_size(tmp_path, table):
    "As when an archive is unpacked once more; the file is uncompressed, so its size says nothing"

    def save(mask):
        Image.fromarray(mask).save(tmp_path / 'l.bmp')

    mask = np.zeros((400, 400), np.uint8)
    save(mask)
    os.utime(tmp_path / 'l.bmp', (1, 1))
    t = SegTable.make(['im.png'], [tmp_path / 'l.bmp'], table.space)
    CentroidIndex.build(t, path=tmp_path / 'i.npz')
    mask[200, 200] = 3  # far from both ends of the file
    save(mask)
    os.utime(tmp_path / 'l.bmp', (1, 1))
    assert set(CentroidIndex.build(t, path=tmp_path / 'i.npz').of(0)['cls']) == {0, 3}


@pytest.mark.parametrize('how', ['moved', 'link', 'linked files', 'relative', 'copied'])
def test_the_spelling_of_a_path_is_no_change(labels, tmp_path, decoded, monkeypatch, how):
    CentroidIndex.build(labels, path=tmp_path / 'index.npz')
    decoded.clear()
    here, there = tmp_path / 'data', tmp_path / 'there'
    if how == 'moved':
        here.rename(there)
    if how == 'link':
        there.symlink_to(here)
    if how == 'copied':
        shutil.copytree(here, there)
    if how == 'linked files':
        there.mkdir()
        for p in labels.df.label:
            (there / Path(p).name).symlink_to(p)
    if how == 'relative':
        monkeypatch.chdir(tmp_path)
    t = moved(labels, 'data' if how == 'relative' else there)
    index = CentroidIndex.build(t, path=tmp_path / 'index.npz')
    assert not decoded
    assert equal(index, CentroidIndex.build(t))


def test_another_order_and_a_part_are_not_read_again(labels, tmp_path, decoded):
    CentroidIndex.build(labels, path=tmp_path / 'index.npz')
    decoded.clear()
    for rows in ([7, 3, 0], [4], [*range(8)][::-1]):
        index = CentroidIndex.build(labels[rows], path=tmp_path / f'{len(rows)}.npz', cached=[tmp_path / 'index.npz'])
        assert not decoded
        assert equal(index, CentroidIndex.build(labels[rows]))
        decoded.clear()


def test_two_labels_with_the_same_name_in_other_folders(labels, tmp_path):
    "The same name, size and time: only the folder differs"
    files = [tmp_path / f'data/{d}/a.bmp' for d in 'pq']
    for f, value in zip(files, (0, 1)):
        f.parent.mkdir()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(f)
        os.utime(f, (1, 1))
    t = SegTable.make(files, files, labels.space)
    for _ in range(2):
        assert [set(CentroidIndex.build(t, path=tmp_path / 'i.npz').of(i)['cls']) for i in (0, 1)] == [{0}, {1}]
    for i in (0, 1):
        assert set(CentroidIndex.build(t[[i]], path=tmp_path / 'i.npz').of(0)['cls']) == {i}


def test_a_threshold_is_part_of_a_label(table, tmp_path):
    "Pixels below it do not count, and another threshold is another label"
    write_mask(tmp_path / 'l.png', np.ones((20, 20)))
    conf = np.full((20, 20), 255, np.uint8)
    conf[:, 5:] = 100
    Image.fromarray(conf).save(tmp_path / 'c.png')
    n = len(table.space)

    def make(m):
        return SegTable.make(
            ['im.png'],
            [tmp_path / 'l.png'],
            table.space,
            Remap.identity(n, min_conf=m),
            kind='pseudo',
            conf=str(tmp_path / 'c.png'),
        )

    found = [CentroidIndex.build(make(m), path=tmp_path / 'i.npz').entries['n'].sum() for m in (0, 0.9, 0)]
    assert found == [400, 100, 400]
    conf[:] = 255
    Image.fromarray(conf).save(tmp_path / 'c.png')  # the confidence changed, the label did not
    assert CentroidIndex.build(make(0.9), path=tmp_path / 'i.npz').entries['n'].sum() == 400


@pytest.mark.parametrize(
    'damage,says',
    [
        (lambda p: p.write_bytes(p.read_bytes()[:60]), 'cannot be read as a label'),
        (lambda p: p.write_bytes(b''), '4.png'),
        (lambda p: p.unlink(), '4.png'),
        (lambda p: write_mask(p, np.full((48, 96), 77)), 'unknown id 77'),
    ],
)
def test_a_bad_label_is_left_out_counted_and_named(labels, tmp_path, damage, says):
    damage(Path(labels.df.label[4]))
    with pytest.raises((OSError, ValueError), match=says):
        CentroidSampler().fit(labels, strict=True)
    with pytest.warns(UserWarning, match=f'1 of 8 files could not be read and are left out.*4.png'):
        sampler = CentroidSampler(path=tmp_path / 'i.npz').fit(labels)
    assert len(sampler.index.of(4)) == 0 and len(sampler.index.of(5))
    assert 4 not in sampler.plan(100, 0)['row']  # neither by class nor at random
    write_mask(labels.df.label[4], np.zeros((48, 96)))  # mended
    assert len(CentroidIndex.build(labels, path=tmp_path / 'i.npz').of(4))


def test_no_label_can_be_read(labels):
    for p in labels.df.label:
        Path(p).write_bytes(b'x')
    with pytest.warns(UserWarning, match='8 of 8'), pytest.raises(ValueError, match='no label'):
        CentroidSampler().fit(labels)


def test_an_index_of_something_else(labels, tmp_path):
    path = tmp_path / 'i.npz'
    CentroidIndex.build(labels, path=path)
    with pytest.raises(ValueError, match='tile is None there and 9 here'):
        CentroidIndex.build(labels, 9, path=path)
    other = SegTable(labels.df, LabelSpace([*labels.space.names[:-1], 'tram']), labels.remaps)
    with pytest.raises(ValueError, match='classes is .*Choose another file'):
        CentroidIndex.build(other, path=path)
    assert equal(CentroidIndex.build(labels, path=path), CentroidIndex.build(labels))


def test_an_index_of_another_version(labels, tmp_path, monkeypatch):
    CentroidIndex.build(labels, path=tmp_path / 'i.npz')
    monkeypatch.setattr(module, 'VERSION', 99)
    with pytest.warns(UserWarning, match='another version'):
        CentroidIndex.build(labels, path=tmp_path / 'i.npz')


@pytest.mark.parametrize(
    'damage',
    [lambda b: b[:-200], lambda b: b'', lambda b: b'PK' + b[50:], lambda b: b.replace(b'records.npy', b'records.xyz')],
)
def test_a_damaged_index_is_built_anew(labels, tmp_path, damage):
    path = tmp_path / 'i.npz'
    CentroidIndex.build(labels, path=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match='i.npz: damaged.*anew'):
        index = CentroidIndex.build(labels, path=path)
    assert equal(index, CentroidIndex.build(labels))


def test_a_damaged_index_of_someone_else_is_not_used(labels, tmp_path):
    (tmp_path / 'theirs.npz').write_bytes(b'not an index')
    with pytest.warns(UserWarning, match='theirs.npz: damaged.*Not using it'):
        index = CentroidIndex.build(labels, path=tmp_path / 'i.npz', cached=[tmp_path / 'theirs.npz'])
    assert equal(index, CentroidIndex.build(labels))


def test_nothing_is_unpickled(labels, tmp_path):
    CentroidIndex.build(labels, path=tmp_path / 'i.npz')
    with np.load(tmp_path / 'i.npz', allow_pickle=False) as z:
        assert z['records'].dtype == ENTRY


def test_a_full_disk(labels, tmp_path, monkeypatch, decoded):
    "The error names the file, and what was found before is not lost"
    if not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full')
    real, n = Journal._append, [0]

    def append(self, file, data):
        n[0] += 1
        return real(self, open('/dev/full', 'wb', buffering=0) if n[0] == 9 else file, data)

    monkeypatch.setattr(Journal, '_append', append)
    with pytest.raises(OSError, match='No space left.*make room.*i.npz'):
        CentroidIndex.build(labels, path=tmp_path / 'i.npz')
    monkeypatch.setattr(Journal, '_append', real)
    decoded.clear()
    index = CentroidIndex.build(labels, path=tmp_path / 'i.npz')
    assert len(decoded) == 5 and equal(index, CentroidIndex.build(labels))
    assert not [*tmp_path.glob('.*')]


def test_a_damaged_journal_is_not_used(labels, tmp_path):
    for k, lines in enumerate((b'{"no\n\0\0\n', b'\xff\n', b'')):
        (tmp_path / f'.i.npz.{k}.lines').write_bytes(lines)
        (tmp_path / f'.i.npz.{k}.records').write_bytes(b'x')
    (tmp_path / '.i.npz.9.lines').write_bytes(b'{}\n{}\n')  # its records are gone
    assert equal(CentroidIndex.build(labels, path=tmp_path / 'i.npz'), CentroidIndex.build(labels))


def test_records_with_a_wrong_checksum_are_not_used(labels, tmp_path, decoded):
    "After a power failure a file may hold zeros where its last blocks were"
    with CentroidWriter(labels, tmp_path / 'i.npz') as w:
        for i in range(8):
            w.add(i, labels.mask(i))
    file = next(tmp_path.glob('.i.npz.*.records'))
    data = file.read_bytes()
    file.write_bytes(data[:-40] + bytes(40))
    decoded.clear()
    index = CentroidIndex.build(labels, path=tmp_path / 'i.npz')
    assert decoded == [7] and equal(index, CentroidIndex.build(labels))


def test_a_row_without_a_label_has_no_centroids(labels, tmp_path):
    t = labels + SegTable.make(['bare.png'], [None], labels.space)
    index = CentroidIndex.build(t)
    assert index.rows.tolist() == [*range(8)] and 8 in index.readable
    with pytest.raises(ValueError, match='row 8 has no label'):
        index.of(8)


def test_an_index_maps_its_file_in_a_worker(labels, tmp_path):
    import pickle

    sampler = CentroidSampler(path=tmp_path / 'i.npz').fit(labels)
    data = pickle.dumps(sampler)
    assert sampler.index.entries.tobytes() not in data
    assert (pickle.loads(data).plan(50, 0) == sampler.plan(50, 0)).all()
    bare = CentroidSampler().fit(labels)
    assert (pickle.loads(pickle.dumps(bare)).plan(50, 0) == sampler.plan(50, 0)).all()


def build(home, path):
    CentroidIndex.build(SegTable.load(home), path=path)


def test_stopped_anywhere_it_ends_the_same(labels, tmp_path):
    labels.save(tmp_path / 't.csv')
    children.run(build, tmp_path / 't.csv', tmp_path / 'whole.npz')
    whole = (tmp_path / 'whole.npz').read_bytes()
    for point in ('index.journal', 'index.journal:5', 'index.save', 'write.temp', 'write.replace'):
        path = tmp_path / point.replace('.', '_').replace(':', '_') / 'i.npz'
        children.stopped_at(point, build, tmp_path / 't.csv', path)
        assert path.exists() == (point == 'write.replace')
        children.run(build, tmp_path / 't.csv', path)
        assert path.read_bytes() == whole
        assert not journal_files(path)


def test_what_a_stopped_build_has_found_is_not_read_again(labels, tmp_path, decoded):
    labels.save(tmp_path / 't.csv')
    children.stopped_at('index.journal:6', build, tmp_path / 't.csv', tmp_path / 'i.npz')
    CentroidIndex.build(labels, path=tmp_path / 'i.npz')
    assert sorted(decoded) == [6, 7]


def test_several_processes_build_the_same_index(labels, tmp_path):
    labels.save(tmp_path / 't.csv')
    jobs = [children._start(build, (tmp_path / 't.csv', tmp_path / 'i.npz')) for _ in range(3)]
    assert [children._last(conn) for _, conn in jobs] == [None] * 3
    assert equal(CentroidIndex.build(labels, path=tmp_path / 'i.npz'), CentroidIndex.build(labels))


def test_labels_are_indexed_while_they_are_written(labels, tmp_path, decoded):
    "By several threads; a label that was written again counts as it is now"
    from concurrent.futures import ThreadPoolExecutor

    masks = [labels.mask(i) for i in range(8)]
    with CentroidWriter(labels, tmp_path / 'i.npz', CentroidSampler(tile=20)) as w, ThreadPoolExecutor(3) as pool:
        [*pool.map(w.add, range(8), masks)]
    decoded.clear()
    index = CentroidIndex.build(labels, 20, path=tmp_path / 'i.npz')
    assert not decoded and equal(index, CentroidIndex.build(labels, 20))
    with CentroidWriter(labels, tmp_path / 'j.npz') as w:
        w.add(3, masks[3])
        write_mask(labels.df.label[3], np.zeros((48, 96)))
        w.add(3, np.zeros((48, 96), np.uint8))
    decoded.clear()
    assert set(CentroidIndex.build(labels, path=tmp_path / 'j.npz').of(3)['cls']) == {0} and 3 not in decoded


def test_a_folder_that_cannot_be_written(labels, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match='i.npz.*cannot be written|cannot be written.*i.npz'):
        CentroidIndex.build(labels, path=tmp_path / 'file/i.npz')


def test_names_of_any_bytes(labels, tmp_path):
    "A file name that is not UTF-8"
    name = os.fsdecode(b'\xff\xe9.png')
    try:
        shutil.copy(labels.df.label[0], tmp_path / name)
    except OSError:
        pytest.skip('the file system refuses such names')
    t = SegTable.make([tmp_path / name], [tmp_path / name], labels.space)
    for _ in range(2):
        assert len(CentroidIndex.build(t, path=tmp_path / 'i.npz').of(0))
