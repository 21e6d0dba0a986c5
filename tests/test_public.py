"Tiny copies of public data sets, with their real folder and file names: what is read, and what is said when a part is missing or the folder is the wrong one; mappings between their classes."
import json, shutil
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from selftrain_nb.all import *
from selftrain_nb.cli import open_data


def make(root, images, labels, text={}):
    "Write 8x4 images, labels of one id, and text files"
    for name in images: (root/name).parent.mkdir(parents=True, exist_ok=True); Image.new('RGB', (8, 4), (90, 90, 90)).save(root/name)
    for name, i in labels.items(): (root/name).parent.mkdir(parents=True, exist_ok=True); Image.fromarray(np.full((4, 8), i, np.uint8)).save(root/name)
    for name, t in text.items(): (root/name).parent.mkdir(parents=True, exist_ok=True); (root/name).write_text(t)
    return root


CITY = {'train/aachen/aachen_000000_000019': 7, 'train/zurich/zurich_000121_000019': 26, 'val/frankfurt/frankfurt_000000_000294': 33, 'test/berlin/berlin_000000_000019': 0}
EXTRA = 'train_extra/erlangen/erlangen_000000_000000'

def cityscapes_fine(root):
    return make(root, [f'leftImg8bit/{f}_leftImg8bit.png' for f in (*CITY, EXTRA)], {f'gtFine/{f}_gtFine_{k}.png': i for f, i in CITY.items() for k in ('labelIds', 'instanceIds', 'color')}, {f'gtFine/{f}_gtFine_polygons.json': '{}' for f in CITY})

def cityscapes_coarse(root):
    rows = {f: i for f, i in CITY.items() if 'test' not in f} | {EXTRA: 21}
    return make(root, [f'leftImg8bit/{f}_leftImg8bit.png' for f in rows], {f'gtCoarse/{f}_gtCoarse_labelIds.png': i for f, i in rows.items()})

def kitti_semantics(root):
    return make(root, [f'{s}/image_2/00000{i}_10.png' for s in ('training', 'testing') for i in range(5)], {f'training/{k}/00000{i}_10.png': 11 for i in range(5) for k in ('semantic', 'instance')} | {f'training/semantic_rgb/00000{i}_10.png': 3 for i in range(5)})

VISTAS = ['animal--bird', 'construction--flat--road', 'nature--sky', 'void--unlabeled']
def vistas_config(names): return json.dumps(dict(labels=[dict(name=n, readable=n.split('--')[-1], color=[9 * i, 1, 2], evaluate=n != 'void--unlabeled', instances=False) for i, n in enumerate(names)]))

def vistas_1(root):
    return make(root, [f'{s}/images/{i}.jpg' for s in ('training', 'validation', 'testing') for i in 'ab'], {f'{s}/{k}/{i}.png': j for s in ('training', 'validation') for i, j in zip('ab', (1, 3)) for k in ('labels', 'instances')}, {'config.json': vistas_config(VISTAS)})

def vistas_2(root):
    labels = {f'{s}/v{v}/labels/{i}.png': j for s in ('training', 'validation') for v in ('1.2', '2.0') for i, j in zip('ab', (1, 3) if v == '1.2' else (2, 4))}
    return make(root, [f'{s}/images/{i}.jpg' for s in ('training', 'validation', 'testing') for i in 'ab'], labels, {'config_v1.2.json': vistas_config(VISTAS), 'config_v2.0.json': vistas_config(['animal--cow', *VISTAS])})

def bdd(root):
    return make(root, [f'images/10k/{s}/{s}0.jpg' for s in ('train', 'val', 'test')] + [f'images/100k/train/{i}.jpg' for i in ('train0', 'val0', 'new')] + ['images/100k/val/x.jpg', 'images/100k/test/y.jpg'],
                {f'labels/sem_seg/{k}/{s}/{s}0.png': 13 for s in ('train', 'val') for k in ('masks', 'colormaps')})

def bdd_old(root): return make(root, [f'seg/images/{s}/{s}0.jpg' for s in ('train', 'val', 'test')], {f'seg/labels/{s}/{s}0_train_id.png': 13 for s in ('train', 'val')})

