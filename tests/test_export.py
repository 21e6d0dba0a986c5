"""What leaves the package: networks as ONNX files, and labels for annotation tools and back.

CVAT and Label Studio are not installed here. `as_cvat_reads` and `as_label_studio_reads` read what we write by the
rules of these tools, without our code.
"""
import json, os, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftrain_nb.annotation import *
from selftrain_nb.datasets import seg_folder
from selftrain_nb.export import *
from selftrain_nb.labels import *
from selftrain_nb.models import seg_model
from selftrain_nb.predict import *
from selftrain_nb.table import *

SPACE = LabelSpace(['road', 'car', 'sky'], [(128, 64, 128), (0, 0, 142), (70, 130, 180)])
ONE = Views(flip=False)


def picture(size, seed=0):
    "A PIL image of (h, w)"
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))

def network(encoder='test_byobnet', size=None, seed=0, arch='fpn', **kwargs):
    torch.manual_seed(seed)
    return Predictor(seg_model(3, encoder, arch, **kwargs), SPACE, size, encoder, arch, model_kwargs=kwargs)


# --- ONNX

@pytest.mark.parametrize('encoder', ['test_byobnet', 'tf_efficientnet_lite0'])
def test_the_file_gives_the_classes_of_the_predictor_at_any_size(tmp_path, encoder):
    p = network(encoder)
    export_onnx(p, tmp_path/'a.onnx')
    images = [picture(s, i) for i, s in enumerate([(64, 96), (97, 131), (33, 70), (20, 25), (32, 32), (31, 200)])]
    for want, got in zip(p.predict(images, ONE), predict_onnx(tmp_path/'a.onnx', images)):
        assert got.shape == want.shape and got.dtype == np.uint8 and (got == want).mean() > .999

def test_the_working_size_and_the_class_names_are_in_the_file(tmp_path):
    p = network(size=48)
    export_onnx(p, tmp_path/'a.onnx')
    im = picture((90, 140))
    assert (predict_onnx(tmp_path/'a.onnx', im) == p.predict(im, ONE)).mean() > .999
    import onnxruntime
    session = onnxruntime.InferenceSession(tmp_path/'a.onnx')
    about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert (about['classes'], about['size'], about['predictor']) == (list(SPACE.names), 48, p.hash)
    assert [a.name for a in (*session.get_inputs(), *session.get_outputs())] == ['images', 'logits']

def test_files_arrays_and_several_images_are_taken(tmp_path):
    p, im = network(), picture((40, 70))
    export_onnx(p, tmp_path/'a.onnx')
    im.save(tmp_path/'im.png')
    want = predict_onnx(tmp_path/'a.onnx', im)
    for x in (str(tmp_path/'im.png'), np.asarray(im), im.convert('RGBA')):
        assert (predict_onnx(tmp_path/'a.onnx', x) == want).all()
    assert len(predict_onnx(tmp_path/'a.onnx', [im, im])) == 2

def test_what_was_put_around_a_network_is_exported_with_it(tmp_path):
    import onnxruntime
    a = replace(network(), class_weights=[.2, 1., 3.])
    for p in (a.adjusted(), a.tempered(3), Predictor.ensemble([a, network(seed=1)])):
        export_onnx(p, tmp_path/'a.onnx')
        im = picture((64, 96))
        assert (predict_onnx(tmp_path/'a.onnx', im) == p.predict(im, ONE)).mean() > .999
        x = np.asarray(im, np.float32).transpose(2, 0, 1)[None] / 255
        logits, = onnxruntime.InferenceSession(tmp_path/'a.onnx').run(None, {'images': x})
        assert np.allclose(torch.from_numpy(logits).softmax(1), p.probabilities([im], ONE), atol=1e-3)
    sizes = Predictor.ensemble([a, network(size=48, seed=1)])
    with pytest.raises(ValueError, match='working sizes'): export_onnx(sizes, tmp_path/'b.onnx')

def test_a_saved_predictor_and_bf16_are_exported_in_float32(tmp_path):
    p = network(bf16=True)
    p.save(tmp_path/'p.safetensors')
    export_onnx(tmp_path/'p.safetensors', tmp_path/'a.onnx', size=(64, 96))
    import onnxruntime
    assert onnxruntime.InferenceSession(tmp_path/'a.onnx').get_inputs()[0].shape == ['batch', 3, 64, 96]

def test_exporting_leaves_the_predictor_as_it_was(tmp_path):
    p = network()
    p.model.train()
    before, kind = p.hash, type(p.model)
    export_onnx(p, tmp_path/'a.onnx')
    assert p.hash == before and type(p.model) is kind and p.model.training
    assert sorted(os.listdir(tmp_path)) == ['a.onnx']

