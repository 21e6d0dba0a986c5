"Tiny copies of public data sets, with their real folder and file names: what is read, and what is refused."
import json, os, shutil
from pathlib import Path

import numpy as np, pytest
from PIL import Image

import known
from selftrain_nb.archives import in_folders
from selftrain_nb.datasets import seg_folder
from selftrain_nb.labels import VOID
from selftrain_nb.public import *

DATA = os.environ.get('SELFTRAIN_NB_DATA')
real_data = pytest.mark.skipif(not DATA, reason='SELFTRAIN_NB_DATA does not name a folder with camvid/ and idd_lite/')


def make(root, images, labels, text={}):
    "Write 8x4 images, labels of one id (or colour, or an array), and text files"
    def pixels(i): return i if isinstance(i, np.ndarray) else np.full((4, 8) if np.isscalar(i) else (4, 8, 3), i)
    for name in (*images, *labels, *text): (root/name).parent.mkdir(parents=True, exist_ok=True)
    for name in images: Image.new('RGB', (8, 4), (90, 90, 90)).save(root/name)
    for name, i in labels.items(): Image.fromarray(np.uint8(pixels(i))).save(root/name)
    for name, t in text.items(): (root/name).write_text(t)
    return root


CITY = {'train/aachen/aachen_000000_000019': 7, 'train/zurich/zurich_000121_000019': 26,
        'val/frankfurt/frankfurt_000000_000294': 33, 'test/berlin/berlin_000000_000019': 0}
EXTRA = 'train_extra/erlangen/erlangen_000000_000000'

def cityscapes_fine(root):
    labels = {f'gtFine/{f}_gtFine_{k}.png': i for f, i in CITY.items() for k in ('labelIds', 'instanceIds', 'color')}
    images = [f'leftImg8bit/{f}_leftImg8bit.png' for f in (*CITY, EXTRA)]
    return make(root, images, labels, {f'gtFine/{f}_gtFine_polygons.json': '{}' for f in CITY})

def cityscapes_coarse(root):
    rows = {f: i for f, i in CITY.items() if 'test' not in f} | {EXTRA: 21}
    labels = {f'gtCoarse/{f}_gtCoarse_labelIds.png': i for f, i in rows.items()}
    return make(root, [f'leftImg8bit/{f}_leftImg8bit.png' for f in rows], labels)

def kitti_semantics(root):
    images = [f'{s}/image_2/00000{i}_10.png' for s in ('training', 'testing') for i in range(5)]
    labels = {f'training/{k}/00000{i}_10.png': 11 for i in range(5) for k in ('semantic', 'instance')}
    return make(root, images, labels | {f'training/semantic_rgb/00000{i}_10.png': 3 for i in range(5)})

def vistas_config(names):
    def one(i, n): return dict(name=n, readable=n.split('--')[-1], color=[255] * 3 if 'marking' in n else [2 * i, 1, 2],
                               evaluate=n != 'void--unlabeled', instances=False)
    return json.dumps(dict(labels=[one(i, n) for i, n in enumerate(names)]))

VISTAS = [f'{s}/images/{i}.jpg' for s in ('training', 'validation', 'testing') for i in 'ab']

def vistas_1(root):
    labels = {f'{s}/{k}/{i}.png': j for s in ('training', 'validation') for i, j in zip('ab', (13, 65))
              for k in ('labels', 'instances')}
    return make(root, VISTAS, labels, {'config.json': vistas_config(known.VISTAS_66)})

def vistas_2(root):
    ids = {'1.2': (13, 65), '2.0': (21, 123)}
    labels = {f'{s}/v{v}/labels/{i}.png': j for s in ('training', 'validation') for v in ids
              for i, j in zip('ab', ids[v])}
    text = {'config_v1.2.json': vistas_config(known.VISTAS_66), 'config_v2.0.json': vistas_config(known.VISTAS_124)}
    return make(root, VISTAS, labels, text)

