"""Labelling that is stopped, shared, moved and given bad files; statistics, thresholds and selection against
brute force."""

import io, os, shutil
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import children
from selftrain_nb.centroids import CentroidIndex, CentroidSampler
from selftrain_nb.datasets import seg_folder
from selftrain_nb.files import folder_lock, relative_names
from selftrain_nb.labels import VOID, LabelSpace, Remap, read_conf, write_mask
from selftrain_nb.mapping import Mapping
from selftrain_nb.metrics import ConfusionMatrix
from selftrain_nb.models import seg_model
from selftrain_nb.predict import Predictor, Views
from selftrain_nb.pseudo import *
from selftrain_nb.scenes import scenes
from selftrain_nb.store import append_lines, label_names, settle
from selftrain_nb.streams import Stream
from selftrain_nb.table import SegTable

N = 10  # images
QUIET = dict(bs=3, progress=False)


def label(home, out, soft=False, **job):
    if job.pop('index', False):
        job['centroids'] = CentroidSampler()
    teacher = Predictor.load(home / 'teacher.safetensors')
    return pseudo_label(
        teacher, home / 'images', out, labels='soft' if soft else 'hard', job=LabelJob(**{**QUIET, **job})
    )


def label_in_child(home, out, kwargs):
    label(home, out, **kwargs)


def folder_of(home, table):
    "The images of a table, as a plain folder"
    (home / 'images').mkdir(parents=True)
    for p in table.df.image:
        shutil.copy(p, home / 'images' / Path(p).name)


def predictor(space, seed=0):
    torch.manual_seed(seed)
    return Predictor(seg_model(len(space), 'test_byobnet'), space, encoder='test_byobnet', arch='fpn')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A teacher, some images, and their labels by one process that nobody stopped"
    home = tmp_path_factory.mktemp('home')
    table = scenes(n=N, n_val=0, n_test=0, size=(32, 64), path=home / 'scenes')
    folder_of(home, table)
    predictor(table.space).save(home / 'teacher.safetensors')
    for out, kwargs in (('once', {}), ('soft', dict(soft=True, index=True))):
        children.run(label_in_child, home, home / out, kwargs)
    return home


@pytest.fixture
def mine(home, tmp_path):
    "A copy of teacher and images that a test may change"
    shutil.copytree(home / 'images', tmp_path / 'images')
    shutil.copy(home / 'teacher.safetensors', tmp_path)
    return tmp_path


@pytest.fixture(scope='module')
def teacher(home):
    return Predictor.load(home / 'teacher.safetensors')


@pytest.fixture(scope='module')
def store(home):
    return PseudoStore.open(home / 'once')


def contents(folder):
    "{name: bytes} of a store; of an index of centroids its records, since the rest tells when files were written"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('[!.]*') if p.is_file()}
    if 'centroids.npz' in files:
        files['centroids.npz'] = np.load(io.BytesIO(files['centroids.npz']))['records'].tobytes()
    return files


def assert_same(a, b):
    a, b = contents(a), contents(b)
    assert not (d := sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))), f'these differ: {d}'


def times(out):
    return {p.name: p.stat().st_mtime_ns for d in ('labels', 'conf') for p in (Path(out) / d).rglob('*.png')}


def files_of(df, i):
    return tuple(np.asarray(Image.open(p)) for p in (df.label[i], df.conf[i]))


# Stops

POINTS = [
    'claim',
    'write.temp:1',
    'write.temp:4',
    'write.replace:5',
    'write.replace:9',
    'label.files:1',
    'label.files:3',
    'label.manifest:1',
    'label.manifest:3',
    'write.temp:25',
    'write.replace:26',
]


@pytest.mark.parametrize('point', POINTS)
def test_a_stop_changes_no_byte(home, tmp_path, point):
    children.stopped_at(point, label_in_child, home, tmp_path / 'p', {})
    children.run(label_in_child, home, tmp_path / 'p', {})
    assert_same(tmp_path / 'p', home / 'once')


@pytest.mark.parametrize('point', ['index.journal:4', 'index.save', 'label.manifest:2'])
def test_a_stop_with_an_index_and_soft_labels(home, tmp_path, point):
    how = dict(soft=True, index=True)
    children.stopped_at(point, label_in_child, home, tmp_path / 'p', how)
    children.run(label_in_child, home, tmp_path / 'p', how)
    assert_same(tmp_path / 'p', home / 'soft')


