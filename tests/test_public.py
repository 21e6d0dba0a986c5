"Tiny copies of public data sets, with their real folder and file names: what is read, and what is said when a part is missing or the folder is the wrong one; mappings between their classes."
import json, shutil, warnings
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import known
from selftrain_nb.all import *
from selftrain_nb.cli import open_data


def make(root, images, labels, text={}):
    "Write 8x4 images, labels of one id (or colour, or an array), and text files"
    for name in images: (root/name).parent.mkdir(parents=True, exist_ok=True); Image.new('RGB', (8, 4), (90, 90, 90)).save(root/name)
    for name, i in labels.items(): (root/name).parent.mkdir(parents=True, exist_ok=True); Image.fromarray(np.uint8(i if isinstance(i, np.ndarray) else np.full((4, 8), i) if np.isscalar(i) else np.full((4, 8, 3), i))).save(root/name)
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

def vistas_config(names): return json.dumps(dict(labels=[dict(name=n, readable=n.split('--')[-1], color=[255] * 3 if 'marking' in n else [2 * i, 1, 2], evaluate=n != 'void--unlabeled', instances=False) for i, n in enumerate(names)]))

def vistas_1(root):
    return make(root, [f'{s}/images/{i}.jpg' for s in ('training', 'validation', 'testing') for i in 'ab'], {f'{s}/{k}/{i}.png': j for s in ('training', 'validation') for i, j in zip('ab', (13, 65)) for k in ('labels', 'instances')}, {'config.json': vistas_config(known.VISTAS_66)})

def vistas_2(root):
    labels = {f'{s}/v{v}/labels/{i}.png': j for s in ('training', 'validation') for v in ('1.2', '2.0') for i, j in zip('ab', (13, 65) if v == '1.2' else (21, 123))}
    return make(root, [f'{s}/images/{i}.jpg' for s in ('training', 'validation', 'testing') for i in 'ab'], labels, {'config_v1.2.json': vistas_config(known.VISTAS_66), 'config_v2.0.json': vistas_config(known.VISTAS_124)})

def bdd(root):
    return make(root, [f'images/10k/{s}/{s}0.jpg' for s in ('train', 'val', 'test')] + [f'images/100k/train/{i}.jpg' for i in ('train0', 'val0', 'new')] + ['images/100k/val/x.jpg', 'images/100k/test/y.jpg'],
                {f'labels/sem_seg/{k}/{s}/{s}0.png': 13 for s in ('train', 'val') for k in ('masks', 'colormaps')})

def bdd_old(root): return make(root, [f'seg/images/{s}/{s}0.jpg' for s in ('train', 'val', 'test')], {f'seg/labels/{s}/{s}0_train_id.png': 13 for s in ('train', 'val')})

def voc(root):
    return make(root, [f'VOCdevkit/VOC2012/JPEGImages/2007_00000{i}.jpg' for i in range(4)], {f'VOCdevkit/VOC2012/{k}/2007_00000{i}.png': j for i, j in ((0, 15), (1, 255)) for k in ('SegmentationClass', 'SegmentationObject')},
                {f'VOCdevkit/VOC2012/ImageSets/{k}/{s}.txt': t for k in ('Segmentation', 'Main') for s, t in dict(train='2007_000000\n', val='2007_000001\n', trainval='2007_000000\n2007_000001\n').items()})

DRIVES = ['train/0/503', 'val/1/9000', 'test/2/77']
def idd_full(root): return make(root, [f'leftImg8bit/{d}_leftImg8bit.png' for d in DRIVES], {f'gtFine/{d}_gtFine_labellevel3Ids.png': 8 for d in DRIVES[:2]}, {f'gtFine/{d}_gtFine_polygons.json': '{}' for d in DRIVES[:2]})


FRAMES = dict(zip(['0016E5_00390', '0001TP_006690', '0006R0_f00930', '0016E5_07959', 'Seq05VD_f00000', '0001TP_008550'], ['train'] * 3 + ['val', 'test', 'test']))
CODES = sorted(known.CAMVID_32, key=str.lower)
def camvid_fastai(root): return make(root, [f'images/{f}.png' for f in FRAMES], {f'labels/{f}_P.png': CODES.index('Car') for f in FRAMES}, {'codes.txt': '\n'.join(CODES) + '\n', 'valid.txt': '0016E5_07959.png\n'})

def camvid_authors(root):
    return make(root, [f'701_StillsRaw_full/{f}.png' for f in FRAMES], {f'LabeledApproved_full/{f}_L.png': known.rgb('c0 80 c0')[0] for f in FRAMES},
                {'label_colors.txt': ''.join('{} {} {}\t\t{}\n'.format(*known.rgb(c)[0], n) for n, (c, _) in known.CAMVID_32.items())})