def bdd(root):
    images = [f'images/10k/{s}/{s}0.jpg' for s in ('train', 'val', 'test')] + ['images/100k/val/x.jpg']
    images += [f'images/100k/train/{i}.jpg' for i in ('train0', 'val0', 'new')] + ['images/100k/test/y.jpg']
    labels = {f'labels/sem_seg/{k}/{s}/{s}0.png': 13 for s in ('train', 'val') for k in ('masks', 'colormaps')}
    return make(root, images, labels)

def bdd_old(root):
    labels = {f'seg/labels/{s}/{s}0_train_id.png': 13 for s in ('train', 'val')}
    return make(root, [f'seg/images/{s}/{s}0.jpg' for s in ('train', 'val', 'test')], labels)

def voc(root):
    d = 'VOCdevkit/VOC2012'
    labels = {f'{d}/Segmentation{k}/2007_00000{i}.png': j for i, j in ((0, 15), (1, 255)) for k in ('Class', 'Object')}
    lists = dict(train='2007_000000\n', val='2007_000001\n', trainval='2007_000000\n2007_000001\n')
    text = {f'{d}/ImageSets/{k}/{s}.txt': t for k in ('Segmentation', 'Main') for s, t in lists.items()}
    return make(root, [f'{d}/JPEGImages/2007_00000{i}.jpg' for i in range(4)], labels, text)

DRIVES = ['train/0/503', 'val/1/9000', 'test/2/77']

def idd_full(root):
    labels = {f'gtFine/{d}_gtFine_labellevel3Ids.png': 8 for d in DRIVES[:2]}
    text = {f'gtFine/{d}_gtFine_polygons.json': '{}' for d in DRIVES[:2]}
    return make(root, [f'leftImg8bit/{d}_leftImg8bit.png' for d in DRIVES], labels, text)


FRAMES = {'0016E5_00390': 'train', '0001TP_006690': 'train', '0006R0_f00930': 'train', '0016E5_07959': 'val',
          'Seq05VD_f00000': 'test', '0001TP_008550': 'test'}
CODES = sorted(known.CAMVID_32, key=str.lower)
TRUCK = known.rgb(known.CAMVID_32['Truck_Bus'][0])[0]
KAGGLE = dict(zip(FRAMES, ['train', 'val', 'test'] * 2))  # its split is drawn by chance

def camvid_fastai(root):
    labels = {f'labels/{f}_P.png': CODES.index('Car') for f in FRAMES}
    text = {'codes.txt': '\n'.join(CODES) + '\n', 'valid.txt': '0016E5_07959.png\n'}
    return make(root, [f'images/{f}.png' for f in FRAMES], labels, text)

def camvid_authors(root):
    text = ''.join('{} {} {}\t\t{}\n'.format(*known.rgb(c)[0], n) for n, (c, _) in known.CAMVID_32.items())
    return make(root, [f'701_StillsRaw_full/{f}.png' for f in FRAMES],
                {f'LabeledApproved_full/{f}_L.png': TRUCK for f in FRAMES}, {'label_colors.txt': text})

def camvid_kaggle(root):
    lines = ['name,r,g,b', *('{},{},{},{}'.format(n, *known.rgb(c)[0]) for n, (c, _) in known.CAMVID_32.items())]
    return make(root, [f'{s}/{f}.png' for f, s in KAGGLE.items()],
                {f'{s}_labels/{f}_L.png': TRUCK for f, s in KAGGLE.items()}, {'class_dict.csv': '\n'.join(lines)})

def camvid_masks(root):
    return make(root, [f'images/{f}.png' for f in FRAMES], {f'labels/{f}_L.png': TRUCK for f in FRAMES})

def camvid_segnet(root):
    line = '/SegNet/CamVid/{0}/{1}.png /SegNet/CamVid/{0}annot/{1}.png\n'
    lines = lambda split: ''.join(line.format(s, f) for f, s in FRAMES.items() if s == split)
    return make(root, [f'{s}/{f}.png' for f, s in FRAMES.items()], {f'{s}annot/{f}.png': 8 for f, s in FRAMES.items()},
                {f'{s}.txt': lines(s) for s in ('train', 'val', 'test')})