def test_one_stop_after_the_other(home, tmp_path):
    for point in ('label.files:2', 'write.replace:3', 'label.manifest', 'write.temp:2', 'label.files'):
        children.stopped_at(point, label_in_child, home, tmp_path / 'p', {})
    with pytest.raises(ValueError, match='not finished; call pseudo_label again'):
        PseudoStore.open(tmp_path / 'p')
    children.run(label_in_child, home, tmp_path / 'p', {})
    assert_same(tmp_path / 'p', home / 'once')


def test_an_unfinished_line_does_not_count(home, tmp_path):
    children.stopped_at('label.manifest:2', label_in_child, home, tmp_path / 'p', {})
    file = tmp_path / 'p/manifest.jsonl'
    file.write_bytes(file.read_bytes()[:-20])
    assert len(read_manifest(tmp_path / 'p')) < 6
    children.run(label_in_child, home, tmp_path / 'p', {})
    assert_same(tmp_path / 'p', home / 'once')


def test_three_at_once_and_one_of_them_stopped(home, tmp_path):
    children.stopped_at('label.files', label_in_child, home, tmp_path / 'p', dict(shard=(1, 3)))
    started = [children._start(label_in_child, (home, tmp_path / 'p', dict(shard=(r, 3)))) for r in range(3)]
    assert [children._last(conn) for _, conn in started] == [None] * 3
    assert_same(tmp_path / 'p', home / 'once')
    assert not list((tmp_path / 'p').glob('manifest.*.jsonl'))


@pytest.mark.parametrize('how', [dict(readers=1, writers=1), dict(readers=5, writers=3)])
def test_the_number_of_threads_changes_nothing(home, tmp_path, how):
    children.run(label_in_child, home, tmp_path / 'p', how)
    assert_same(tmp_path / 'p', home / 'once')


def test_two_processes_in_one_folder(home, tmp_path):
    with folder_lock(tmp_path / 'p'):
        with pytest.raises(BlockingIOError, match='another process works in this folder'):
            label(home, tmp_path / 'p')
    with folder_lock(tmp_path / 'p', '.lock-0-of-2'):
        assert len(label(home, tmp_path / 'p', shard=(1, 2))) < N
        with pytest.raises(BlockingIOError):
            label(home, tmp_path / 'p', shard=(0, 2))


# The same images, however they are reached


def test_other_threads_batches_and_paths_go_on(mine, monkeypatch):
    label(mine, mine / 'p')
    before = times(mine / 'p')
    (mine / 'link').symlink_to(mine / 'images')
    shutil.copytree(mine / 'images', mine / 'moved')  # other times of change, the same content
    monkeypatch.chdir(mine)
    teacher, job = Predictor.load(mine / 'teacher.safetensors'), LabelJob(bs=5, readers=3, writers=1, progress=False)
    for images in ('images', mine / 'link', mine / 'moved', mine / 'images/../moved'):
        t = pseudo_label(teacher, images, 'p', job=job)
        assert times(mine / 'p') == before and len(t) == N
        assert Path(PseudoStore.open('p').table.df.image[0]) == Path(os.path.abspath(images)) / Path(t.df.image[0]).name


def test_linked_images_through_a_saved_table(mine, teacher):
    (mine / 'store').mkdir()
    (mine / 'links').mkdir()
    for k, p in enumerate(sorted((mine / 'images').iterdir())):
        p.rename(mine / f'store/k{k}.png')
        (mine / f'links/{k}.png').symlink_to(mine / f'store/k{k}.png')
    t = SegTable.make(sorted((mine / 'links').iterdir()), [None] * N, teacher.space)
    made = pseudo_label(teacher, t, mine / 'p', job=LabelJob(progress=False))
    t.save(mine / 't.csv')
    again, before = SegTable.load(mine / 't.csv'), times(mine / 'p')
    assert len(pseudo_rows(again, mine / 'p')) == len(pseudo_rows(t, mine / 'p')) == N
    assert len(t + pseudo_label(teacher, again, mine / 'p', job=LabelJob(progress=False))) == N
    assert times(mine / 'p') == before and len(made + PseudoStore.open(mine / 'p').table) == N