def camvid_segnet(root):
    lists = {f'{s}.txt': ''.join(f'/SegNet/CamVid/{s}/{f}.png /SegNet/CamVid/{s}annot/{f}.png\n' for f, t in FRAMES.items() if t == s) for s in ('train', 'val', 'test')}
    return make(root, [f'{s}/{f}.png' for f, s in FRAMES.items()], {f'{s}annot/{f}.png': 8 for f, s in FRAMES.items()}, lists)

LITE = {'train/12/903127': 3, 'train/24/024541': 0, 'val/3/0000': 6}
def idd_archive(root):
    return make(root, [f'leftImg8bit/{f}_image.jpg' for f in (*LITE, 'test/5/0001')], {f'gtFine/{f}_{e}label.png': i for f, i in LITE.items() for e in ('', 'inst_')})

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
    'IDD-lite': (idd_archive, idd_lite, (2, 1, 1, 0), 'vehicles'),
    'CamVid of fastai': (camvid_fastai, camvid, (3, 0, 1, 0), 'Car'),
    'CamVid of fastai, 11 classes': (camvid_fastai, lambda p, **k: camvid(p, classes=11, **k), (3, 0, 1, 0), 'Car'),
    'CamVid of its authors': (camvid_authors, camvid, (3, 0, 1, 0), 'Car'),
    'CamVid of SegNet': (camvid_segnet, camvid, (3, 0, 1, 0), 'Car'),
}

@pytest.mark.parametrize('name', SETS)
@pytest.mark.filterwarnings('error')
def test_what_is_read(tmp_path, name):
    make, read, counts, cls = SETS[name]
    t = read(make(tmp_path/'data'))
    assert (len(t.train.real), len(t.train.unlabelled), len(t.val.real), len(t.test.unlabelled)) == counts
    assert len(t) == sum(counts) + len(t.test.real)  # CamVid's test has labels
    assert t.space.names[t.train.real.mask(0).min()] == cls
    assert len(t.check()) == 0 and not t.df.image.duplicated().any()
    assert all((m := t.mask(i)).max(where=m != VOID, initial=0) < len(t.space) for i, r in enumerate(t) if r.label)

@pytest.mark.parametrize('name', SETS)
def test_from_within_and_through_a_link(tmp_path, monkeypatch, name):
    make, read, *_ = SETS[name]
    n = len(read(make(tmp_path/'data')))
    (tmp_path/'link').symlink_to(tmp_path/'data')
    for here, path in ((tmp_path/'data', '.'), (tmp_path, 'data/'), (tmp_path, 'link')):
        monkeypatch.chdir(here)
        assert len(read(path)) == n

PARTS = {  # a folder or file without which nothing can be read, and what the error names
    'Cityscapes': ('gtFine', 'missing: gtFine'), 'Cityscapes, coarse': ('gtCoarse', 'missing: gtCoarse'), 'KITTI': ('training/semantic', 'missing: training/semantic'), 'Mapillary 1.2': ('config.json', 'none is here'),
    'Mapillary 2.0': ('validation', 'missing: validation/images'), 'BDD100K': ('labels', 'missing: labels/sem_seg/masks'), 'BDD100K, older': ('seg/images', 'missing: seg/images'),
    'VOC': ('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt', 'missing: ImageSets/Segmentation/val.txt'), 'IDD': ('leftImg8bit', 'missing: leftImg8bit'), 'IDD-lite': ('gtFine', 'missing: gtFine'),
    'CamVid of fastai': ('codes.txt', 'missing: codes.txt'), 'CamVid of its authors': ('label_colors.txt', 'missing: label_colors.txt'), 'CamVid of SegNet': ('trainannot', 'missing: trainannot')}

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

@pytest.mark.parametrize('name', [n for n in SETS if n != 'VOC'])  # whose lists name the image that is missing
def test_half_unpacked_images(tmp_path, name):
    make, read, counts, _ = SETS[name]
    t = read(make(tmp_path/'data'))
    Path(t.train.real.df.image[0]).unlink()
    with pytest.raises(ValueError, match=r'1 of \d+ labels have no image; the first: .*strict=False'): read(tmp_path/'data')
    with pytest.warns(UserWarning, match='1 of .* have no image'): assert len(read(tmp_path/'data', strict=False).train.real) == counts[0] - 1