LITE = {'train/12/903127': 3, 'train/24/024541': 0, 'val/3/0000': 6}

def idd_archive(root):
    labels = {f'gtFine/{f}_{e}label.png': i for f, i in LITE.items() for e in ('', 'inst_')}
    return make(root, [f'leftImg8bit/{f}_image.jpg' for f in (*LITE, 'test/5/0001')], labels)

def idd_plain(root):
    stems = {f'd00{i}_{i}': s for i, s in enumerate(('train', 'train', 'val', 'unlabelled'))}
    text = {f'{s}.txt': '\n'.join(f for f in stems if stems[f] == s) for s in ('train', 'val', 'unlabelled')}
    labels = {f'labels/{f}.png': 3 for f, s in stems.items() if s != 'unlabelled'}
    return make(root, [f'images/{f}.jpg' for f in stems], labels, text | {'codes.txt': '\n'.join(known.IDD_LITE)})

# maker, reader, (train labels, train without, val, test without), name of the class of the first training label
CAMVIDS = (3, 0, 1, 0)
SETS = {
    'Cityscapes': (cityscapes_fine, cityscapes, (2, 1, 1, 1), 'road'),
    'Cityscapes, coarse': (cityscapes_coarse, lambda p, **k: cityscapes(p, 'coarse', **k), (3, 0, 1, 0), 'road'),
    'KITTI': (kitti_semantics, kitti, (5, 0, 0, 5), 'building'),
    'Mapillary 1.2': (vistas_1, mapillary, (2, 0, 2, 2), 'construction--flat--road'),
    'Mapillary 2.0': (vistas_2, mapillary, (2, 0, 2, 2), 'construction--flat--road'),
    'Mapillary 1.2 in 2.0': (vistas_2, lambda p, **k: mapillary(p, '1.2', **k), (2, 0, 2, 2),
                             'construction--flat--road'),
    'BDD100K': (bdd, bdd100k, (1, 1, 1, 1), 'car'),
    'BDD100K, older': (bdd_old, bdd100k, (1, 0, 1, 1), 'car'),
    'VOC': (voc, voc2012, (1, 2, 1, 0), 'person'),
    'IDD': (idd_full, idd, (1, 0, 1, 1), 'autorickshaw'),
    'IDD-lite': (idd_archive, idd_lite, (2, 1, 1, 0), 'vehicles'),
    'IDD-lite, plain': (idd_plain, idd_lite, (2, 1, 1, 0), 'vehicles'),
    'CamVid of fastai': (camvid_fastai, camvid, CAMVIDS, 'Car'),
    'CamVid of fastai, 11 classes': (camvid_fastai, lambda p, **k: camvid(p, classes=11, **k), CAMVIDS, 'Car'),
    'CamVid of its authors': (camvid_authors, camvid, CAMVIDS, 'Car'),
    'CamVid of its authors, 32': (camvid_authors, lambda p, **k: camvid(p, classes=32, **k), CAMVIDS, 'Truck_Bus'),
    'CamVid of Kaggle': (camvid_kaggle, camvid, CAMVIDS, 'Car'),
    'CamVid, colour masks': (camvid_masks, camvid, CAMVIDS, 'Car'),
    'CamVid of SegNet': (camvid_segnet, camvid, CAMVIDS, 'Car'),
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
    'Cityscapes': ('gtFine', 'missing: gtFine'), 'Cityscapes, coarse': ('gtCoarse', 'missing: gtCoarse'),
    'KITTI': ('training/semantic', 'missing: training/semantic'), 'Mapillary 1.2': ('config.json', 'none is here'),
    'Mapillary 2.0': ('validation', 'missing: validation/images'),
    'BDD100K': ('labels', 'missing: labels/sem_seg/masks'),
    'BDD100K, older': ('seg/images', 'missing: seg/images'), 'IDD': ('leftImg8bit', 'missing: leftImg8bit'),
    'VOC': ('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt', 'missing: ImageSets/Segmentation/val.txt'),
    'IDD-lite': ('gtFine', 'missing: gtFine'), 'CamVid of fastai': ('codes.txt', 'missing: codes.txt'),
    'CamVid of its authors': ('LabeledApproved_full', 'missing: LabeledApproved_full'),
    'CamVid of Kaggle': ('val_labels', 'missing: val_labels'),
    'CamVid of SegNet': ('trainannot', 'missing: trainannot')}