def test_a_folder_and_then_the_folder_above(mine, teacher):
    "Names change from 1.png to images/1.png, and nothing is labelled twice"
    table = SegTable.make(sorted((mine / 'images').iterdir()), [None] * N, teacher.space)
    pseudo_label(teacher, table, mine / 'p', job=LabelJob(**QUIET))
    before = times(mine / 'p')
    (mine / 'more').mkdir()
    shutil.copy(mine / 'images/0000_0.png', mine / 'more/other.png')
    both = SegTable.make([*table.df.image, mine / 'more/other.png'], [None] * (N + 1), teacher.space)
    assert len(pseudo_label(teacher, both, mine / 'p', job=LabelJob(**QUIET))) == N + 1
    assert {k: v for k, v in times(mine / 'p').items() if k != 'other.png'} == before
    assert PseudoStore.open(mine / 'p').name(0) == 'images/0000_0.png' and len(pseudo_rows(both, mine / 'p')) == N + 1


def test_more_images(mine, teacher):
    few = mine / 'few'
    few.mkdir()
    files = sorted((mine / 'images').iterdir())
    for f in files[:4]:
        shutil.copy(f, few)
    pseudo_label(teacher, few, mine / 'p', job=LabelJob(**QUIET))
    for f in files[4:6]:
        shutil.copy(f, few)
    pseudo_label(teacher, few, mine / 'p', job=LabelJob(**QUIET))
    store = PseudoStore.open(mine / 'p')
    assert len(store) == 6 and (store.stats['class_hist'] == brute_hist(store)).all()


@pytest.mark.parametrize('k', range(5, 9))
def test_a_store_that_opens_is_whole(mine, k):
    "Also when other images were labelled, and that was stopped at its end"
    (aside := mine / 'aside').mkdir()
    for name in ('0000_0.png', '0000_1.png'):
        (mine / 'images' / name).rename(aside / name)
    label(mine, mine / 'p')
    for file in aside.iterdir():
        file.rename(mine / 'images' / file.name)
    children.stopped_at(f'write.replace:{k}', label_in_child, mine, mine / 'p', {})
    with pytest.raises(ValueError, match='not finished'):
        PseudoStore.open(mine / 'p')
    label(mine, mine / 'p')
    store = PseudoStore.open(mine / 'p')
    assert len(store) == len(store.table) == N and (store.stats['class_hist'] == brute_hist(store)).all()


def test_an_image_changed_in_place_is_named_and_labelled_anew(mine):
    label(mine, mine / 'p', index=True)
    before, old = times(mine / 'p'), contents(mine / 'p')
    shutil.copy(mine / 'images/0000_3.png', mine / 'images/0000_0.png')
    with pytest.raises(
        ValueError, match=r'1 images have changed .*: 0000_0.png\. Label them anew, LabelJob\(refresh=True\)'
    ):
        label(mine, mine / 'p', index=True)
    assert contents(mine / 'p') == old
    label(mine, mine / 'p', refresh=True, index=True)
    assert {k for k, v in times(mine / 'p').items() if v != before[k]} == {'0000_0.png'}
    children.run(label_in_child, mine, mine / 'fresh', dict(index=True))
    assert_same(mine / 'p', mine / 'fresh')
    label(mine, mine / 'p', index=True)


def test_a_refresh_that_was_stopped_goes_on(mine):
    label(mine, mine / 'p')
    for k in (0, 1):
        Image.new('RGB', (48, 20), (200, 90, 30 * k)).save(mine / f'images/0000_{k}.png')
    children.stopped_at('label.manifest:1', label_in_child, mine, mine / 'p', dict(refresh=True))  # taken back
    children.stopped_at('label.manifest:1', label_in_child, mine, mine / 'p', {})  # labelled, statistics are old
    t = label(mine, mine / 'p')
    assert t.mask(0).shape == (20, 48) and not len(t.check())
    store = PseudoStore.open(mine / 'p')
    assert (store.stats['class_hist'] == brute_hist(store)).all() and store.stats['size'][0].tolist() == [20, 48]


def test_a_changed_image_that_cannot_be_read_any_more(mine):
    label(mine, mine / 'p')
    (mine / 'images/0000_0.png').write_bytes(b'no image')
    with pytest.warns(UserWarning, match='1 of 10 images cannot be read'):
        t = label(mine, mine / 'p', refresh=True)
    assert len(t) == len(PseudoStore.open(mine / 'p')) == N - 1


def test_a_deleted_label_is_made_again(mine):
    label(mine, mine / 'p')
    was = contents(mine / 'p')
    next((mine / 'p/labels').iterdir()).unlink()
    label(mine, mine / 'p')
    assert contents(mine / 'p') == was