def voc(root):
    return make(root, [f'VOCdevkit/VOC2012/JPEGImages/2007_00000{i}.jpg' for i in range(4)], {f'VOCdevkit/VOC2012/{k}/2007_00000{i}.png': j for i, j in ((0, 15), (1, 255)) for k in ('SegmentationClass', 'SegmentationObject')},
                {f'VOCdevkit/VOC2012/ImageSets/{k}/{s}.txt': t for k in ('Segmentation', 'Main') for s, t in dict(train='2007_000000\n', val='2007_000001\n', trainval='2007_000000\n2007_000001\n').items()})

DRIVES = ['train/0/503', 'val/1/9000', 'test/2/77']
def idd_full(root): return make(root, [f'leftImg8bit/{d}_leftImg8bit.png' for d in DRIVES], {f'gtFine/{d}_gtFine_labellevel3Ids.png': 8 for d in DRIVES[:2]}, {f'gtFine/{d}_gtFine_polygons.json': '{}' for d in DRIVES[:2]})


# maker, reader, (train labels, train without, val, test without), name of the class of the first training label
SETS = {
    'Cityscapes': (cityscapes_fine, cityscapes, (2, 1, 1, 1), 'road'),
    'Cityscapes, coarse': (cityscapes_coarse, lambda p, **k: cityscapes(p, 'coarse', **k), (3, 0, 1, 0), 'road'),
    'KITTI': (kitti_semantics, kitti, (5, 0, 0, 5), 'building'),
    'Mapillary 1.2': (vistas_1, mapillary, (2, 0, 2, 2), 'construction--flat--road'),
    'Mapillary 2.0': (vistas_2, mapillary, (2, 0, 2, 2), 'construction--flat--road'),
    'Mapillary 1.2 in the archive of 2.0': (vistas_2, lambda p, **k: mapillary(p, '1.2', **k), (2, 0, 2, 2), 'construction--flat--road'),
    'BDD100K': (bdd, bdd100k, (1, 1, 1, 1), 'car'),
    'BDD100K, older': (bdd_old, bdd100k, (1, 0, 1, 1), 'car'),
    'VOC': (voc, voc2012, (1, 2, 1, 0), 'person'),
    'IDD': (idd_full, idd, (1, 0, 1, 1), 'autorickshaw'),
}

@pytest.mark.parametrize('name', SETS)
@pytest.mark.filterwarnings('error')
def test_what_is_read(tmp_path, name):
    make, read, counts, cls = SETS[name]
    t = read(make(tmp_path/'data'))
    assert (len(t.train.real), len(t.train.unlabelled), len(t.val.real), len(t.test.unlabelled)) == counts and len(t) == sum(counts)
    assert t.space.names[t.train.real.mask(0).min()] == cls
    assert len(t.check()) == 0 and not t.df.image.duplicated().any()
    assert all((m := t.mask(i)).max(where=m != VOID, initial=0) < len(t.space) for i, r in enumerate(t) if r.label)

PARTS = {  # a folder or file without which nothing can be read, and what the error names
    'Cityscapes': ('gtFine', 'missing: gtFine'), 'Cityscapes, coarse': ('gtCoarse', 'missing: gtCoarse'), 'KITTI': ('training/semantic', 'missing: training/semantic'), 'Mapillary 1.2': ('config.json', 'none is here'),
    'Mapillary 2.0': ('validation', 'missing: validation/images'), 'BDD100K': ('labels', 'missing: labels/sem_seg/masks'), 'BDD100K, older': ('seg/images', r'missing: (images/10k|seg/images)'),
    'VOC': ('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt', 'val.txt: no such list'), 'IDD': ('leftImg8bit', 'missing: leftImg8bit')}

@pytest.mark.parametrize('name', PARTS)
def test_a_missing_part(tmp_path, name):
    make, read, *_ = SETS[name]
    root, (part, says) = make(tmp_path/'data'), PARTS[name]
    shutil.rmtree(root/part) if (root/part).is_dir() else (root/part).unlink()
    with pytest.raises(FileNotFoundError, match=says) as e: read(root)
    assert str(root) in str(e.value)

@pytest.mark.parametrize('name', SETS)
def test_one_folder_too_high_or_too_low(tmp_path, name):
    make, read, *_ = SETS[name]
    root = make(tmp_path/'somewhere'/'data')
    right = root/'VOCdevkit/VOC2012' if name == 'VOC' else root
    for wrong in (right.parent.parent if name == 'VOC' else tmp_path/'somewhere', next(p for p in sorted(right.iterdir()) if p.is_dir())):
        if name == 'VOC' and wrong == root: continue  # VOCdevkit/ is gone into
        with pytest.raises(FileNotFoundError, match='did you mean') as e: read(wrong)
        assert f'did you mean {right}' in str(e.value)
    with pytest.raises(FileNotFoundError, match='no such folder'): read(tmp_path/'nowhere')