@pytest.mark.parametrize('name', PARTS)
def test_a_missing_part(tmp_path, name):
    make, read, *_ = SETS[name]
    root, (part, says) = make(tmp_path/'data'), PARTS[name]
    if (root/part).is_dir(): shutil.rmtree(root/part)
    else: (root/part).unlink()
    with pytest.raises(FileNotFoundError, match=says) as e: read(root)
    assert str(root) in str(e.value)

@pytest.mark.parametrize('name', SETS)
def test_one_folder_too_high_or_too_low(tmp_path, name):
    make, read, *_ = SETS[name]
    root = make(tmp_path/'somewhere'/'data')
    right = root/'VOCdevkit/VOC2012' if name == 'VOC' else root
    above = right.parent.parent.parent if name == 'VOC' else tmp_path/'somewhere'
    inside = next(p for p in sorted(right.iterdir()) if p.is_dir())
    for wrong in (inside,) if name == 'VOC' else (above, inside):
        with pytest.raises(FileNotFoundError, match='did you mean') as e: read(wrong)
        assert f'did you mean {right}' in str(e.value)
    with pytest.raises(FileNotFoundError, match='no such folder'): read(tmp_path/'nowhere')

@pytest.mark.parametrize('name', [n for n in SETS if n != 'IDD-lite, plain'])
def test_half_unpacked(tmp_path, name):
    make, read, counts, _ = SETS[name]
    t = read(make(tmp_path/'data'))
    Path(t.train.real.df.label[0]).unlink()
    with pytest.raises(ValueError, match=r'images of split train have no label; the first: .*strict=False'):
        read(tmp_path/'data')
    assert len(read(tmp_path/'data', strict=False).train.real) == counts[0] - 1

@pytest.mark.parametrize('name', [n for n in SETS if n not in ('VOC', 'IDD-lite, plain')])  # whose lists name the image
def test_half_unpacked_images(tmp_path, name):
    make, read, counts, _ = SETS[name]
    t = read(make(tmp_path/'data'))
    Path(t.train.real.df.image[0]).unlink()
    with pytest.raises(ValueError, match=r'1 of \d+ labels have no image; the first: .*strict=False'):
        read(tmp_path/'data')
    with pytest.warns(UserWarning, match='1 of .* have no image'): t = read(tmp_path/'data', strict=False)
    assert len(t.train.real) == counts[0] - 1

@pytest.mark.parametrize('name', [n for n in SETS if 'CamVid' not in n and n not in ('KITTI', 'IDD-lite, plain')])
def test_a_split_without_anything(tmp_path, name):
    make, read, *_ = SETS[name]
    for r in read(make(tmp_path/'data')).val:
        for f in (r.image, r.label): Path(f).unlink()
    if name == 'VOC': (tmp_path/'data/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt').write_text('')
    with pytest.raises(ValueError, match='split val has no images'): read(tmp_path/'data')
    assert len(read(tmp_path/'data', strict=False).val) == 0

def test_half_unpacked_images_of_voc(tmp_path):
    t = voc2012(voc(tmp_path))
    Path(t.train.real.df.image[0]).unlink()
    with pytest.raises(ValueError, match='1 of 2 labels have no image'): voc2012(tmp_path)
    with pytest.warns(UserWarning, match='1 of 2 labels'):
        with pytest.raises(ValueError, match="train.txt, line 1: no image '2007_000000'"):
            voc2012(tmp_path, strict=False)