@pytest.mark.parametrize('name', [n for n in SETS if 'CamVid' not in n and n != 'KITTI'])
def test_a_split_without_anything(tmp_path, name):
    make, read, *_ = SETS[name]
    for r in read(make(tmp_path/'data')).val: Path(r.image).unlink(); Path(r.label).unlink()
    if name == 'VOC': (tmp_path/'data/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt').write_text('')
    with pytest.raises(ValueError, match='split val has no images'): read(tmp_path/'data')
    assert len(read(tmp_path/'data', strict=False).val) == 0

def test_half_unpacked_images_of_voc(tmp_path):
    t = voc2012(voc(tmp_path))
    Path(t.train.real.df.image[0]).unlink()
    with pytest.raises(ValueError, match='1 of 2 labels have no image'): voc2012(tmp_path)
    with pytest.raises(ValueError, match="train.txt, line 1: no image '2007_000000'"): voc2012(tmp_path, strict=False)

def test_what_lies_beside(tmp_path):
    "Files that official scripts and further archives put into the same folders"
    c = make(cityscapes_fine(tmp_path/'c'), ['leftImg8bit/demoVideo/stuttgart_00/stuttgart_00_000000_000001_leftImg8bit.png'],
             {f'gtFine/train/aachen/aachen_000000_000019_gtFine_{k}.png': 1 for k in ('labelTrainIds', 'instanceTrainIds')} | {'gtFine/cityscapes_panoptic_train/aachen_000000_000019_gtFine_panoptic.png': 3})
    i = make(idd_full(tmp_path/'i'), [], {f'gtFine/train/0/503_gtFine_{k}.png': 1 for k in ('instancelevel3Ids', 'labelColors')} | {'gtFine/train_panoptic/503_gtFine_panopticlevel3Ids.png': 1})
    v = make(voc(tmp_path/'v'), ['VOCdevkit/VOC2012/JPEGImages/2008_000006.jpg'], {}, {'VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt': '2008_000006\n'})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(cityscapes(c)) == 5 and len(cityscapes(c, extra=False)) == 4 and len(idd(i)) == 3
        t = voc2012(v)
    lists = make(voc(tmp_path/'w'), [], {}, {'VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt': '2008_000006\n'})
    assert len(voc2012(lists)) == 4  # the list of a test whose images are not here
    assert [Path(r.image).stem for r in t.test] == ['2008_000006'] and len(t.train.unlabelled) == 2 and len(voc2012(v, extra=False)) == 3
    c = cityscapes_coarse(tmp_path/'coarse'); shutil.rmtree(c/'leftImg8bit/train_extra')
    with pytest.warns(UserWarning, match='no train_extra'): assert len(cityscapes(c, 'coarse')) == 3

def test_groups_and_shares(tmp_path):
    t = kitti(kitti_semantics(tmp_path), val=.4)
    assert len(t.groups) == 10 and (len(t.train), len(t.val)) == (3, 2)
    with pytest.raises(ValueError, match='at least 0 and below 1'): kitti(tmp_path, val=40)


# Tables

ID_MAPS = {  # label that holds every id once, reader, what each is called
    'Cityscapes': (cityscapes_fine, cityscapes, np.arange(34), known.CITYSCAPES_BY_ID), 'KITTI': (kitti_semantics, kitti, np.arange(34), known.CITYSCAPES_BY_ID), 'BDD100K': (bdd, bdd100k, np.arange(19), known.NINETEEN),
    'VOC': (voc, voc2012, np.arange(21), known.VOC), 'IDD': (idd_full, idd, np.arange(26), known.IDD), 'IDD-lite': (idd_archive, idd_lite, np.arange(7), known.IDD_LITE),
    'Mapillary 1.2': (vistas_1, mapillary, np.arange(66), [*known.VISTAS_66[:-1], None]), 'Mapillary 2.0': (vistas_2, mapillary, np.arange(124), [*known.VISTAS_124[:-1], None]),
    'CamVid of fastai': (camvid_fastai, camvid, np.arange(32), [None if n == 'Void' else n for n in CODES]), 'CamVid of fastai, 11 classes': (camvid_fastai, SETS['CamVid of fastai, 11 classes'][1], np.arange(32), [known.CAMVID_32[n][1] for n in CODES]),
    'CamVid of its authors': (camvid_authors, camvid, np.array([known.rgb(c)[0] for c, _ in known.CAMVID_32.values()]), [n for _, n in known.CAMVID_32.values()]), 'CamVid of SegNet': (camvid_segnet, camvid, np.arange(12), [*known.CAMVID, None])}