class Sly(torch.nn.Module):
    "A network that decides by the size of the image: a record of it is wrong at other sizes"
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)
    def forward(self, x): return self.conv(x) if x.shape[-1] > 100 else -self.conv(x)

def test_a_file_that_differs_from_its_network_is_not_written(tmp_path, capfd):
    sly = Predictor(Sly(), SPACE)
    with pytest.raises(ValueError, match=r'31x32.*size=\(512, 1024\)'): export_onnx(sly, tmp_path/'a.onnx')
    assert not os.listdir(tmp_path)
    export_onnx(sly, tmp_path/'a.onnx', size=(31, 32))
    assert (predict_onnx(tmp_path/'a.onnx', picture((31, 32))) == sly.predict(picture((31, 32)), ONE)).all()
    pool = network('resnet10t', arch='pspnet')
    with pytest.raises(ValueError, match='cannot be exported') as e: export_onnx(pool, tmp_path/'b.onnx')
    assert '\n' not in str(e.value)
    said = capfd.readouterr()
    assert len(said.out + said.err) < 1000  # PyTorch would print the whole network

@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_without_the_extra_one_error_says_how_to_get_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    told = r"pip install 'selftrain_nb\[export\]'"
    with pytest.raises(ImportError, match=told): export_onnx(network(), tmp_path/'a.onnx')
    with pytest.raises(ImportError, match=told): predict_onnx(tmp_path/'a.onnx', picture((9, 9)))


# --- folders for annotation tools