@pytest.mark.filterwarnings('error')
def test_what_lies_beside(tmp_path):
    "Files that official scripts and further archives put into the same folders"
    stuttgart = 'leftImg8bit/demoVideo/stuttgart_00/stuttgart_00_000000_000001_leftImg8bit.png'
    kinds = 'labelTrainIds', 'instanceTrainIds'
    aachen = {f'gtFine/train/aachen/aachen_000000_000019_gtFine_{k}.png': 1 for k in kinds}
    panoptic = {'gtFine/cityscapes_panoptic_train/aachen_000000_000019_gtFine_panoptic.png': 3}
    c = make(cityscapes_fine(tmp_path/'c'), [stuttgart], aachen | panoptic)
    assert len(cityscapes(c)) == 5 and len(cityscapes(c, extra=False)) == 4
    labels = {f'gtFine/train/0/503_gtFine_{k}.png': 1 for k in ('instancelevel3Ids', 'labelColors')}
    i = make(idd_full(tmp_path/'i'), [], labels | {'gtFine/train_panoptic/503_gtFine_panopticlevel3Ids.png': 1})
    assert len(idd(i)) == 3

@pytest.mark.filterwarnings('error')
def test_the_test_images_of_voc(tmp_path):
    test = {'VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt': '2008_000006\n'}
    lists = make(voc(tmp_path/'w'), [], {}, test)
    assert len(voc2012(lists)) == 4  # the list of a test whose images are not here
    t = voc2012(make(voc(tmp_path/'v'), ['VOCdevkit/VOC2012/JPEGImages/2008_000006.jpg'], {}, test))
    assert [Path(r.image).stem for r in t.test] == ['2008_000006'] and len(t.train.unlabelled) == 2
    assert len(voc2012(tmp_path/'v', extra=False)) == 3

def test_coarse_labels_without_extra(tmp_path):
    c = cityscapes_coarse(tmp_path)
    for d in ('leftImg8bit', 'gtCoarse'): shutil.rmtree(c/d/'train_extra')
    with pytest.warns(UserWarning, match='no train_extra'): assert len(cityscapes(c, 'coarse')) == 3
    with pytest.raises(ValueError, match="labels are 'fine' or 'coarse', not 'rough'"): cityscapes(c, 'rough')

def test_groups_and_shares(tmp_path):
    t = kitti(kitti_semantics(tmp_path), val=.4)
    assert len(t.groups) == 10 and (len(t.train), len(t.val)) == (3, 2)
    with pytest.raises(ValueError, match='at least 0 and below 1'): kitti(tmp_path, val=40)

@pytest.mark.parametrize('maker', [idd_archive, idd_plain])
def test_idd_and_idd_lite_name_each_other(tmp_path, maker):
    maker(tmp_path/'up/idd20k_lite')
    for path in ('up/idd20k_lite', 'up'):
        with pytest.raises(ValueError, match=r'holds IDD-lite, not IDD: read it with idd_lite\(path\)'):
            idd(tmp_path/path)
    with pytest.raises(ValueError, match=r'holds IDD, not IDD-lite: read it with idd\(path\)'):
        idd_lite(idd_full(tmp_path/'f'))

def test_which_folder_an_image_lies_in(tmp_path):
    t = bdd100k(bdd(tmp_path))
    assert in_folders(t, 'images/10k').sum() == 3 and in_folders(t, '10k/val', 'images/100k').sum() == 2
    assert check_complete(t, 'x', [], True) is t
    assert find_root(tmp_path, 'x', {'a': ['images/*']}) == (tmp_path, 'a')


# Tables

def _painted(): return np.array([known.rgb(c)[0] for c, _ in known.CAMVID_32.values()])