def test_other_work_is_refused_in_words(home, mine):
    label(mine, mine / 'p')
    teacher = Predictor.load(home / 'teacher.safetensors')
    for change, words in (
        (dict(views=Views(flip=False)), 'flip is True there and False here'),
        (dict(labels='soft'), "labels is 'hard' there and 'soft' here"),
        (dict(teacher=predictor(teacher.space, 1)), 'its labels are those of another teacher'),
    ):
        with pytest.raises(ValueError, match=words):
            pseudo_label(**{**dict(teacher=teacher, images=mine / 'images', out=mine / 'p'), **change})
    (mine / 'full').mkdir()
    (mine / 'full/thesis.txt').write_text('')
    with pytest.raises(ValueError, match='is not empty'):
        label(mine, mine / 'full')


def test_options_are_checked_before_a_folder_is_made(mine, teacher):
    for how, words in (
        (dict(min_conf=[0.1, 0.2]), 'one for each of the 10 classes'),
        (dict(min_conf=1.5), 'between 0 and 1'),
        (dict(labels='both'), "'hard' or 'soft'"),
        (dict(images=mine / 'nowhere'), 'no such folder'),
        (dict(images=scenes(n=2, n_val=1, n_test=0)[[]]), 'no images to label'),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            pseudo_label(**{**dict(teacher=teacher, images=mine / 'images', out=mine / 'new'), **how})
    for how in (dict(bs=0), dict(readers=1.5), dict(shard=(2, 2)), dict(shard=(0,)), dict(writers=True)):
        with pytest.raises(ValueError, match=f'{[*how][0]}='):
            LabelJob(**how)
    assert not (mine / 'new').exists()


# Bad and odd files


def test_unreadable_images_are_listed_and_tried_again(mine):
    good = (mine / 'images/0000_1.png').read_bytes()
    (mine / 'images/0000_1.png').write_bytes(good[:300])
    (mine / 'images/0000_2.png').write_bytes(b'')
    with pytest.warns(
        UserWarning,
        match=r'2 of 10 images cannot be read and have no pseudo label: 0000_1.png, 0000_2.png\. .*unreadable.csv',
    ) as w:
        t = label(mine, mine / 'p')
    assert len([x for x in w if 'cannot be read' in str(x.message)]) == 1
    bad = pd.read_csv(mine / 'p/unreadable.csv')
    assert (
        bad.image.tolist() == ['0000_1.png', '0000_2.png']
        and bad.problem.str.len().min() > 10
        and not bad.problem.str.contains(str(mine)).any()
    )
    assert len(t) == len(PseudoStore.open(mine / 'p')) == N - 2 and not set(bad.image) & {
        Path(p).name for p in t.df.image
    }
    with pytest.raises(OSError, match='0000_1.png'):
        label(mine, mine / 'strict', strict=True)
    (mine / 'images/0000_1.png').write_bytes(good)
    (mine / 'images/0000_2.png').unlink()
    assert len(label(mine, mine / 'p')) == len(PseudoStore.open(mine / 'p')) == N - 1
    assert not (mine / 'p/unreadable.csv').exists()


def test_odd_folders_and_formats(mine, teacher):
    im = Image.open(mine / 'images/0000_0.png')
    for d in ('@eaDir', '.thumbnails', 'deep/er'):
        (mine / 'odd' / d).mkdir(parents=True)
    for name in (
        '@eaDir/1.jpg',
        '.thumbnails/1.jpg',
        '.hidden.jpg',
        'deep/er/1.jpg',
        '1.jpg',
        'ä b.webp',
        'grey.png',
        'moving.gif',
        'Thumbs.db',
    ):
        (im.convert('L') if name == 'grey.png' else im).save(
            mine / 'odd' / name, format='JPEG' if name.endswith('.db') else None
        )
    (mine / 'odd/phone.heic').write_bytes(b'ftypheic')
    with pytest.warns(UserWarning, match='phone.heic.*pillow-heif'):
        t = pseudo_label(teacher, mine / 'odd', mine / 'odd/p', job=LabelJob(**QUIET))
    assert sorted(relative_names(t.df.image)[1]) == [
        '1.jpg',
        'deep/er/1.jpg',
        'grey.png',
        'moving.gif',
        'ä b.webp',
    ] and not len(t.check())
    with pytest.warns(UserWarning):
        again = pseudo_label(
            teacher, mine / 'odd', mine / 'odd/p', job=LabelJob(**QUIET)
        )  # its own labels are no images
    assert len(again) == 5


@pytest.mark.skipif(os.name == 'nt', reason='names are UTF-16 there')
def test_names_that_are_not_utf8(mine, teacher):
    shutil.copy(mine / 'images/0000_0.png', os.fsencode(mine / 'images') + b'/caf\xe9.png')
    label(mine, mine / 'p')
    t = label(mine, mine / 'p')
    assert len(t) == N + 1 and not len(t.check())
    name = PseudoStore.open(mine / 'p').name(N)
    assert os.fsencode(name) == b'caf\xe9.png' and (mine / 'p/labels' / name).exists()
    (mine / 'images' / name).write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 11'):
        label(mine, mine / 'p', refresh=True)


def test_a_scale_for_images_of_12_bits(mine, teacher):
    rng = np.random.default_rng(0)
    (mine / 'deep').mkdir()
    for k in range(3):
        a = rng.integers(0, 4096, (32, 64), dtype=np.uint16)
        a[0, :2] = 0, 4095
        Image.fromarray(a).save(mine / f'deep/{k}.png')
        Image.fromarray(np.round(a * (255 / 4095)).astype(np.uint8)).save(mine / f'deep/8bit_{k}.bmp')
    t = pseudo_label(teacher, mine / 'deep', mine / 'p', job=LabelJob(**QUIET))
    at = {Path(p).name: i for i, p in enumerate(t.df.image)}
    for k in range(3):
        assert (read_conf(t.df.conf[at[f'{k}.png']]) == read_conf(t.df.conf[at[f'8bit_{k}.bmp']])).all()


# Names and splits


def test_what_is_written_can_be_read(mine, home):
    label(mine, mine / 'p')
    shutil.copy(mine / 'images/0000_0.png', mine / 'images/café.png')
    t = seg_folder(mine / 'p', images=str(mine / 'images'), labels='labels')
    assert len(t.real) == N and t.space.names == scenes(n=2, n_val=1, n_test=0).space.names
    store = PseudoStore.open(mine / 'p')
    assert (t.space.colours == store.space.colours).all()
    for i in range(3):
        assert (t.mask(i) == store.table.mask(i)).all()
    shown = np.asarray(Image.open(store.table.df.label[0]).convert('RGB'))
    assert (shown == store.space.decode(store.table.mask(0))).all()  # it has the colours of its classes
    (mine / 'q').mkdir()
    shutil.copytree(home / 'images', mine / 'q/images')
    level = float(np.median(store.stats['conf']))
    store.export(mine / 'q/labels', store.select(level))
    shutil.copy(mine / 'q/labels/codes.txt', mine / 'q')
    q = seg_folder(mine / 'q')
    assert len(q.real) == N and (q.mask(1) == store.select(level).mask(1)).all() and (q.mask(1) == VOID).any()
    with pytest.raises(ValueError, match='is not empty'):
        store.export(mine / 'q/labels')


def test_overlays(store, tmp_path):
    store.export(tmp_path / 'o', overlay=True)
    files = sorted((tmp_path / 'o').iterdir())
    assert [f.name for f in files] == [Path(p).stem + '.jpg' for p in sorted(store.table.df.image)]
    a, b = (np.asarray(im).astype(float) for im in (Image.open(files[0]), store.table.image(0)))
    mixed = 0.45 * b + 0.55 * store.space.decode(store.table.mask(0))
    assert abs(a - mixed).mean() < 12 < abs(a - b).mean()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text('ab./', min_size=1, max_size=5).map(lambda s: s.replace('/', 'd/') + '.' + 'pj'[len(s) % 2]),
        unique_by=str.casefold,
        max_size=8,
    ),
    st.data(),
)
def test_label_names_are_unique_and_stay(names, data):
    files = label_names(names)
    assert len({f.casefold() for f in files}) == len(files) and all(f.endswith('.png') for f in files)
    old = data.draw(st.sets(st.sampled_from(names))) if names else set()
    recorded = {n: f for n, f in zip(names, files) if n in old}
    assert label_names(names, recorded) == files  # also when some are labelled already


