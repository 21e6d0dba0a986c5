"Tables: what is hidden, held out, added, counted, checked, stored, and recognised again."

import errno, json, os, pickle, shutil, warnings
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from selftrain_nb.check import _sampled, check_table
from selftrain_nb.files import Signatures, read_json
from selftrain_nb.labels import VOID, LabelSpace, Remap
from selftrain_nb.mapping import Mapping
from selftrain_nb.scenes import scenes
from selftrain_nb.streams import Stream, seg_dls
from selftrain_nb.table import SegTable, table_id, valid_classes

SPACE = LabelSpace(['road', 'sky', 'car'])
BINARY = LabelSpace(['bg', 'fg'])


def test_labels_that_look_alike_are_counted_each(tmp_path):
    "The same name, size and time of change, as from an archive"
    files = [save(tmp_path/f's{k}/label.bmp', np.full((8, 8), k, np.uint8)) for k in (0, 1)]
    for p in files: os.utime(p, (1e9, 1e9))
    t = SegTable.make([tmp_path/f's{k}/im.png' for k in (0, 1)], files, BINARY, split=['train', 'val'])
    assert (t.train.counts().tolist(), t.val.counts().tolist()) == ([64, 0], [0, 64])


def photo(i, h=16, w=24):
    return np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8)


def ids(i, h=16, w=24, n=3):
    return np.random.default_rng(i).integers(0, n, (h, w), dtype=np.uint8)