TO_11 = [n for _, n in known.CAMVID_32.values()]
CODES_11 = [known.CAMVID_32[n][1] for n in CODES]
ID_MAPS = {  # label that holds every id once, and what each is called
    'Cityscapes': (np.arange(34), known.CITYSCAPES_BY_ID), 'KITTI': (np.arange(34), known.CITYSCAPES_BY_ID),
    'BDD100K': (np.arange(19), known.NINETEEN), 'VOC': (np.arange(21), known.VOC), 'IDD': (np.arange(26), known.IDD),
    'IDD-lite': (np.arange(7), known.IDD_LITE), 'Mapillary 1.2': (np.arange(66), [*known.VISTAS_66[:-1], None]),
    'Mapillary 2.0': (np.arange(124), [*known.VISTAS_124[:-1], None]),
    'CamVid of fastai': (np.arange(32), [None if n == 'Void' else n for n in CODES]),
    'CamVid of fastai, 11 classes': (np.arange(32), CODES_11),
    'CamVid of SegNet': (np.arange(12), [*known.CAMVID, None]),
    'CamVid of its authors': (_painted(), TO_11), 'CamVid of Kaggle': (_painted(), TO_11),
    'CamVid, colour masks': (_painted(), TO_11),
    'CamVid of its authors, 32': (_painted(), [None if n == 'Void' else n for n in known.CAMVID_32])}

@pytest.mark.parametrize('name', ID_MAPS)
def test_every_id(tmp_path, name):
    (make_it, read, *_), (ids, names) = SETS[name], ID_MAPS[name]
    t = read(make_it(tmp_path/'data'))
    Image.fromarray(np.uint8(ids)[None]).save(t.train.real.df.label[0])
    assert [None if i == VOID else t.space.names[i] for i in t.train.real.mask(0)[0]] == names
    assert set(t.space.names) == {n for n in names if n}

@pytest.mark.parametrize('codes', [CODES, [*known.CAMVID, 'Void']])
def test_colour_masks_beside_codes_of_camvid(tmp_path, codes):
    "The colours are known, whatever the file of class names says"
    make(tmp_path, [f'images/{f}.png' for f in FRAMES], {f'labels/{f}_L.png': TRUCK for f in FRAMES},
         {'codes.txt': '\n'.join(codes)})
    t = camvid(tmp_path)
    assert t.space.names[t.mask(0)[0, 0]] == ('Car' if 'Pavement' in codes else 'Truck_Bus')

@pytest.mark.parametrize('space,names,colours', [
    (CITYSCAPES, known.NINETEEN, known.NINETEEN_COLOURS), (VOC, known.VOC, known.VOC_COLOURS),
    (IDD, known.IDD, known.IDD_COLOURS)])
def test_names_and_colours(space, names, colours):
    assert list(space.names) == names and [tuple(map(int, c)) for c in space.colours] == known.rgb(colours)

def test_ids_of_cityscapes():
    assert CITYSCAPES_IDS == {i: known.NINETEEN.index(n) for i, n in enumerate(known.CITYSCAPES_BY_ID) if n}
    assert list(IDD_LITE.names) == known.IDD_LITE and list(CAMVID.names) == known.CAMVID

def test_colours_of_camvid(tmp_path):
    for space in (camvid(camvid_fastai(tmp_path)).space, CAMVID_32):
        assert [tuple(map(int, c)) for c in space.colours] == [known.rgb(known.CAMVID_32[n][0])[0] for n in space.names]

def test_an_unknown_id_is_named(tmp_path):
    label = 'gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png'
    bad = cityscapes(make(cityscapes_fine(tmp_path/'data'), [], {label: 99})).check()
    assert len(bad) == 1 and 'unknown id 99' in bad.problem[0]

def test_a_bad_config(tmp_path):
    (vistas_1(tmp_path)/'config.json').write_text('{"labels": 3}')
    with pytest.raises(ValueError, match='no list of labels'): mapillary(tmp_path)
    (tmp_path/'config.json').write_text('{"labels": [{"name": "x"}]}')
    with pytest.raises(ValueError, match='no list of labels .*color'): mapillary(tmp_path)
    with pytest.raises(ValueError, match='no config of version 2.0 here, only 1.2'): mapillary(tmp_path, '2.0')


# CamVid

RUNS = [('0016E5_{:05}', [*range(390, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30)]),
        ('0016E5_{:05}', range(7959, 8160, 2)), ('0006R0_f{:05}', range(930, 3931, 30)),
        ('0001TP_{:06}', range(6690, 10381, 30)), ('Seq05VD_f{:05}', range(0, 5101, 30))]

