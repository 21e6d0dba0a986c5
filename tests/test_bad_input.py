"Bad input: one clear error or a stated behaviour each, and nothing lost."
import errno, json, os, struct, zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch, torch.nn as nn
from PIL import Image

import children
from children import assert_same, contents
from selftrain_nb.datasets import seg_folder
from selftrain_nb.labels import LabelSpace, Remap, SegTable, VOID
from selftrain_nb.selftrain import class_weights, mixed_dls, pseudo_label, self_train, seg_learner

TINY = dict(encoder='test_byobnet', epochs=(1, 1), n=2, bs=2, crop=(32, 32), progress=False)
SPACE = LabelSpace(['road', 'sky', 'car'])


# Small data, in which one thing is wrong at a time

def pixels(seed, h=32, w=64): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)

def ids(seed, h=32, w=64, n=3): return np.random.default_rng(seed).integers(0, n, (h, w), dtype=np.uint8)

def save(path, a, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(path, **kwargs)
    return path

def street(path, n=4, labelled=2, codes=SPACE.names, stem='{}'):
    "A folder in the form of `seg_folder`: `n` images, the first ones with labels, the first of all for validation"
    for i in range(n): save(path/'images'/f'{stem.format(i)}.jpg', pixels(i))
    for i in range(labelled + 1): save(path/'labels'/f'{stem.format(i)}.png', ids(i))
    (path/'codes.txt').write_text('\n'.join(codes), encoding='utf-8')
    (path/'val.txt').write_text(stem.format(0), encoding='utf-8')
    return path

@pytest.fixture
def data(tmp_path): return street(tmp_path/'street')

@pytest.fixture
def teacher():
    "As cheap as a teacher can be"
    torch.manual_seed(0)
    return SimpleNamespace(model=nn.Conv2d(3, 3, 3, padding=1).eval(), dls=SimpleNamespace(space=SPACE, size=None))

def table(tmp_path, images, labels=None, remap=None, **kwargs):
    "A table of these arrays or PIL images"
    images = [save(tmp_path/f'i{i}.png', a) for i, a in enumerate(images)]
    labels = [save(tmp_path/f'l{i}.png', a) for i, a in enumerate(labels or [])] or [None] * len(images)
    return SegTable.make(images, labels, SPACE, remap, **kwargs)

def truncate(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes()) * 2 // 3])

def fit(table, **kwargs):
    "Train a little network for two steps; returns the learner"
    learn = seg_learner(mixed_dls(table, n=4, crop=(32, 32), bs=2, num_workers=0, **kwargs), nn.Conv2d(3, len(table.space), 3, padding=1))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

def finite(learn): return all(p.isfinite().all() for p in learn.model.parameters())

def command(f, capsys, *args, **kwargs):
    "Exit status of a command, and what it says on stderr"
    from selftrain_nb import cli
    status = 0
    try: getattr(cli, f)(*map(str, args), **kwargs)
    except SystemExit as e: status = e.code
    return status, capsys.readouterr().err

def one_error(f, capsys, *args, **kwargs):
    "The one line that a command that fails says"
    status, err = command(f, capsys, *args, **kwargs)
    lines = [l for l in err.splitlines() if l.startswith('error: ')]
    assert status == 1 and len(lines) == 1 and 'Traceback' not in err
    return lines[0]


# Folders

def test_no_such_folder(teacher, tmp_path, capsys):
    assert one_error('run', capsys, tmp_path/'nowhere', out=str(tmp_path/'runs')) == f'error: {tmp_path}/nowhere: no such folder'
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'): pseudo_label(teacher, tmp_path/'nowhere', tmp_path/'labels')
    assert not list(tmp_path.iterdir())

def test_empty_folder(teacher, tmp_path, capsys):
    (tmp_path/'empty').mkdir()
    assert "no folder 'images'" in one_error('run', capsys, tmp_path/'empty', out=str(tmp_path/'runs'))
    with pytest.raises((FileNotFoundError, ValueError), match='no images to label in .*empty'): pseudo_label(teacher, tmp_path/'empty', tmp_path/'labels')
    assert [p.name for p in tmp_path.iterdir()] == ['empty']

def test_image_without_label_and_label_without_image(data, tmp_path):
    "The one is for the student, the other is named in a warning and left out"
    save(data/'labels/lonely.png', ids(9))
    with pytest.warns(UserWarning, match='1 of 4 labels have no image and are left out: lonely'): t = seg_folder(data)
    m = self_train(t, tmp_path/'run', **TINY).metrics('student')
    assert (m['n_real'], m['n_pseudo']) == (2, 1)

def test_zero_labelled_images(data, tmp_path, capsys):
    for p in (data/'labels').iterdir(): p.unlink()
    assert 'no labelled training image' in one_error('run', capsys, data, out=str(tmp_path/'runs'))
    with pytest.raises(ValueError, match='no labelled training image .*give at least one row'): mixed_dls(seg_folder(data))
    assert not (tmp_path/'runs').exists()

def test_one_single_image(teacher, tmp_path):
    with pytest.warns(UserWarning, match='no labelled row of split `val`'): learn = fit(table(tmp_path, [pixels(0)], [ids(0)]))
    assert finite(learn)
    save(tmp_path/'shots/only.png', pixels(1))
    assert len(pseudo_label(teacher, tmp_path/'shots', tmp_path/'labels')) == 1

def test_one_labelled_and_one_unlabelled_image(tmp_path):
    t = table(tmp_path, [pixels(0), pixels(1)], [ids(0), ids(1)])
    with pytest.warns(UserWarning, match='split `val`'): run = self_train(t.keep_labels(1, by='image'), tmp_path/'run', **TINY)
    assert run.done == ['teacher', 'student'] and run.metrics('student')['splits'] == {}


# Labels

def mended(data, out, **kwargs):
    "After a mistake is mended, the same call ends"
    assert self_train(seg_folder(data), out, **TINY, **kwargs).done == ['teacher', 'student']

def test_sizes_of_image_and_label_differ(data, tmp_path):
    save(data/'labels/1.png', ids(1, 32, 48))
    with pytest.raises(ValueError, match=r'labels/1.png: the label is 48x32, its image .*images/1.jpg is 64x32 .*make them equal'): self_train(seg_folder(data), tmp_path/'run', **TINY)
    assert list(seg_folder(data).check().image) == [str(data/'images/1.jpg')]
    save(data/'labels/1.png', ids(1)); mended(data, tmp_path/'run')

def test_id_that_the_label_space_does_not_know(data, tmp_path, capsys):
    save(data/'labels/2.png', np.full((32, 64), 77, np.uint8))
    args = dict(out=str(tmp_path/'runs'), encoder='test_byobnet', epochs='1,1', n=2, bs=2, crop='32,32')
    assert 'labels/2.png: unknown id 77; the remap knows [0, 1, 2, 255]. Correct the file' in one_error('run', capsys, data, **args)
    assert not list((tmp_path/'runs').rglob('*.safetensors')), 'found before any training'
    save(data/'labels/2.png', ids(2))
    assert command('run', capsys, data, **args)[0] == 0

def test_rgb_palette_16_bit_and_1_bit_masks(tmp_path):
    "All give the same ids, and train together"
    mask = ids(0, n=2)
    colour = LabelSpace(SPACE.names, [[9, 9, 200], [0, 80, 0], [7, 0, 0]])
    palette = Image.fromarray(mask); palette.putpalette(colour.palette.tobytes())
    forms = dict(rgb=colour.decode(mask), rgba=Image.fromarray(colour.decode(mask)).convert('RGBA'), palette=palette, deep=mask.astype(np.uint16), bit=mask.astype(bool), rgb_grey=np.stack([mask] * 3, -1))
    by_colour = Remap(colours={tuple(c): i for i, c in enumerate(colour.colours)})
    t = SegTable.make([], [], SPACE)
    for name, m in forms.items(): t += table(tmp_path/name, [pixels(0)], [m], by_colour if name in ('rgb', 'rgba') else None, name=name)
    assert len(t.check()) == 0 and len(t) == len(forms)
    for i in range(len(t)): np.testing.assert_array_equal(t.mask(i), mask, err_msg=t.df.label[i])
    with pytest.warns(UserWarning, match='split `val`'): assert finite(fit(t))

@pytest.mark.parametrize('label,says', [
    (np.full((32, 64), 300, np.uint16), 'l0.png: unknown id 300'),
    (pixels(0), 'l0.png: an RGB label needs a colour table')])
def test_masks_that_cannot_be_ids(tmp_path, label, says):
    t = table(tmp_path, [pixels(0)], [label])
    assert says in t.check().problem[0]
    with pytest.raises(ValueError, match=says), pytest.warns(UserWarning): fit(t)

def test_class_that_never_occurs(data, tmp_path):
    "It does no harm, and has no IoU unless it is predicted"
    (data/'codes.txt').write_text('\n'.join([*SPACE.names, 'tram']))
    t = seg_folder(data)
    assert class_weights(t.counts())[3] == class_weights(t.counts()).max()
    kwargs = {**TINY, 'epochs': (6, 6), 'n': 8, 'lr': .02}
    run = self_train(t, tmp_path/'run', **kwargs)
    iou = json.loads((tmp_path/'run/student/metrics.json').read_text())['splits']['val']['iou']
    assert iou['tram'] is None and iou['road'] is not None
    assert np.isnan(run.results.iou_tram.astype(float)).all()

@pytest.mark.parametrize('void', [1, 2])
def test_label_that_is_all_void(tmp_path, void):
    "One among others, or every one: the loss is a number, and the weights stay numbers"
    t = table(tmp_path, [pixels(i) for i in range(4)], [np.full((32, 64), VOID, np.uint8) if i < void else ids(i) for i in range(4)], split=['train', 'train', 'val', 'val'])
    learn = fit(t)
    assert finite(learn) and np.isfinite([float(v) for v in learn.recorder.losses]).all()
    if void == 2: assert sum(map(float, learn.recorder.losses)) == 0

def test_validation_labels_that_are_all_void(data, tmp_path):
    save(data/'labels/0.png', np.full((32, 64), VOID, np.uint8))
    run = self_train(seg_folder(data), tmp_path/'run', **TINY)
    assert run.metrics('student')['splits']['val'] == dict(miou=None, acc=None, iou=dict.fromkeys(SPACE.names))


# Images

def turned(a):
    "A picture that lies on its side, with a note to turn it"
    exif = Image.Exif(); exif[0x0112] = 6
    return dict(a=Image.fromarray(a).transpose(Image.Transpose.ROTATE_90), exif=exif)

def test_grey_rgba_cmyk_and_turned_images(teacher, tmp_path):
    "A folder of them all trains, and is labelled at the size that a person sees"
    rgb, shots = Image.fromarray(pixels(0)), tmp_path/'shots'
    for mode, ext in [('L', 'png'), ('RGBA', 'png'), ('CMYK', 'jpg'), ('P', 'png'), ('1', 'png'), ('LA', 'png'), ('RGB', 'webp')]: save(shots/f'{mode}.{ext}', rgb.convert(mode))
    save(shots/'deep.png', pixels(1)[..., 0].astype(np.uint16) * 257); save(shots/'turned.jpg', **turned(pixels(2)))
    images = sorted(shots.iterdir())
    labels = [save(tmp_path/'labels'/f'{p.name}.png', ids(i)) for i, p in enumerate(images)]
    t = SegTable.make(images, labels, SPACE, split=['train', *['val', 'train'] * 4])
    assert len(t.check()) == 0 and len(t) == 9
    assert finite(fit(t)) and finite(fit(SegTable(t.df.assign(split='train'), t.space, t.remaps) + t.val))
    made = pseudo_label(teacher, shots, tmp_path/'pseudo', bs=4)
    assert {made.mask(i).shape for i in range(9)} == {(32, 64)}

def test_truncated_jpeg_in_training(data):
    "Another image takes its place, with a warning; `strict` is an error"
    truncate(data/'images/1.jpg')
    with pytest.warns(UserWarning, match=r'images/1.jpg: cannot be read as an image .*Another image takes its place'): assert finite(fit(seg_folder(data)))
    with pytest.raises(OSError, match=r'images/1.jpg: cannot be read .*replace or remove the file'): fit(seg_folder(data), strict=True)

@pytest.fixture
def shots(data):
    truncate(data/'images/1.jpg')
    return data/'images'

def test_truncated_jpeg_in_labelling(teacher, shots, tmp_path):
    "It is noted and counted; `strict` is an error; when the file is mended, the same call labels it"
    dest = tmp_path/'labels'
    with pytest.raises(OSError, match='1.jpg: cannot be read'): pseudo_label(teacher, shots, dest, strict=True, bs=1)
    with pytest.warns(UserWarning, match='1 of 4 images could not be read and have no pseudo label; the first: 1.jpg.png: .*1.jpg: cannot be read'): t = pseudo_label(teacher, shots, dest, bs=1)
    lines = [json.loads(l) for l in (dest/'manifest.jsonl').read_text().splitlines()]
    assert [(l['name'], 'error' in l) for l in lines] == [(f'{i}.jpg.png', i == 1) for i in range(4)]
    assert len(t) == 3 and not (dest/'labels/1.jpg.png').exists()
    before = contents(dest/'labels')
    save(shots/'1.jpg', pixels(1))
    assert len(pseudo_label(teacher, shots, dest, bs=1)) == 4
    assert before.items() < contents(dest/'labels').items()

def test_self_training_with_a_truncated_jpeg(data, tmp_path):
    "Counted among the unlabelled images that the student did not see"
    truncate(data/'images/3.jpg'); save(data/'images/4.jpg', pixels(4))
    with pytest.warns(UserWarning, match='1 of 2 images could not be read'): run = self_train(seg_folder(data), tmp_path/'run', **TINY)
    assert run.metrics('student')['n_pseudo'] == 1

def test_picture_that_claims_a_billion_pixels(teacher, data, tmp_path):
    head = b'IHDR' + struct.pack('>IIBBBBB', 2**16, 2**16, 8, 2, 0, 0, 0)
    (data/'images/9.png').write_bytes(b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', zlib.crc32(head)))
    with pytest.warns(UserWarning, match='1 of 5 images could not be read'): assert len(pseudo_label(teacher, data/'images', tmp_path/'labels')) == 4


# Names

def test_names_with_spaces_and_letters_of_all_alphabets(tmp_path, capsys):
    "Folder, images and classes, from the command to metrics, manifest and report"
    names = ['Straße, naß', 'небо "hell"', '車 <b>']
    data = street(tmp_path/'Meine Bilder – Übung', codes=names, stem='Zürich № {}\u2028\u0085')
    args = dict(encoder='test_byobnet', epochs='1,1', n=2, bs=2, crop='32,32')
    out = tmp_path/'Läufe der Woche'
    status, err = command('run', capsys, data, out=str(out), csv=str(out/'alle.csv'), **args)
    assert status == 0, err
    run = out/'seed0'
    assert list(json.loads((run/'student/metrics.json').read_text('utf-8'))['splits']['val']['iou']) == names
    assert json.loads((run/'pseudo/manifest.jsonl').read_bytes().splitlines()[0])['name'] == 'Zürich № 3\u2028\u0085.jpg.png'
    assert (run/'pseudo/labels/Zürich № 3\u2028\u0085.jpg.png').exists()
    html = next(run.rglob('*.html')).read_text('utf-8')
    assert 'Straße, naß' in html and '車 &lt;b&gt;' in html and '車 <b>' not in html
    before = contents(run)
    assert command('run', capsys, data, out=str(out), csv=str(out/'alle.csv'), **args)[0] == 0
    assert contents(run) == before
    status, err = command('label', capsys, run, data/'images', out/'Etiketten')
    assert status == 0 and len(list((out/'Etiketten/labels').iterdir())) == 4, err


# Destinations

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished run, never to be changed"
    path = tmp_path_factory.mktemp('done')
    t = seg_folder(street(path/'street'))
    return SimpleNamespace(table=t, run=self_train(t, path/'run', **TINY), path=path)

def refused(call, folder, says):
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match=says): call()
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before

@pytest.mark.parametrize('change,says', [(dict(ratio=2), 'ratio is 1.0 there and 2 here'), (dict(seed=1), 'seed is 0 there'), (dict(encoder='resnet10t'), 'encoder is')])
def test_destination_that_holds_another_run(done, change, says):
    refused(lambda: self_train(done.table, done.run.path, **{**TINY, **change}), done.run.path, f'holds other work: .*{says}.*Choose another folder')

def test_destination_that_holds_a_run_on_other_data(done):
    less = SegTable(done.table.df.assign(group='one'), done.table.space, done.table.remaps)
    refused(lambda: self_train(less, done.run.path, **TINY), done.run.path, 'holds other work: table is')

def test_destination_that_holds_labels_of_another_teacher(done, teacher):
    refused(lambda: pseudo_label(teacher, done.path/'street/images', done.run.path/'pseudo'), done.run.path, 'holds other work: teacher is')

def test_destination_that_holds_something_else(done, teacher):
    refused(lambda: self_train(done.table, done.path, **TINY), done.path, r'is not empty and has no config\.json: choose another folder')
    refused(lambda: pseudo_label(teacher, done.path/'street/images', done.path), done.path, 'is not empty and has no store.json')

def test_labels_beside_the_images_are_not_images(teacher, data):
    "A destination below the folder of images: its labels are not taken for images by the next call"
    for _ in range(2): assert len(pseudo_label(teacher, data/'images', data/'images/pseudo')) == 4

def train(done, out): self_train(SegTable.load(done/'run/table.csv'), out, **TINY)

def test_destination_below_a_file(done, tmp_path, capsys):
    (tmp_path/'file').write_text('mine')
    with pytest.raises(OSError, match=f'{tmp_path}/file/run'): self_train(done.table, tmp_path/'file/run', **TINY)
    assert str(tmp_path/'file') in one_error('label', capsys, done.run.path, done.path/'street/images', tmp_path/'file/labels')
    assert (tmp_path/'file').read_text() == 'mine'

def test_read_only_destination(done, teacher, tmp_path, monkeypatch):
    "As root, permissions stop nobody: the rename is refused instead"
    def replace(a, b): raise PermissionError(errno.EACCES, 'Permission denied', str(a), None, str(b))
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', replace)
        with pytest.raises(PermissionError, match=r'config\.json'): self_train(done.table, tmp_path/'run', **TINY)
        with pytest.raises(PermissionError, match=r'store\.json'): pseudo_label(teacher, done.path/'street/images', tmp_path/'labels')
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]