def save(path, a, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(path, **kwargs)
    return path


def make(folder, n=8, labelled=8, space=SPACE, label=ids, **columns):
    "`n` images in groups of two, the first ones with labels"
    images = [save(folder / 'images' / f'{i}.png', photo(i)) for i in range(n)]
    labels = [save(folder / 'labels' / f'{i}.png', label(i)) if i < labelled else None for i in range(n)]
    return SegTable.make(images, labels, space, **{'group': [str(i // 2) for i in range(n)], **columns})


@pytest.fixture
def table(tmp_path):
    return make(tmp_path / 'data')


def splits(t):
    return dict(zip([Path(p).name for p in t.df.image], t.df.split))


# Lists to tables


def test_make_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match='2 images but 1 labels'):
        SegTable.make(['a', 'b'], ['c'], SPACE)
    for bad, says in [
        (dict(split='validation'), "not 'validation'"),
        (dict(kind='human'), "not 'human'"),
        (dict(colour='x'), "not 'colour'"),
    ]:
        with pytest.raises(ValueError, match=says):
            SegTable.make(['a'], ['b'], SPACE, **bad)


def test_parts_of_a_table(table):
    assert len(table[2:5]) == 3 and len(table[[]]) == 0 and len(table[np.array([3, 1])]) == 2
    assert table[[3, 1]].df.image.tolist() == table.df.image[[3, 1]].tolist()
    assert len(table[table.df.group == '1']) == 2 and len(table[(table.df.group == '1').to_numpy()]) == 2
    assert [r.kind for r in table[:2]] == ['real'] * 2 and table[0].group == '0'
    again = pickle.loads(pickle.dumps(table))
    assert again.df.equals(table.df) and again.remaps == table.remaps


def test_an_empty_table():
    t = SegTable.make([], [], SPACE)
    assert len(t + t) == 0 and t.counts().tolist() == [0, 0, 0] and len(t.check()) == 0 and len(t.train.labelled) == 0
    assert (
        t.files() == {} and valid_classes(t).shape == (0, 3) and 'the table has no images' in check_table(t).errors[0]
    )


# Hiding and holding out


def test_whole_groups_are_kept(table):
    few = table.keep_labels(0.5)
    assert len(few.real) == 4 and all(len({*g.kind}) == 1 for _, g in few.df.groupby('group'))
    assert few.revealed.df.equals(table.df) and table.keep_labels(4).df.equals(few.df)
    assert not few.df.equals(table.keep_labels(0.5, seed=1).df) or not few.df.equals(table.keep_labels(0.5, seed=2).df)
    assert len(table.keep_labels(3, by='image').real) == 3
    with pytest.raises(ValueError, match='cannot keep 0'):
        table.keep_labels(0)
    with pytest.raises(ValueError, match="not 'frame'"):
        table.keep_labels(2, by='frame')
    with pytest.warns(UserWarning, match='asked for 1 labels, kept 2'):
        table.keep_labels(1)


def test_images_without_a_group_stand_alone(tmp_path):
    "They are no video: any number of them can be kept or held out"
    t = make(tmp_path, group='')
    assert len(t.keep_labels(3).real) == 3 and len(t.hold_out(0.25).val) == 2


def test_hold_out_moves_groups_and_leaves_some(table):
    for share in (0.01, 0.3, 0.99):
        t = table.hold_out(share)
        assert len(t.val) >= 2 and len(t.train) >= 2 and not {*t.val.groups} & {*t.train.groups}
    assert table.hold_out(0.3).df.equals(table.hold_out(0.3).df)
    with pytest.raises(ValueError, match='share=1'):
        table.hold_out(1)


def test_hold_out_takes_the_unlabelled_images_of_its_groups_along(tmp_path):
    t = make(tmp_path, labelled=3).hold_out(0.3)
    assert not {*t.val.groups} & {*t.train.groups} and len(t.train.real) > 0


def test_hold_out_of_one_group(tmp_path):
    "What a check advises must lead on, also for one video; one image is too little"
    t = make(tmp_path, group='drive')
    with pytest.warns(UserWarning, match="one group, 'drive': single images"):
        assert len(t.hold_out(0.25).val) == 2
    with pytest.raises(ValueError, match='cannot hold out a part of 1'):
        make(tmp_path / 'one', n=1, labelled=1).hold_out(0.2)


# Adding


def linked(tmp_path, table):
    "The same images through a link to their folder, and through links to each"
    os.symlink(tmp_path / 'data', tmp_path / 'folder link')
    (tmp_path / 'links').mkdir()
    for p in table.df.image:
        os.symlink(p, tmp_path / 'links' / f'k{Path(p).name}')
    yield SegTable.make(
        [tmp_path / 'folder link/images' / Path(p).name for p in table.df.image], [None] * len(table), SPACE
    )
    yield SegTable.make([tmp_path / 'links' / f'k{Path(p).name}' for p in table.df.image], [None] * len(table), SPACE)
    yield SegTable.make([os.path.relpath(p) for p in table.df.image], [None] * len(table), SPACE)


def test_the_same_file_by_another_path(tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for bare in linked(tmp_path, table):
        for both in (table + bare, bare + table):
            assert len(both) == 8 and len(both.real) == 8, 'a label beats none'


@pytest.mark.parametrize('split', ['val', 'test'])
def test_an_image_is_in_one_split(tmp_path, table, split):
    "However it comes in, an image for validation or test is not trained on"
    held = table[:2]._like(table[:2].df.assign(split=split))
    for other in [table, *linked(tmp_path, table)]:
        for a, b in ((held, other), (other, held)):
            with pytest.warns(UserWarning, match=f'2 images are in two splits, .*kept in {split!r}'):
                both = a + b
            names = {os.path.realpath(p): s for p, s in zip(both.df.image, both.df.split)}
            assert [names[os.path.realpath(p)] for p in table.df.image] == [split] * 2 + ['train'] * 6


def test_pseudo_labels_of_test_images_are_not_for_training(table):
    t = table._like(table.df.assign(split='test'))
    pseudo = SegTable.make(t.df.image, t.df.label, SPACE, kind='pseudo', conf='')
    with pytest.warns(UserWarning, match='8 images are in two splits'):
        assert len((t + pseudo).train) == 0


def test_of_two_held_out_splits_the_left_one_counts(table):
    val, test = (table._like(table.df.assign(split=s)) for s in ('val', 'test'))
    with pytest.warns(UserWarning):
        assert {*(val + test).df.split} == {'val'}
    with pytest.warns(UserWarning):
        assert {*(test + val).df.split} == {'test'}


def test_adding_nothing_new_changes_nothing(table):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert (
            (table + table).df.equals(table.df)
            and (table + table[:0]).df.equals(table.df)
            and len(table[:3] + table[2:]) == 8
        )


def test_remaps_of_the_same_name(table):
    other = SegTable.make(table.df.image[:1], table.df.label[:1], SPACE, Remap({0: 1, 1: 1, 2: 1}), kind='pseudo')
    both = table + other
    assert [(both.mask(8) == 1).all(), (both.mask(0) == ids(0)).all()] == [True, True]
    with pytest.raises(ValueError, match='different label spaces'):
        table + SegTable.make([], [], BINARY)


# Counting


def test_unreadable_labels_are_left_out_and_told(table):
    "In any place, the first one too"
    whole = table[1:].counts()
    Path(table.df.label[0]).write_bytes(b'')
    for _ in range(2):
        with pytest.warns(UserWarning, match='1 labels cannot be read .*labels/0.png'):
            assert (table.counts() == whole).all()
    with pytest.raises(ValueError, match='labels/0.png'):
        table.counts(strict=True)


def decoded(monkeypatch):
    names, read = [], SegTable.mask
    monkeypatch.setattr(
        SegTable,
        'mask',
        lambda self, i, *args: (names.append(Path(self.df.label.iloc[i]).name), read(self, i, *args))[1],
    )
    return names


def test_counts_are_read_once(tmp_path, table, monkeypatch):
    want = sum(np.bincount(ids(i).ravel(), minlength=3) for i in range(8))
    read = decoded(monkeypatch)
    for _ in range(2):
        assert (table.counts() == want).all() and (table.train.real.counts() == want).all()
    assert len(read) == 8
    table.save(tmp_path / 't.csv')
    table.counts()
    SegTable.load(tmp_path / 't.csv').counts(most=3)
    assert len(read) == 11
    assert (SegTable.load(tmp_path / 't.csv').counts(most=3).sum(), len(read)) == (3 * 16 * 24, 11), (
        'from the file beside it'
    )


def test_counts_see_what_changed(tmp_path, table):
    table.save(tmp_path / 't.csv')
    before = table.counts()
    save(Path(table.df.label[0]), np.zeros((16, 24), np.uint8))
    for t in (table, SegTable.load(tmp_path / 't.csv')):
        assert t.counts()[0] > before[0]
    other = SegTable(table.df, SPACE, {'ids': Remap({0: 1, 1: 1, 2: 1})})
    other.save(tmp_path / 't.csv')
    assert other.counts().tolist() == [0, 8 * 16 * 24, 0]


def test_a_damaged_file_of_counts(tmp_path, table):
    table.save(tmp_path / 't.csv')
    want = table.counts()
    (tmp_path / 't.counts.json').write_text('{"a":')
    assert (SegTable.load(tmp_path / 't.csv').counts() == want).all()
    assert read_json(tmp_path / 't.counts.json')


def test_partially_labelled_classes(table):
    no_cars = SegTable.make(['a'], ['b'], SPACE, Remap({0: 0, 1: 1}), name='no cars')
    assert valid_classes(table[:1] + no_cars).tolist() == [[True] * 3, [True, True, False]]
    assert valid_classes(no_cars).all(), 'a class that nobody can label is valid everywhere'
    pseudo = SegTable.make(['c'], ['d'], SPACE, kind='pseudo', conf='e')
    assert valid_classes(no_cars + pseudo).all()


# Checking


def test_check_names_every_broken_file(table):
    Path(table.df.image[1]).write_bytes(b'x')
    Path(table.df.label[2]).unlink()
    save(Path(table.df.label[3]), ids(3, 24, 16))
    save(Path(table.df.label[4]), ids(4) + 70)
    for t in (table, table.keep_labels(1, by='image')):
        bad = t.check()
        assert [Path(p).name for p in bad.image] == ['1.png', '2.png', '3.png', '4.png']
        for says, problem in zip(
            ['images/1.png', 'labels/2.png: no such label', 'the label is 16x24, its image', 'unknown ids 70'],
            bad.problem,
        ):
            assert says in problem
        with pytest.raises(ValueError, match='4 of 8 images have problems'):
            t.check(strict=True)


def turned(folder, o, size=(16, 16), mask_o=1, ext='png'):
    exif = [Image.Exif(), Image.Exif()]
    for e, k in zip(exif, (o, mask_o)):
        e[0x0112] = k
    shape = size if o < 5 or mask_o == o else size[::-1]
    image = save(folder / f'i{o}{mask_o}{ext}{size}.jpg', photo(0, *size), exif=exif[0])
    return image, save(
        folder / f'm{o}{mask_o}{ext}{size}.{ext}', ids(0, *shape), **(dict(exif=exif[1]) if mask_o > 1 else {})
    )


@pytest.mark.parametrize(
    'o,size,doubtful',
    [(6, (16, 16), True), (3, (16, 24), True), (2, (16, 24), True), (6, (16, 24), False), (1, (16, 24), False)],
)
def test_doubtful_orientation_is_named(tmp_path, o, size, doubtful):
    "Where the sizes agree whether the label was drawn on the stored or on the turned photo"
    t = SegTable.make(*[[f] for f in turned(tmp_path, o, size)], SPACE)
    problems = t.check(strict=True).problem.tolist()
    assert [p[:9] for p in problems] == ['doubtful:'] * doubtful
    if doubtful:
        assert f'EXIF orientation {o}' in problems[0] and len(check_table(t).table) == 1


@pytest.mark.parametrize('ext', ['png', 'tif'])
def test_a_label_with_the_same_note_is_in_no_doubt(tmp_path, ext):
    t = SegTable.make(*[[f] for f in turned(tmp_path, 6, (16, 24), 6, ext)], SPACE)
    assert len(t.check()) == 0 and t.mask(0).shape == (24, 16)


def test_a_label_drawn_on_the_stored_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    t = SegTable.make([save(tmp_path / 'a.jpg', photo(0), exif=exif)], [save(tmp_path / 'b.png', ids(0))], SPACE)
    assert 'the label is 24x16, its image' in t.check().problem[0] and 'EXIF' in t.check().problem[0]


# The check before a run


def half(h=16, w=24):
    a = np.zeros((h, w), np.uint8)
    a[:, w // 2 :] = 1
    return a


FORMS = dict(
    grey=lambda i: half() * 255,
    rgb=lambda i: np.dstack([half() * 255] * 3),
    alpha=lambda i: np.dstack([half() * 0] * 3 + [half() * 255]),
)


@pytest.mark.parametrize('form', FORMS)
def test_masks_of_0_and_255(tmp_path, form):
    "They look sound, and have no pixel of the object; the advice leads on"
    t = make(tmp_path, space=BINARY, label=FORMS[form], split=['train'] * 6 + ['val'] * 2)
    c = check_table(t)
    assert len(c.errors) == 1 and 'no training label has a pixel of fg' in c.errors[0]
    assert '50% of the pixels are void' in c.errors[0] and 'Remap.binary()' in c.errors[0]
    c = check_table(SegTable(t.df, BINARY, {'ids': Remap.binary()}))
    assert (
        c.errors == c.warnings == []
        and c.counts['train'].tolist() == [6 * 16 * 12] * 2
        and c.counts['val'].tolist() == [2 * 16 * 12] * 2
    )


def test_labels_that_are_all_void(tmp_path):
    t = make(tmp_path, label=lambda i: np.full((16, 24), VOID, np.uint8), split=['train'] * 6 + ['val'] * 2)
    assert 'all pixels of the training labels are void' in check_table(t).errors[0]


def test_one_class(tmp_path):
    c = check_table(
        make(tmp_path, space=LabelSpace(['crack']), label=lambda i: half() * 0, split=['train'] * 6 + ['val'] * 2)
    )
    assert c.errors == ['there is one class, crack: two are needed. Add the background as a class']


def test_nothing_for_validation(table):
    c = check_table(table)
    assert len(c.errors) == 1 and 'no validation image has a label' in c.errors[0] and 'hold_out' in c.errors[0]
    assert check_table(table.hold_out(0.2)).errors == []
    assert check_table(make(Path(table.df.image[0]).parents[2] / 'b', split='val')).errors == [
        'no training image has a label'
    ]


def test_a_rare_class_is_a_warning(tmp_path):
    t = make(tmp_path, label=lambda i: ids(i, n=2), split=['train'] * 6 + ['val'] * 2)
    c = check_table(t)
    assert c.errors == [] and c.warnings == ['no training label has a pixel of car: it cannot be learned']


def test_broken_files_are_left_out_and_named(table):
    t = table.hold_out(0.3)
    for i in (0, 5):
        Path(t.df.image[i]).write_bytes(b'')
    c = check_table(t)
    assert (len(c.table), c.errors) == (6, []) and {Path(p).name for p in c.bad.image} == {'0.png', '5.png'}
    assert c.warnings[0].startswith('2 of 8 images or labels cannot be read and are left out; the first: ')
    for p in t.val.df.image:
        Path(p).write_bytes(b'')
    assert 'none of the 2 validation labels can be read; the first: ' in check_table(t).errors[0]


def test_an_image_in_two_splits_is_told(table):
    t = table.hold_out(0.3)
    t = SegTable.make(
        [*t.df.image, t.val.df.image.iloc[0]],
        [*t.df.label, t.val.df.label.iloc[0]],
        SPACE,
        split=[*t.df.split, 'train'],
    )
    c = check_table(t)
    assert len(c.table) == 8 and c.warnings[0].startswith('1 images are in two splits')


def test_a_sample_of_many(table):
    t = table.hold_out(0.5)
    c = check_table(t, sample=1)
    assert c.n == 2 and len(c.table) == 8 and c.warnings[-1] == '2 of 8 images were looked at'


def test_a_sample_that_misses_the_only_foreground(tmp_path):
    "What a sample does not show is no error; what all labels do not show is one"
    t = make(tmp_path, n=8, space=BINARY, label=lambda i: half() * (i == 0), split=['train'] * 6 + ['val'] * 2)
    drawn = t.df.image.iloc[_sampled(t, 2)]
    assert t.df.image[0] not in set(drawn)
    c = check_table(t, sample=2)
    assert c.errors == [] and not c.whole
    assert any(w.startswith('as far as was looked at, no training label has a pixel of fg') for w in c.warnings)
    assert check_table(t).errors == [] and check_table(t).whole
    assert 'pixel of fg' in check_table(t[1:]).errors[0]


def test_masks_of_0_and_255_are_no_cause_where_there_are_three_classes(tmp_path):
    t = make(tmp_path, label=lambda i: half() * VOID, split=['train'] * 6 + ['val'] * 2)
    c = check_table(t)
    assert 'binary' not in c.errors[0] and '255 is read as void' in c.errors[0]


def test_labels_that_are_all_void_in_a_sample_are_an_error(tmp_path):
    t = make(tmp_path, label=lambda i: np.full((16, 24), VOID, np.uint8), split=['train'] * 6 + ['val'] * 2)
    errors = check_table(t, sample=2).errors
    kinds = 'training', 'validation'
    assert [e.split(' are void')[0] for e in errors] == [f'all pixels of the {k} labels' for k in kinds]


def test_255_is_no_advice_where_it_is_a_class(tmp_path):
    t = make(tmp_path, space=BINARY, label=lambda i: half() * 0, split=['train'] * 6 + ['val'] * 2)
    assert '255' not in check_table(SegTable(t.df, BINARY, {'ids': Remap.binary()})).errors[0]


def test_the_opening_lines(tmp_path):
    t = make(tmp_path, n=8, labelled=6, split=['train'] * 2 + ['val'] * 2 + ['test'] * 2 + ['train'] * 2)
    lines = str(check_table(t)).splitlines()
    assert lines == ['2 labelled, 2 unlabelled, 2 val, 2 test images; 3 classes; 4 groups']
    c = check_table(t)
    assert repr(c) == str(c) and c.shares.loc['void'].tolist() == [0, 0, 0]
    assert abs(c.shares['train'].sum() - 100) < 0.2


# More than 8 bits


def deep(folder, n=4):
    images = [save(folder / f'{i}.png', np.full((8, 8), 4000 if i == 0 else 200, np.uint16)) for i in range(n)]
    return SegTable.make(images, [None] * n, SPACE)


def test_one_white_for_all_parts_of_a_table(tmp_path):
    t = deep(tmp_path)
    assert t[1:].image(0).getpixel((0, 0))[0] == round(200 / 4095 * 255) and t[1:].white == t.white == 4095
    t.save(tmp_path / 't.csv')
    Path(t.df.image[0]).unlink()
    assert SegTable.load(tmp_path / 't.csv')[1:].white == 4095 and 'white is 4095' in t.describe()


def test_white_is_found_from_all_rows_even_if_a_part_asks(tmp_path):
    assert deep(tmp_path)[2:].white == 4095


def test_white_may_be_set(tmp_path):
    t = deep(tmp_path)
    t.white = 65535
    assert t[0:1].image(0).getpixel((0, 0))[0] == round(4000 / 257)
    t.white = 1023
    assert 'white is 1023' in t.check().problem[0]


def test_a_mapping_keeps_what_white_is(tmp_path):
    t = deep(tmp_path)
    t.white = 65535
    to = LabelSpace([*t.space.names, 'new'])
    mapped = Mapping(t.space, to, {n: n for n in t.space.names}, ['new'])(t)
    assert mapped.white == 65535 and mapped.image(0).tobytes() == t.image(0).tobytes()


def test_eight_bits_and_more_added(tmp_path, table):
    assert (table + deep(tmp_path / 'deep')).white == 4095


# On disk


def test_saved_and_read_again(tmp_path, table):
    few = table.keep_labels(0.5)
    few.save(tmp_path / 'few.csv')
    again = SegTable.load(tmp_path / 'few.csv')
    assert again.df.equals(few.df) and again.space == SPACE and again.remaps == few.remaps
    shutil.move(tmp_path / 'data', tmp_path / 'moved')
    few.save(tmp_path / 'moved' / 'few.csv')


def test_a_folder_that_is_moved_as_a_whole(tmp_path, table):
    table.save(tmp_path / 'data/t.csv')
    shutil.move(tmp_path / 'data', tmp_path / 'moved')
    t = SegTable.load(tmp_path / 'moved/t.csv')
    assert len(t.check()) == 0 and table_id(t) == table_id(table)


def test_links_are_kept(tmp_path, table):
    "The target of a link is storage; pseudo labels are found by the path of the image, which is the link"
    *_, _ = linked(tmp_path, table)
    images = sorted((tmp_path / 'links').iterdir())
    t = SegTable.make(images, table.df.label, SPACE)
    t.save(tmp_path / 't.csv')
    again = SegTable.load(tmp_path / 't.csv')
    assert again.df.image.tolist() == [*map(str, images)]
    assert len(t + again) == 8 and len(table + again) == 8


def test_names_that_are_no_text(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9, "1"\r\n.png')
    save(tmp_path / 'a.png', photo(0))
    os.rename(tmp_path / 'a.png', odd)
    t = SegTable.make([odd], [None], SPACE)
    t.save(tmp_path / 't.csv')
    again = SegTable.load(tmp_path / 't.csv')
    assert again.df.image[0] == odd and again.image(0).size == (24, 16)
    assert len(table_id(again)) == 12 and len(t + again) == 1 and len(t.signatures()) == 1
    json.dumps(t.identity())


# Recognised again


def test_identity_does_not_depend_on_spelling(tmp_path, table, monkeypatch):
    os.symlink(tmp_path / 'data', tmp_path / 'link')
    monkeypatch.chdir(tmp_path)

    def spelled(root):
        return SegTable.make(
            [f'{root}/images/{i}.png' for i in range(8)],
            [f'{root}/labels/{i}.png' for i in range(8)],
            SPACE,
            group=table.df.group,
        )

    assert {table_id(spelled(r)) for r in (tmp_path / 'data', tmp_path / 'link', 'data', './link/../data')} == {
        table_id(table)
    }


def test_photos_here_and_labels_there(tmp_path, table):
    "Moving one of two folders does not make another table of it"
    shutil.copytree(tmp_path / 'data/images', tmp_path / 'far/away/images')
    t = SegTable.make(sorted((tmp_path / 'far/away/images').iterdir()), table.df.label, SPACE, group=table.df.group)
    assert table_id(t) == table_id(table)


@pytest.mark.parametrize('change', [dict(kind='pseudo'), dict(split='val'), dict(group='x'), dict(truth='t.png')])
def test_identity_depends_on_what_rows_are(table, change):
    assert table_id(table._like(table.df.assign(**change))) != table_id(table)


def test_identity_depends_on_how_labels_are_read(table):
    assert (
        len(
            {
                table_id(t)
                for t in (
                    table,
                    table[:7],
                    table[::-1],
                    SegTable(table.df, SPACE, {'ids': Remap.identity(2)}),
                    SegTable(table.df, LabelSpace(['road', 'sky', 'bus']), table.remaps),
                )
            }
        )
        == 5
    )
    renamed = SegTable(table.df.assign(remap='other'), SPACE, {'other': table.remaps['ids'], 'unused': Remap.binary()})
    assert table_id(renamed) == table_id(table), 'what a remap is called changes nothing'


def test_labels_changed_in_place_are_noticed(tmp_path, table):
    few = table.keep_labels(0.5)
    few.signatures().save(tmp_path / 's.csv')
    sigs = Signatures.load(tmp_path / 's.csv')
    assert sigs.changed(few.files()) == [] and len(sigs) == 16
    shutil.copytree(tmp_path / 'data', tmp_path / 'copy')
    t = SegTable(few.df.replace({str(tmp_path / 'data'): str(tmp_path / 'copy')}, regex=True), SPACE, few.remaps)
    assert sigs.changed(t.files()) == [], 'the same bytes elsewhere, with other times'
    for p in (few.real.df.label.iloc[0], few.unlabelled.df.truth.iloc[0]):
        save(Path(p), 1 - half())
    assert len(sigs.changed(few.files())) == 2


@pytest.mark.parametrize('fault', [OSError(errno.EMFILE, 'Too many open files'), MemoryError()])
def test_a_fault_of_the_machine_is_not_the_files(fault, monkeypatch):
    "Otherwise sound images would be left out of a run, for good"
    def fail(*args): raise fault

    t = scenes(n=4, n_val=1, n_test=0, size=(32, 64))
    monkeypatch.setattr(Image, 'open', fail)
    for call in (t.check, lambda: seg_dls(Stream(t), crop=(32, 32), bs=2)):
        with pytest.raises(RuntimeError, match='cannot be read now'):
            call()