@pytest.mark.parametrize('name', SETS)
def test_half_unpacked(tmp_path, name):
    make, read, counts, _ = SETS[name]
    t = read(make(tmp_path/'data'))
    Path(t.train.real.df.label[0]).unlink()
    with pytest.raises(ValueError, match=r'images of split train have no label; the first: .*strict=False'): read(tmp_path/'data')
    assert len(read(tmp_path/'data', strict=False).train.real) == counts[0] - 1

def test_an_unknown_id_is_named(tmp_path):
    t = cityscapes(make(cityscapes_fine(tmp_path/'data'), [], {'gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png': 99}))
    bad = t.check()
    assert len(bad) == 1 and 'unknown id 99' in bad.problem[0]

def test_the_command_line_knows_them(tmp_path):
    assert open_data(bdd(tmp_path/'bdd100k')).space == CITYSCAPES
    assert open_data(kitti_semantics(tmp_path/'x'), 'kitti').space == CITYSCAPES

def test_a_bad_config(tmp_path):
    (vistas_1(tmp_path)/'config.json').write_text('{"labels": 3}')
    with pytest.raises(ValueError, match='no list of labels'): mapillary(tmp_path)


# Mappings

SHIPPED = dict(CITYSCAPES_TO_CAMVID=CITYSCAPES_TO_CAMVID, CAMVID_TO_CITYSCAPES=CAMVID_TO_CITYSCAPES, CAMVID_TO_IDD_LITE=CAMVID_TO_IDD_LITE, IDD_LITE_TO_CAMVID=IDD_LITE_TO_CAMVID, CITY_A_TO_B=CITY_A_TO_B, CITY_B_TO_A=CITY_B_TO_A)

@pytest.mark.parametrize('name', SHIPPED)
def test_there_and_back(name):
    m = SHIPPED[name]
    reached = [b for b in m.to.values() if b]
    if len(set(reached)) < len(reached):
        with pytest.raises(ValueError, match='no inverse'): m.inverse()
        return
    assert m.inverse().inverse() == m
    ids = np.arange(256).astype(np.uint8)
    there = m.lut[ids]
    assert all(m.inverse().lut[b] == a for a, b in enumerate(there) if b != VOID)

@st.composite
def mappings(draw):
    a, b = (LabelSpace([f'{x}{i}' for i in range(draw(st.integers(1, 8)))]) for x in 'ab')
    pairs = {n: draw(st.sampled_from([None, *b.names])) for n in a.names}
    return Mapping(a, b, pairs, [n for n in b.names if n not in pairs.values()])

@settings(max_examples=100, deadline=None)
@given(mappings(), st.integers(0, 1000))
def test_mapped_masks_by_hand(m, seed):
    ids = np.random.default_rng(seed).choice([*range(len(m.source)), VOID], (5, 6))
    by_hand = [[VOID if i == VOID or (b := m.to[m.source.names[i]]) is None else m.target.index(b) for i in row] for row in ids]
    assert (m.lut[ids] == by_hand).all()
    assert m.then(Mapping(m.target, m.target, {n: n for n in m.target.names})) == m

@settings(max_examples=60, deadline=None)
@given(mappings(), st.data())
def test_a_hole_is_named(m, data):
    lost = data.draw(st.sampled_from(m.source.names))
    with pytest.raises(ValueError, match=f'without a place.*{lost}|that nothing becomes'): Mapping(m.source, m.target, {k: v for k, v in m.to.items() if k != lost}, m.new)

def test_mapped_tables_of_pseudo_labels(tmp_path):
    "Thresholds by class go along; of several classes that become one, the strictest counts"
    make(tmp_path, ['a.png'], {'l.png': 1, 'c.png': 128})
    t = SegTable.make([tmp_path/'a.png'], [tmp_path/'l.png'], LabelSpace(['x', 'y', 'z']), Remap.identity(3, min_conf=[0., .4, .6]), kind='pseudo', conf=str(tmp_path/'c.png'))
    m = Mapping(t.space, LabelSpace(['u', 'v']), dict(x='u', y='v', z='v'))
    assert t.mask(0).max() == 1 and m(t).mask(0).max() == VOID
    assert m(t).remaps['ids'].min_conf == [0., .6]