def limited(size, job, *args):
    "Do `job` where no file may grow beyond `size` bytes, as on a disk that is nearly full"
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    job(*args)

def test_full_destination(done, tmp_path):
    "As room grows, each call gets further, says which file has no room, and leaves no half file; the last one ends as if nothing had been"
    pytest.importorskip('resource')
    out, files = tmp_path/'run', []
    for size in (64, 500, 1000, 2000, 4000, 100_000, 1_500_000):
        with pytest.raises(OSError, match='cannot be written .*make room') as e: children.run(limited, size, train, done.path, out)
        files.append(Path(e.value.filename))
        assert not files[-1].exists() or files[-1].name == 'manifest.jsonl'
        assert not list(out.rglob('*.tmp*'))
    assert {f.name for f in files} >= {'config.json', 'state.safetensors'}
    children.run(train, done.path, out)
    children.run(train, done.path, tmp_path/'undisturbed')
    assert_same(out, tmp_path/'undisturbed')

def test_full_destination_while_labelling(teacher, data, tmp_path):
    "A line of the manifest that was cut, even within a letter, does not count, and the next call goes on"
    save(data/'images/ü.png', pixels(7))
    pseudo_label(teacher, data/'images', tmp_path/'whole', bs=1); pseudo_label(teacher, data/'images', tmp_path/'cut', bs=1)
    manifest = tmp_path/'cut/manifest.jsonl'
    manifest.write_bytes(manifest.read_bytes().split('ü'.encode())[0] + b'\xc3')
    assert len(pseudo_label(teacher, data/'images', tmp_path/'cut', bs=1)) == 5
    a, b = contents(tmp_path/'cut'), contents(tmp_path/'whole')
    assert a.pop('manifest.jsonl').splitlines()[-1] == b.pop('manifest.jsonl').splitlines()[-1] and a == b


# Networks

def test_encoder_that_timm_does_not_know(done, tmp_path, capsys):
    "Near names are offered; the folder is not lost to the mistake"
    args = dict(out=str(tmp_path/'runs'), epochs='1,1', n=2, bs=2, crop='32,32')
    said = one_error('run', capsys, done.path/'street', encoder='resnet10x', **args)
    assert said.startswith("error: timm has no encoder 'resnet10x'. Near: ") and 'resnet10t' in said
    assert command('run', capsys, done.path/'street', encoder='test_byobnet', **args)[0] == 0

def test_weights_that_cannot_be_downloaded(done, tmp_path):
    with pytest.raises(OSError, match=r"pretrained weights of 'test_byobnet' could not be loaded .*Go online once.*pretrained=False"): self_train(done.table, tmp_path/'run', pretrained=True, **TINY)
    assert self_train(done.table, tmp_path/'run', **TINY).done == ['teacher', 'student']

def test_weights_of_another_network(done, tmp_path, capsys):
    (tmp_path/'w.safetensors').write_bytes(b'not weights')
    for path in (tmp_path/'w.safetensors', tmp_path):
        assert str(path) in one_error('label', capsys, path, done.path/'street/images', tmp_path/'labels')