def test_equal_stems(mine, teacher):
    im = Image.open(mine / 'images/0000_0.png')
    for d in ('a', 'b'):
        (mine / 's' / d).mkdir(parents=True)
    for name in ('a/1.jpg', 'b/1.jpg', 'b/1.png', 'a/2.png'):
        im.save(mine / 's' / name)
    t = pseudo_label(teacher, mine / 's', mine / 'p', job=LabelJob(**QUIET))
    assert sorted(p.relative_to(mine / 'p/labels').as_posix() for p in (mine / 'p/labels').rglob('*.png')) == [
        'a/1.png',
        'a/2.png',
        'b/1.jpg.png',
        'b/1.png.png',
    ]
    im.save(mine / 's/a/2.jpg')  # a label keeps its name when a twin comes
    before = times(mine / 'p')
    t = pseudo_label(teacher, mine / 's', mine / 'p', job=LabelJob(**QUIET))
    assert len(t) == 5 and {k: v for k, v in times(mine / 'p').items() if k != '2.jpg.png'} == before
    assert len(seg_folder(mine / 'p', images=str(mine / 's'), labels='labels').real) >= 4


def test_images_keep_their_split(mine, teacher):
    split = ['train'] * 6 + ['val'] * 2 + ['test'] * 2
    t = SegTable.make(sorted((mine / 'images').iterdir()), [None] * N, teacher.space, split=split)
    made = pseudo_label(teacher, t, mine / 'p', job=LabelJob(**QUIET))
    assert list(made.df.split) == split == list(PseudoStore.open(mine / 'p').table.df.split)
    assert len((t + made).test) == 2 and len(Stream(t + made).rows) == 6
    t.df.loc[0, 'split'] = ''
    assert pseudo_label(teacher, t, mine / 'p', job=LabelJob(**QUIET)).df.split[0] == 'train'