@pytest.mark.parametrize('name', ID_MAPS)
def test_every_id(tmp_path, name):
    make_it, read, ids, names = ID_MAPS[name]
    t = read(make_it(tmp_path/'data'))
    Image.fromarray(np.uint8(ids)[None]).save(t.train.real.df.label[0])
    assert [None if i == VOID else t.space.names[i] for i in t.train.real.mask(0)[0]] == names
    assert set(t.space.names) == {n for n in names if n}

@pytest.mark.parametrize('space,names,colours', [(CITYSCAPES, known.NINETEEN, known.NINETEEN_COLOURS), (VOC, known.VOC, known.VOC_COLOURS), (IDD, known.IDD, known.IDD_COLOURS)])
def test_names_and_colours(space, names, colours):
    assert list(space.names) == names and [tuple(map(int, c)) for c in space.colours] == known.rgb(colours)

def test_colours_of_fastais_camvid(tmp_path):
    space = camvid(camvid_fastai(tmp_path)).space
    assert [tuple(map(int, c)) for c in space.colours] == [known.rgb(known.CAMVID_32[n][0])[0] for n in space.names]

def test_the_official_splits_of_camvid(tmp_path):
    "All 701 frames in fastai's form, whose only list is that of validation: SegNet's 367, 101 and 233; by sequence 429, 101 and 171"
    runs = [('0016E5_{:05}', [*range(390, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30)]), ('0016E5_{:05}', range(7959, 8160, 2)), ('0006R0_f{:05}', range(930, 3931, 30)), ('0001TP_{:06}', range(6690, 10381, 30)), ('Seq05VD_f{:05}', range(0, 5101, 30))]
    files = [f.format(i) for f, numbers in runs for i in numbers]
    text = {f'images/{f}.png': '' for f in files} | {f'labels/{f}_P.png': '' for f in files} | {'codes.txt': '\n'.join(CODES), 'valid.txt': '\n'.join(f'0016E5_{i:05}.png' for i in range(7959, 8160, 2))}
    root, sizes = make(tmp_path, [], {}, text), lambda t: [len(t.train), len(t.val), len(t.test)]
    assert sizes(camvid(root)) == [367, 101, 233] and sizes(camvid(root, protocol='sequence')) == [429, 101, 171]

def test_an_unknown_id_is_named(tmp_path):
    t = cityscapes(make(cityscapes_fine(tmp_path/'data'), [], {'gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png': 99}))
    bad = t.check()
    assert len(bad) == 1 and 'unknown id 99' in bad.problem[0]

def test_the_command_line_knows_them(tmp_path):
    assert open_data(bdd(tmp_path/'bdd100k')).space == CITYSCAPES
    assert open_data(kitti_semantics(tmp_path/'x'), 'kitti').space == CITYSCAPES
    assert open_data(idd_archive(tmp_path/'idd20k_lite')).space == IDD_LITE
    assert open_data(voc(tmp_path)/'VOCdevkit').space == VOC
    (tmp_path/'my-cityscapes2').symlink_to(cityscapes_fine(tmp_path/'store9'))
    assert open_data(tmp_path/'my-cityscapes2').space == CITYSCAPES
    camvid_fastai(tmp_path/'store3'); (tmp_path/'CamVid701').symlink_to(tmp_path/'store3')
    assert open_data(tmp_path/'CamVid701').groups[0] == '0001TP-00'  # of camvid, not of seg_folder
    assert open_data(make(tmp_path/'hidden', ['images/a.png'], {'labels/a.png': 0}, {'codes.txt': 'road'})).space.names == ('road',)  # no data set of IDD

def test_a_bad_config(tmp_path):
    (vistas_1(tmp_path)/'config.json').write_text('{"labels": 3}')
    with pytest.raises(ValueError, match='no list of labels'): mapillary(tmp_path)
    (tmp_path/'config.json').write_text('{"labels": [{"name": "x"}]}')
    with pytest.raises(ValueError, match='no list of labels .*color'): mapillary(tmp_path)


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

@pytest.mark.parametrize('name', [n for n in SHIPPED if 'CITY_' not in n])
def test_what_becomes_of_each_class(name): assert SHIPPED[name].to == getattr(known, name)

def test_vistas_in_the_classes_of_cityscapes(tmp_path):
    one, two = mapillary(vistas_1(tmp_path/'1')), mapillary(vistas_2(tmp_path/'2'))
    m = mapillary_to_cityscapes(one.space)
    assert m.to == known.VISTAS_TO_CITYSCAPES and m.new == ()
    assert CITYSCAPES.names[m(one).train.mask(0).max()] == 'road'
    with pytest.raises(ValueError, match=r"which mapillary\(path, '1.2'\) reads"): mapillary_to_cityscapes(two.space)

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