def draw(shape, seed, space=SPACE):
    "A mask with all classes and some void"
    mask = np.random.default_rng(seed).integers(0, len(space) + 1, (shape[0] // 4, shape[1] // 4)).astype(np.uint8)
    mask[mask == len(space)] = VOID
    return mask.repeat(4, 0).repeat(4, 1)

def make_table(folder, names, space=SPACE, shape=(24, 36)):
    "Images with labels under some names; every third is not labelled"
    images, labels = [], []
    for i, name in enumerate(names):
        path = folder/'data'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(shape, i).save(path)
        labels.append(None if i % 3 == 2 else folder/'masks'/f'{i}.png')
        if labels[-1]: write_mask(labels[-1], draw(shape, i, space))
        images.append(path)
    splits = ['val' if i == 1 else 'train' for i in range(len(names))]
    return SegTable.make(images, labels, space, group=[f'g{i}' for i in range(len(names))], split=splits)

NAMES = ['a.jpg', 'a.png', 'day/1.png', 'night/1.png', 'day/Straße 5 & 6.png', 'val/x.y.png', 'UP.PNG']

def masks_of(table):
    "{image bytes: mask or None}: images are recognised by what is in them"
    return {Path(r.image).read_bytes(): table.mask(i) if r.label else None for i, r in enumerate(table)}

def assert_same_masks(a, b):
    a, b = masks_of(a), masks_of(b)
    assert a.keys() == b.keys()
    for k in a: assert np.array_equal(a[k], b[k])

def cvat_things(file, thing_file, colours, names):
    "{class name: mask} of the two masks of an image"
    rgb = np.asarray(Image.open(file).convert('RGB'))
    ids = np.array([[colours[tuple(map(int, c))] for c in row] for row in rgb])  # KeyError: 'Undeclared color'
    assert np.array_equal(ids, np.asarray(Image.open(file)))  # a reader that looks at ids finds the same
    things = np.asarray(Image.open(thing_file))
    pairs = {(int(t), int(c)) for t, c in zip(things.ravel(), ids.ravel()) if t}  # thing 0 is no object
    assert len({t for t, _ in pairs}) == len(pairs)
    return {names[c]: things == t for t, c in pairs}

def as_cvat_reads(folder):
    "{image: {class name: mask}} of a folder, as Datumaro imports the format 'Segmentation mask 1.1'"
    lines = (folder/'labelmap.txt').read_text(encoding='utf-8').splitlines()
    names, rgb, parts, actions = zip(*[l.split(':') for l in lines if l and l[0] != '#'])
    colours = {tuple(map(int, c.split(','))): i for i, c in enumerate(rgb)}
    assert len(colours) == len(names)
    files = [p.relative_to(folder/'JPEGImages').as_posix() for p in (folder/'JPEGImages').rglob('*') if not p.is_dir()]
    images, out = [f.rpartition('.')[0] for f in files], {}
    for subset in sorted((folder/'ImageSets/Segmentation').glob('*.txt')):
        for item in filter(None, subset.read_text(encoding='utf-8').split('\n')):
            assert images.count(item) == 1
            file, things = (folder/kind/f'{item}.png' for kind in ('SegmentationClass', 'SegmentationObject'))
            out[item] = cvat_things(file, things, colours, names) if file.exists() else {}
    return out

SPACES = dict(three=SPACE, binary=LabelSpace(['background', 'crack'], [(0, 0, 0), (255, 255, 255)]),
              forty=LabelSpace([f'class {i}' for i in range(40)]), one=LabelSpace(['white'], [(255, 255, 255)]))

@pytest.mark.filterwarnings('ignore:.*is not the name of a split')
@pytest.mark.parametrize('name', SPACES)
def test_a_folder_is_read_by_cvat_and_by_us(tmp_path, name):
    space = SPACES[name]
    table = make_table(tmp_path, NAMES, space)
    export_folder(table, tmp_path/'out')
    read = as_cvat_reads(tmp_path/'out')
    assert len(read) == len(table)
    painted = sorted(sum(m.sum() for m in things.values()) for things in read.values())
    assert painted == sorted(0 if m is None else (m != VOID).sum() for m in masks_of(table).values())
    assert {n for things in read.values() for n in things} <= set(space.names)
    back = seg_folder(tmp_path/'out')
    assert back.space == space and sorted(back.df.split) == sorted(table.df.split)
    assert_same_masks(back, table)
    again = read_corrections(tmp_path/'out')
    assert set(again.df.kind) == {'real'} and not len(read_corrections(tmp_path/'out', changed=True))
    assert_same_masks(again, table.labelled)

def test_links_instead_of_copies(tmp_path):
    table = make_table(tmp_path, ['a.png', 'b.png'])
    export_folder(table, tmp_path/'out', link=True)
    export_folder(table, tmp_path/'out', link=True)
    assert all(p.is_symlink() for p in (tmp_path/'out/JPEGImages').iterdir())
    assert_same_masks(seg_folder(tmp_path/'out'), table)

def test_the_same_call_goes_on_and_keeps_what_people_have_changed(tmp_path):
    table = make_table(tmp_path, ['a.png', 'b.png'])
    export_folder(table, tmp_path/'out')
    write_tool_mask(tmp_path/'out', 'a.png', np.zeros((24, 36), np.uint8), SPACE)
    (tmp_path/'out/SegmentationClass/b.png').unlink()  # as if the first call had been stopped
    export_folder(table, tmp_path/'out')
    new = read_corrections(tmp_path/'out', changed=True)
    assert [Path(p).name for p in new.df.image] == ['a.png'] and not new.mask(0).any()
    with pytest.raises(ValueError, match='holds other work'): export_folder(table[:1], tmp_path/'out')
    (tmp_path/'full').mkdir()
    (tmp_path/'full/mine.txt').write_text('mine')
    with pytest.raises(ValueError, match='not empty'): export_folder(table, tmp_path/'full')

def test_thresholds_count_and_turned_photos_fit(tmp_path):
    table = make_table(tmp_path, ['a.png', 'b.jpg'], shape=(24, 36))
    conf = np.full((24, 36), 255, np.uint8)
    conf[:12] = 10
    for i in range(2): Image.fromarray(conf).save(tmp_path/f'conf{i}.png')
    pseudo = table._like(table.df.assign(kind='pseudo', conf=[str(tmp_path/f'conf{i}.png') for i in range(2)]),
                         {'ids': Remap.identity(3, min_conf=.5)})
    exif = Image.Exif()
    exif[274] = 6  # stored on its side
    picture((36, 24)).save(table.df.image[1], exif=exif)
    export_folder(pseudo, tmp_path/'out')
    back = seg_folder(tmp_path/'out')
    assert_same_masks(back, pseudo)
    for i in range(2): assert back.image(i).size == (36, 24) and (back.mask(i)[:12] == VOID).all()

def test_a_bad_file_is_left_out_and_told(tmp_path):
    table = make_table(tmp_path, ['a.png', 'b.png', 'c.png', 'd.png'])
    Path(table.df.image[0]).write_bytes(b'no image')
    Path(table.df.label[3]).unlink()
    with pytest.warns(UserWarning, match='2 of 4 images are left out.*a.png'): export_folder(table, tmp_path/'out')
    assert len(as_cvat_reads(tmp_path/'out')) == 2
    with pytest.raises((OSError, ValueError), match='a.png'): export_folder(table, tmp_path/'strict', strict=True)

@pytest.mark.parametrize('names', [('a:b', 'c'), ('#a', 'c'), ('void', 'c'), ('a', 'ignore')])
def test_class_names_that_a_tool_cannot_read_are_named(tmp_path, names):
    with pytest.raises(ValueError, match='rename these classes'): write_label_map(tmp_path, LabelSpace(names))


# --- the way back

def cvat_export(out, back, rows, prefix='', names=None, change=lambda m: m):
    "What CVAT exports: colours of its own, in an order of its own, background first"
    names = names or [*SPACE.names][::-1]
    colours = {n: (9 * i + 3, 250 - 11 * i, 77) for i, n in enumerate(names)}
    lines = ['# label:color_rgb:parts:actions', 'background:0,0,0::']
    lines += [f'{n}:{",".join(map(str, c))}::' for n, c in colours.items()]
    back.mkdir(parents=True, exist_ok=True)
    (back/'labelmap.txt').write_text('\n'.join(lines), encoding='utf-8')
    for name, mask in rows.items():
        rgb, mask = np.zeros((*mask.shape, 3), np.uint8), change(mask)
        for k, n in enumerate(SPACE.names): rgb[mask == k] = colours.get(n, (0, 0, 0))
        file = back/'SegmentationClass'/f'{prefix}{name}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(file)

def exported(tmp_path, names=('a.jpg', 'a.png', 'day/1.png')):
    table = make_table(tmp_path, names)
    export_folder(table, tmp_path/'out')
    keys = [Path(n).as_posix() for n in ('a.jpg', 'a.png')]  # masks keep the extension where the stem is not enough
    return table, {k: table.mask(i) for i, k in enumerate(keys)}

@pytest.mark.parametrize('prefix', ['', 'JPEGImages/', 'share/JPEGImages/'])
def test_masks_come_back_in_other_colours_and_below_other_folders(tmp_path, prefix):
    table, rows = exported(tmp_path)
    cvat_export(tmp_path/'out', tmp_path/'back', rows, prefix, change=lambda m: np.where(m == VOID, 1, m))
    new = read_corrections(tmp_path/'out', tmp_path/'back')
    assert len(new) == 2 and list(new.df.split) == ['train', 'val'] and list(new.df.group) == ['g0', 'g1']
    for i, mask in enumerate(rows.values()): assert np.array_equal(new.mask(i), np.where(mask == VOID, 1, mask))
    assert list(new.df.image) == list(table.df.image[:2]) and list(new.df.conf) == ['', '']

def test_only_what_was_changed_and_the_truth_stays(tmp_path):
    table, rows = exported(tmp_path)
    hidden = table._like(table.df.assign(truth=table.df.label, kind='pseudo'))
    export_folder(hidden, tmp_path/'out2')
    some = {'a.jpg': rows['a.jpg'], 'a.png': np.where(rows['a.png'] == 0, VOID, rows['a.png'])}
    cvat_export(tmp_path/'out2', tmp_path/'back', some)
    new = read_corrections(tmp_path/'out2', tmp_path/'back', changed=True)
    assert [Path(p).name for p in new.df.image] == ['a.png'] and (new.mask(0) != 0).all()
    assert np.array_equal(new.mask(0, 'truth'), rows['a.png'])
    new.save(tmp_path/'new.csv')
    assert np.array_equal(SegTable.load(tmp_path/'new.csv').mask(0), some['a.png'])

def test_corrections_replace_images_without_a_label(tmp_path):
    table, rows = exported(tmp_path)
    cvat_export(tmp_path/'out', tmp_path/'back', rows)
    bare = table._like(table.df.assign(label='', kind='none', truth=table.df.label))
    both = bare + read_corrections(tmp_path/'out', tmp_path/'back')
    assert len(both) == 3 and list(both.df.kind) == ['none', 'real', 'real']

def test_what_does_not_fit_is_named(tmp_path):
    table, rows = exported(tmp_path)
    cvat_export(tmp_path/'out', tmp_path/'more', rows, names=['road', 'car', 'sky', 'tram'])
    with pytest.raises(ValueError, match='tram'): read_corrections(tmp_path/'out', tmp_path/'more')
    cvat_export(tmp_path/'out', tmp_path/'lost', {'other': rows['a.jpg']})
    told = "'other' belongs to none of the 3 images"
    with pytest.raises(ValueError, match=told): read_corrections(tmp_path/'out', tmp_path/'lost')
    (tmp_path/'empty').mkdir()
    told = 'no masks in a folder SegmentationClass'
    with pytest.raises(FileNotFoundError, match=told): read_corrections(tmp_path/'out', tmp_path/'empty')
    with pytest.raises(FileNotFoundError): read_corrections(tmp_path/'empty')


# --- Label Studio

def as_label_studio_reads(data, height, width):
    "A mask from the bytes of a brush, bit by bit, by the rules of Label Studio's converter"
    bits = ''.join(f'{b:08b}' for b in data)
    at = 0
    def read(n):
        nonlocal at
        at += n
        return int(bits[at - n:at], 2)
    num, word, sizes, out = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)], []
    assert (num, word) == (height * width * 4, 8)
    while len(out) < num:
        if read(1): n, v = read(sizes[read(2)]) + 1, read(word)
        else: n, v = 1, [read(sizes[read(2)]), read(word)][1]
        out += [v] * n
    assert len(out) == num
    return np.array(out).reshape(height, width, 4)[..., 3] > 128