def test_a_truth_with_ids_of_its_own(mine, teacher):
    "The hidden labels of a data set are read as that data set says, beside pseudo labels in class ids"
    ds = scenes(n=6, n_val=0, n_test=0, size=(32, 64), path=mine / 'six')
    (mine / 'ids').mkdir()
    for i in range(6):
        Image.fromarray(np.where(ds.mask(i) == VOID, 0, ds.mask(i) + 20).astype(np.uint8)).save(mine / f'ids/{i}.png')
    own = Remap({0: VOID, **{k + 20: k for k in range(10)}})
    few = SegTable.make(
        ds.df.image, [mine / f'ids/{i}.png' for i in range(6)], ds.space, own, name='city', group=[*'abcdef']
    ).keep_labels(2)
    made = pseudo_label(teacher, few.unlabelled, mine / 'p', job=LabelJob(**QUIET))
    for t in (
        made,
        SegTable.load(mine / 'p/table.csv'),
        (few + made).train.pseudo,
        PseudoStore.open(mine / 'p').select(0.5),
    ):
        right = [k for k in range(6) if ds.df.image[k] == t.df.image.iloc[0]]
        assert (t.mask(0, 'truth') == ds.mask(right[0])).all()
    confs = np.concatenate([read_conf(c).ravel() for c in made.df.conf])
    t = float(np.median(confs)) / 255
    labels, truths = (np.concatenate([f(i).ravel() for i in range(len(made))])
                      for f in (made.mask, lambda i: made.mask(i, 'truth')))
    quality = pseudo_quality(made, (0, t))
    for k, keep in enumerate((truths != VOID, (truths != VOID) & (confs >= np.ceil(t * 255)))):
        cm = ConfusionMatrix(10).update(labels[keep], truths[keep])
        assert np.allclose(quality.iloc[k, 1:].astype(float), [keep.sum() / (truths != VOID).sum(), cm.acc, cm.miou])


# Statistics and selection


def brute_hist(store):
    out = np.zeros((len(store.space), 256), int)
    for i in range(len(store)):
        np.add.at(out, tuple(a.ravel() for a in files_of(store.table.df, i)), 1)
    return out