def _sizes(t): return [len(t.train), len(t.val), len(t.test)]

def test_the_official_splits_of_camvid(tmp_path):
    "All 701 frames in fastai's form, whose only list is that of validation"
    files = [f.format(i) for f, numbers in RUNS for i in numbers]
    text = {f'images/{f}.png': '' for f in files} | {f'labels/{f}_P.png': '' for f in files}
    root = make(tmp_path, [], {}, text | {'codes.txt': '\n'.join(CODES), 'valid.txt': '0016E5_07959.png'})
    assert _sizes(camvid(root)) == [367, 101, 233] and _sizes(camvid(root, protocol='sequence')) == [429, 101, 171]

def test_camvid_stretches_last_twenty_seconds_and_never_cross_a_split(tmp_path):
    files = [f.format(i) for f, numbers in RUNS[:3] for i in numbers]
    text = {f'images/{f}.jpg': '' for f in files} | {f'labels/{f}.png': '' for f in files}
    df = camvid(make(tmp_path, [], {}, text | {'codes.txt': '\n'.join(known.CAMVID)})).df
    df['frame'] = [int(Path(p).stem.split('_')[1].strip('f')) for p in df.image]
    span = df.groupby('group').frame.agg(lambda f: (f.max() - f.min())/30)
    assert (df.groupby('group').split.nunique() == 1).all()
    assert (span[df[df.split == 'train'].group.unique()] >= 20).all()

def test_camvid_refuses_other_names_protocols_and_classes(tmp_path):
    make(tmp_path, ['images/holiday.jpg'], {'labels/holiday.png': 0}, {'codes.txt': 'road\n'})
    with pytest.raises(ValueError, match="'holiday' is no CamVid frame"): camvid(tmp_path)
    with pytest.raises(ValueError, match="'official' or 'sequence'"): camvid(tmp_path, protocol='mine')
    with pytest.raises(ValueError, match='classes is 11, 32 or None, not 12'): camvid(tmp_path, classes=12)
    with pytest.raises(ValueError, match='none of them: road'): camvid(tmp_path, classes=11)
    with pytest.raises(ValueError, match='have only 11'): camvid(camvid_segnet(tmp_path/'s'), classes=32)
    (camvid_authors(tmp_path/'a')/'label_colors.txt').write_text('64 128 64 Horse\n1 2 3 Car\n')
    with pytest.raises(ValueError, match=r"not the colours of CamVid's 32 classes \(Horse\)"): camvid(tmp_path/'a')

def test_camvid_offline_says_what_to_do(monkeypatch):
    import fastai.data.external as external
    def offline(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(external, 'untar_data', offline)
    with pytest.raises(OSError, match=r'no route to host.*camvid\(path\)'): camvid()

@pytest.mark.filterwarnings('error')
def test_camvid_of_kaggle_without_its_reader(tmp_path):
    t = seg_folder(camvid_kaggle(tmp_path))
    assert len(t.space) == 31 and len(t.labelled) == 6 and t.space.names[t.mask(0)[0, 0]] == 'Truck_Bus'
    assert {Path(r.image).stem: r.split for r in t} == KAGGLE

@real_data
@pytest.mark.filterwarnings('error')
def test_real_camvid():
    t = camvid(f'{DATA}/camvid')
    assert _sizes(t) == [367, 101, 233] and _sizes(camvid(f'{DATA}/camvid', protocol='sequence')) == [429, 101, 171]
    assert t.space == CAMVID and len(t.unlabelled) == 0 and len(t.check()) == 0
    assert _sizes(seg_folder(f'{DATA}/camvid')) == [367, 101, 233]

@real_data
@pytest.mark.filterwarnings('error')
def test_real_idd_lite():
    t = idd_lite(f'{DATA}/idd_lite')
    assert [len(x) for x in (t.train.labelled, t.val, t.unlabelled)] == [1403, 163, 404]
    assert t.space == IDD_LITE and len(t.groups) == 458 and len(t.check()) == 0