@pytest.mark.parametrize('shape', [(1, 1), (7, 5), (24, 36), (300, 260)])
@pytest.mark.parametrize('share', [0, .02, .5, 1])
def test_brushes_of_all_kinds(shape, share):
    on = np.random.default_rng(1).random(shape) < share
    assert np.array_equal(as_label_studio_reads(encode_brush(on), *shape), on)
    assert np.array_equal(decode_brush(encode_brush(on), shape), on)

def test_a_brush_with_single_values_is_read():
    "Label Studio itself writes runs of different values, too"
    words = [(12, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    words += [(0, 1), (0, 2), (7, 3), *[(255 * (i % 4 == 3), 8) for i in range(8)], (1, 1), (0, 2), (3, 3), (0, 8)]
    bits = ''.join(f'{v:0{n}b}' for v, n in words)
    data = [int(bits[i:i+8].ljust(8, '0'), 2) for i in range(0, len(bits), 8)]
    assert decode_brush(data, (1, 3)).tolist() == [[True, True, False]]

def test_tasks_show_the_masks_and_come_back_as_masks(tmp_path):
    table = make_table(tmp_path, NAMES)
    export_folder(table, tmp_path/'out')
    label_studio_tasks(tmp_path/'out')
    tasks = json.loads((tmp_path/'out/label_studio.json').read_text(encoding='utf-8'))
    assert len(tasks) == len(NAMES) and sum('predictions' in t for t in tasks) == len(table.labelled)
    painted = 0
    for r in (r for t in tasks for p in t.get('predictions', ()) for r in p['result']):
        told = r['type'], r['from_name'], r['to_name'], r['value']['format']
        assert told == ('brushlabels', 'label', 'image', 'rle')
        painted += as_label_studio_reads(r['value']['rle'], r['original_height'], r['original_width']).sum()
    assert painted == sum((m != VOID).sum() for m in masks_of(table).values() if m is not None)
    done = [dict(data=t['data'], annotations=t.get('predictions', [])) for t in tasks]
    done[0]['annotations'] = [dict(done[0]['annotations'][0], was_cancelled=True)]
    (tmp_path/'done.json').write_text(json.dumps(done), encoding='utf-8')
    label_studio_masks(tmp_path/'done.json', tmp_path/'back', SPACE)
    new = read_corrections(tmp_path/'out', tmp_path/'back')
    assert len(new) == len(table.labelled) - 1
    assert not len(read_corrections(tmp_path/'out', tmp_path/'back', changed=True))

def test_uploaded_images_are_found(tmp_path):
    table = make_table(tmp_path, ['a.png', 'b.png'])
    export_folder(table, tmp_path/'out')
    task = brush_task('/data/upload/3/0a1b2c3d-b.png', np.ones((24, 36), np.uint8), SPACE)
    (tmp_path/'done.json').write_text(json.dumps([dict(task, annotations=task['predictions'])]))
    label_studio_masks(tmp_path/'done.json', tmp_path/'back', SPACE)
    new = read_corrections(tmp_path/'out', tmp_path/'back')
    assert [Path(p).name for p in new.df.image] == ['b.png'] and (new.mask(0) == 1).all()

def test_a_task_that_cannot_be_read_is_named(tmp_path):
    task = brush_task('/data/a.png', np.ones((24, 36), np.uint8), SPACE)
    result = task['predictions'][0]['result'][0]
    file, tram = tmp_path/'done.json', dict(result['value'], brushlabels=['tram'])
    for change, said in ((dict(type='polygonlabels'), 'only the brush'), (dict(original_width=7), 'image of 7x24'),
                         (dict(value=tram), "no class 'tram'")):
        file.write_text(json.dumps([dict(task, annotations=[dict(result=[{**result, **change}])])]))
        with pytest.raises(ValueError, match=said) as e: label_studio_masks(file, tmp_path/'back', SPACE)
        assert 'a.png' in str(e.value)