def test_statistics_are_those_of_the_files(store):
    assert (store.stats['class_hist'] == brute_hist(store)).all()
    assert len(store) == N and [store.name(i) for i in range(3)] == [Path(p).name for p in store.table.df.image[:3]]
    for i in (0, 7, N - 1):
        label, conf = files_of(store.table.df, i)
        assert (store.stats['counts'][i] == np.bincount(label.ravel(), minlength=len(store.space))).all()
        assert store.stats['conf'][i] == pytest.approx(conf.mean() / 255, abs=1e-4)
        assert (store.stats['hist'][i] == np.bincount(conf.ravel() // 16, minlength=16)).all()


@settings(max_examples=200, deadline=None)
@given(arrays(np.int64, (3, 256), elements=st.integers(0, 3)), st.floats(0, 1))
def test_the_top_share(hist, share):
    t = top_share(hist, share)
    for h, level in zip(hist, np.ceil(t * 255).astype(int)):
        kept = [h[v:].sum() for v in range(256)]
        assert kept[level] >= share * h.sum()
        assert all(k < share * h.sum() for k in kept[level + 1 :]) or not h.sum() or share == 0


@pytest.mark.parametrize(
    'how',
    [
        dict(),
        dict(min_conf=0.2),
        dict(min_conf=np.linspace(0.1, 0.3, 10)),
        dict(share=0.3),
        dict(share=0.3, min_conf=0.12),
    ],
)
def test_selection_is_what_the_files_say(store, how):
    t, hist = store.select(**how), store.stats['class_hist']
    level = np.maximum(
        np.ceil(np.broadcast_to(how.get('min_conf', 0), 10) * 255),
        np.ceil(top_share(hist, how['share']) * 255) if 'share' in how else 0,
    )
    for i in (0, N - 1):
        label, conf = files_of(store.table.df, i)
        assert (t.mask(i) == np.where(conf >= level[label], label, VOID)).all()
    assert (t.counts() == [h[int(l) :].sum() for h, l in zip(hist, level)]).all()


def test_the_best_images_and_the_bad_ones(mine):
    label(mine, mine / 'p')
    store = PseudoStore.open(mine / 'p')
    order = store.ranked('conf')
    assert (np.diff(store.stats['conf'][order]) <= 0).all() and (
        np.diff(store.stats['agree'][store.ranked()]) <= 0
    ).all()
    assert {*store.select(best=0.3, by='conf').df.image} == {store.table.df.image[i] for i in order[:3]}
    store.mark([0, store.name(3)])
    assert len(store.select()) == N - 2 and len(store.select(bad=True)) == N and len(store.select(drop=[1])) == N - 3
    assert len(label(mine, mine / 'p')) == len(pseudo_rows(store.table, mine / 'p')) == N - 2  # so no stream has them
    store.mark([0, 3], bad=False)
    assert len(store.select()) == len(label(mine, mine / 'p')) == N
    for how in (dict(share=2), dict(best=-0.1)):
        with pytest.raises(ValueError, match='a share lies between 0 and 1'):
            store.select(**how)


def test_soft_labels_read_as_hard_ones(home, store):
    soft = PseudoStore.open(home / 'soft')
    for k in store.stats:
        assert np.array_equal(soft.stats[k], store.stats[k]), k
    for i in (0, N - 1):
        assert (soft.select(0.2).mask(i) == store.select(0.2).mask(i)).all()
        conf, second, conf2 = np.moveaxis(read_conf(soft.table.df.conf[i], soft=True), -1, 0)
        assert (
            (conf == read_conf(store.table.df.conf[i])).all()
            and (conf2 <= conf).all()
            and (second != soft.table.mask(i)).all()
        )


def test_an_index_of_centroids_on_the_way(home, mine):
    soft = PseudoStore.open(home / 'soft').table
    written, built = CentroidIndex.build(soft, path=home / 'soft/centroids.npz'), CentroidIndex.build(soft)
    assert (written.entries == built.entries).all() and len(built.entries)
    teacher, sampler = Predictor.load(home / 'teacher.safetensors'), CentroidSampler(tile=16, path=mine / 'own.npz')
    t = pseudo_label(
        teacher, mine / 'images', mine / 'p', min_conf=0.3, job=LabelJob(centroids=sampler, progress=False)
    )
    assert (sampler.fit(t).index.entries == CentroidIndex.build(t, tile=16).entries).all()


@pytest.mark.parametrize('change', ['tempered', 'adjusted', 'ensemble', 'scales'])
def test_labels_are_those_of_the_predictor(home, mine, teacher, change):
    views = Views(scales=(0.5, 1.0)) if change == 'scales' else Views()
    p = teacher.tempered(0.5) if change == 'tempered' else teacher
    if change == 'adjusted':
        p = Predictor(teacher.model, teacher.space, class_weights=np.linspace(0.5, 2, 10)).adjusted()
    if change == 'ensemble':
        p = [teacher, predictor(teacher.space, 1)]
    t = pseudo_label(p, mine / 'images', mine / 'p', views=views, job=LabelJob(**QUIET))
    prob = Predictor.of(p).probabilities([t.image(2)], views)[0].max(0)
    label, conf = files_of(t.df, 2)
    assert (label != prob.indices.numpy()).mean() < 0.01 and abs(conf / 255 - prob.values.numpy()).max() < 0.01


def test_a_part_of_the_images_has_labels_of_its_own(mine, teacher):
    "Names are relative to the folder that a table shares; an image of another folder may have the same name"
    for k in (0, 1):
        (mine / f'two/{"night/" * k}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 64, 3), 200 * k, np.uint8)).save(mine / f'two/{"night/" * k}1.png')
    made = pseudo_label(teacher, mine / 'two', mine / 'p', job=LabelJob(**QUIET))
    night = [i for i, p in enumerate(made.df.image) if 'night' in p]
    assert pseudo_rows(made[night], mine / 'p').df.label.tolist() == made.df.label.iloc[night].tolist()


def test_void_that_a_person_painted_is_no_error(mine, teacher):
    made = pseudo_label(teacher, mine / 'images', mine / 'p', job=LabelJob(**QUIET))
    mask = np.asarray(Image.open(made.df.label.iloc[0])).copy()
    mask[:5] = VOID
    write_mask(made.df.label.iloc[0], mask, made.space)
    Image.new('RGB', (64, 32)).save(mine / 'images/new.png')
    again = pseudo_label(teacher, mine / 'images', mine / 'p', job=LabelJob(**QUIET))
    assert len(again) == len(made) + 1


def test_changes_between_teachers(home, mine, teacher, store):
    pseudo_label(predictor(teacher.space, 1), mine / 'images', mine / 'p', job=LabelJob(**QUIET))
    other, want = PseudoStore.open(mine / 'p'), ConfusionMatrix(10)
    for i in range(N):
        want.update(other.table.mask(i), store.table.mask(i))
    cm = label_changes(home / 'once', mine / 'p')
    assert (cm.matrix == want.matrix).all() and cm.acc < 1
    assert label_changes(home / 'once', home / 'soft').acc == 1
    a, b = (100 * x / x.sum() for x in (s.stats['counts'].sum(0) for s in (store, other)))
    shares = other.class_shares(store.table)
    assert np.allclose(shares.labelled, a) and np.allclose(shares.pseudo, b)


# The manifest

LINES = st.tuples(
    st.sampled_from('abc'),
    st.sampled_from(['sig', 'error', 'forget']),
    st.integers(0, 2),
    st.sampled_from(['manifest.jsonl', 'manifest.0-of-2.jsonl']),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=8))
def test_settling_changes_nothing(tmp_path_factory, lines):
    out = tmp_path_factory.mktemp('m')
    for name, what, gen, file in lines:
        append_lines(out / file, [dict(name=name, gen=gen, **{what: [gen]})])
    before = read_manifest(out)
    for name in 'abc':  # the last generation counts, and in it a label before an error
        top = max((gen for n, _, gen, _ in lines if n == name), default=None)
        kinds = {what for n, what, gen, _ in lines if n == name and gen == top}
        expected = {'sig': [top]} if 'sig' in kinds else {'error': [top]} if 'error' in kinds else None
        assert before.get(name) == expected
    settle(out, ['c', 'a'])
    after = read_manifest(out)
    assert (
        before == after
        and [n for n in after if n in 'ca'] == [n for n in 'ca' if n in after]
        and len([*out.iterdir()]) == 1
    )
    assert b'gen' not in (out / 'manifest.jsonl').read_bytes()


def test_a_teacher_in_other_classes(mine, teacher):
    pairs = {n: 'ab'[i % 2] for i, n in enumerate(teacher.space.names)}
    mapping = Mapping(teacher.space, LabelSpace(['a', 'b']), pairs)
    t = pseudo_label(teacher.remapped(mapping), mine / 'images', mine / 'p', job=LabelJob(**QUIET))
    assert (t.mask(0) == teacher.remapped(mapping).predict(t.image(0), Views())).mean() > 0.99


def test_a_fault_of_the_machine_is_no_unreadable_image(mine, monkeypatch):
    import builtins, errno

    def busy(path, *args, real=builtins.open, **kwargs):
        if str(path).startswith(str(mine / 'images')):
            raise OSError(errno.EMFILE, 'Too many open files')
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', busy)
    with pytest.raises(RuntimeError, match='cannot be read now'):
        label(mine, mine / 'p')
    monkeypatch.undo()
    assert len(label(mine, mine / 'p')) == N


@pytest.mark.parametrize('damage', [b'', b'PK'])
def test_damaged_counts_are_not_used(mine, damage):
    label(mine, mine / 'p')
    (mine / 'p/stats.npz').unlink()
    (mine / 'p/.counts-1.npz').write_bytes(damage)
    label(mine, mine / 'p')
    store = PseudoStore.open(mine / 'p')
    assert (store.stats['class_hist'] == brute_hist(store)).all() and not [*(mine / 'p').glob('.counts*')]
