"Folders of one's own: what is read, what is refused, and what is said. Every fault test failed on the first edition."
import json, os, shutil, subprocess, sys, unicodedata, warnings
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from selftrain_nb.codes import codes_space, parse_void, read_codes
from selftrain_nb.datasets import *
from selftrain_nb.labels import VOID, LabelSpace, Remap
from selftrain_nb.layout import image_keys, name_meaning, split_lists


def make(root, files):
    "Write {name: text, or bytes, or id for an 8x8 PNG label, or an array, or None for an 8x8 image}"
    for name, content in files.items():
        p = root/name
        p.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str): p.write_text(content, encoding='utf-8')
        elif isinstance(content, bytes): p.write_bytes(content)
        elif isinstance(content, np.ndarray): Image.fromarray(content).save(p)
        else: Image.fromarray(np.full((8, 8) if content is not None else (8, 8, 3), content or 0, np.uint8)).save(p)
    return root


def basic(root, n=4, images='images', labels='labels', **more):
    files = {f'{images}/{i}.jpg': None for i in range(n)} | {f'{labels}/{i}.png': i % 3 for i in range(n)}
    return make(root, files | {'codes.txt': 'road\ncar\nVoid\n'} | more)


def splits(table): return {Path(r.image).stem: r.split for r in table}


@pytest.fixture
def said():
    "Warnings raised in a test, as texts"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        yield lambda: [str(x.message) for x in w]


# Pairs

@pytest.mark.filterwarnings('error')
def test_reads_pairs_void_and_default_split(tmp_path):
    t = seg_folder(basic(tmp_path))
    assert (len(t), len(t.labelled), len(t.train)) == (4, 4, 4)
    assert t.space.names == ('road', 'car') and t.remaps[tmp_path.name].ids[2] == VOID
    assert t.mask(2).max() == VOID and len(t.check()) == 0


def test_image_without_label_becomes_unlabelled(tmp_path):
    (basic(tmp_path)/'labels/1.png').unlink()
    t = seg_folder(tmp_path)
    assert list(t.df.kind) == ['real', 'none', 'real', 'real'] and t.df.label[1] == ''


def test_label_without_image_warns_and_names_it(tmp_path):
    with pytest.warns(UserWarning, match='2 of 6 labels have no image and are left out: x, y'):
        assert len(seg_folder(basic(tmp_path, **{'labels/x.png': 0, 'labels/y.png': 0}))) == 4
    with pytest.raises(ValueError, match='2 of 6 labels have no image'): seg_folder(tmp_path, strict=True)


def test_no_label_fits_at_all(tmp_path):
    make(tmp_path, {'images/d/a.jpg': None, 'labels/d/truth of a.png': 0, 'codes.txt': 'road\n'})
    with pytest.raises(ValueError, match='Pass label_name='): seg_folder(tmp_path)
    assert len(seg_folder(tmp_path, label_name='truth of {}').labelled) == 1
    assert len(seg_folder(tmp_path, label_name=lambda k: k.replace('d/', 'd/truth of ') + '.png').labelled) == 1
    with pytest.raises(ValueError, match='write {} for the name'): seg_folder(tmp_path, label_name='truth')


@pytest.mark.parametrize('image,label', [('a.jpg', 'a_mask.png'), ('a.jpg', 'a.jpg.png'), ('a_sat.jpg', 'a_mask.png'),
                                         ('a_image.jpg', 'a_label.png'),
                                         ('a_leftImg8bit.png', 'a_gtFine_labelIds.png')])
def test_usual_names_of_labels(tmp_path, image, label):
    make(tmp_path, {f'images/{image}': None, f'labels/{label}': 1, 'codes.txt': 'road\ncar\n'})
    assert seg_folder(tmp_path).mask(0).max() == 1


def test_names_with_spaces_and_beyond_ascii_in_both_unicode_forms(tmp_path):
    nfc, nfd = (unicodedata.normalize(f, 'über été') for f in ('NFC', 'NFD'))
    files = {f'images/a b/{nfd} 1.JPG': None, f'labels/a b/{nfc} 1_P.png': 1, 'images/日本.webp': None}
    files |= {'labels/日本.png': 0, 'codes.txt': 'road\ncar\n', 'val.txt': f'{nfc} 1\n', 'test.txt': '日本.webp\n'}
    t = seg_folder(make(tmp_path, files))
    assert sorted(zip(t.df.split, t.df.kind)) == [('test', 'real'), ('val', 'real')]
    assert t.val.groups == ['a b'] and len(t.check()) == 0


def test_file_names_that_are_not_utf8(tmp_path):
    "Case 29"
    basic(tmp_path)
    odd = os.fsencode(str(tmp_path/'images')) + b'/caf\xe9.jpg'
    try: shutil.copy(tmp_path/'images/0.jpg', odd)
    except OSError: pytest.skip('this file system takes only UTF-8')
    (tmp_path/'val.txt').write_bytes(b'caf\xe9.jpg\n0\n')
    t = seg_folder(tmp_path)
    assert len(t) == 5 and len(t.val) == 2 and len(t.check()) == 0


def test_one_label_for_two_images(tmp_path):
    "a.jpg beside a.png is an error only where a label is involved"
    basic(tmp_path, **{'images/1.png': None})
    with pytest.raises(ValueError, match='1 labels fit two images each: .*1.png'): seg_folder(tmp_path)
    (tmp_path/'labels/1.png').unlink()
    assert len(seg_folder(tmp_path)) == 5
    make(tmp_path, {'labels/1.png.png': 1, 'labels/1.jpg.png': 0})
    t = seg_folder(tmp_path)
    held = {Path(r.image).name: t.mask(i).max() for i, r in enumerate(t)}
    assert (held['1.jpg'], held['1.png']) == (0, 1)


def test_a_png_label_is_taken_before_a_jpeg(tmp_path):
    basic(tmp_path, **{'labels/1.jpg': None})
    assert seg_folder(tmp_path).df.label[1].endswith('1.png')
    make(tmp_path, {'labels/1.tif': 0})
    with pytest.raises(ValueError, match='differ only in the extension'): seg_folder(tmp_path)


def test_which_files_are_labels(tmp_path):
    basic(tmp_path, **{f'labels/{i}_edges.png': 0 for i in range(4)})
    with pytest.warns(UserWarning, match='4 of 8 labels have no image'): seg_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(seg_folder(tmp_path, is_label=r'\d$').labelled) == 4


# Files

def test_hidden_files_and_thumbnails_are_left_out(tmp_path):
    junk = ['._1.jpg', '.cache/9.jpg', '@eaDir/1.jpg', '#recycle/1.jpg', '__MACOSX/1.jpg', 'notes.txt']
    assert len(seg_folder(basic(tmp_path, **{f'images/{f}': 'x' for f in junk}))) == 4


def test_types_that_cannot_be_read_are_named(tmp_path, said):
    basic(tmp_path, **{'images/photo.heic': 'x', 'images/clip.MOV': 'x', 'images/b.gif': None})
    assert len(seg_folder(tmp_path)) == 5
    heic, mov = sorted(said(), key=lambda s: '.mov' in s)
    assert 'photo.heic' in heic and 'pillow-heif' in heic and 'clip.MOV' in mov


def test_a_folder_of_nothing_but_heic_says_so(tmp_path, said):
    make(tmp_path, {'images/a.heic': 'x'})
    with pytest.raises(FileNotFoundError, match='no folder of images'): seg_folder(tmp_path)
    assert 'pillow-heif' in said()[0]


@pytest.mark.parametrize('ext', ['gif', 'jfif', 'ppm', 'bmp', 'jp2', 'webp', 'tif'])
def test_types_that_are_read(tmp_path, ext):
    make(tmp_path, {f'images/a.{ext}': '', 'labels/a.png': 0, 'codes.txt': 'road\n'})
    Image.new('RGB', (8, 8), (200, 200, 200)).save(tmp_path/f'images/a.{ext}', format={'jfif': 'JPEG'}.get(ext))
    t = seg_folder(tmp_path)
    assert len(t.check()) == 0 and t.image(0).size == (8, 8)


def test_a_link_to_the_folder_above_ends(tmp_path):
    basic(tmp_path)
    (tmp_path/'images/again').symlink_to(tmp_path/'images')
    (tmp_path/'images/more').symlink_to(make(tmp_path/'elsewhere', {'9.jpg': None}))
    assert len(seg_folder(tmp_path)) == 5


def test_nothing_is_opened_and_no_torch_is_imported(tmp_path):
    files = {f'images/{i}.jpg': '' for i in range(50)} | {f'labels/{i}.png': '' for i in range(50)}
    make(tmp_path, files | {'codes.txt': 'road\n'})
    code = ('import sys; from selftrain_nb.datasets import seg_folder; '
            f'assert len(seg_folder({str(tmp_path)!r})) == 50; assert not {{"torch", "fastai"}} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent.parent, timeout=300)


# Class names (case 03, and the list of the new user)

TABLES = {
    'names': ('road\ncar\n', [0, 1]), 'comment': ('# my classes\nroad\ncar\n', [0, 1]),
    'header': ('id,name\n0,road\n1,car\n', [0, 1]), 'ids': ('1 car\n0 road\n', [0, 1]),
    'ids with colon': ('0: road\n7: car\n', [0, 7]), 'tabs': ('0\troad\n7\tcar', [0, 7]),
    'name, id': ('name;id\nroad;3\ncar;4\n', [3, 4]),
    'csv': ('name,r,g,b\nroad,128,64,128\ncar,64,0,128\n', [0, 1]),
    'quoted': ('"road", 128, 64, 128\n"car", 64, 0, 128\n', [0, 1]),
    'colours first': ('128 64 128\troad\n64 0 128\tcar\n', [0, 1]),
    'all': ('Index,Name,R,G,B\n2,road,128,64,128\n5,car,64,0,128\n', [2, 5]),
    'id rgb name': ('2 128 64 128 road\n5 64 0 128 car', [2, 5]),
    'CVAT': ('# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:64,0,128::\n', [0, 1]),
    'CVAT without colours': ('road:::\ncar:::', [0, 1]), 'labelme': ('__ignore__\nroad\ncar\n', [0, 1]),
    'void first': ('0 void\n1 road\n2 car\n', [1, 2]), 'void between': ('road\nVoid\ncar\n', [0, 2]),
    'greys': ('name,r,g,b\nroad,0,0,0\ncar,255,255,255\n', [0, 255])}

@pytest.mark.parametrize('name', TABLES)
def test_formats_of_class_names(tmp_path, name):
    text, ids = TABLES[name]
    t = seg_folder(make(tmp_path, {'images/a.png': None, 'labels/a.png': np.uint8([ids] * 8), 'codes.txt': text}))
    assert t.space.names == ('road', 'car')
    assert t.mask(0)[0].tolist() == [0, 1]


@pytest.mark.parametrize('file', ['class_dict.csv', 'label_colors.txt', 'labelmap.txt', 'Labels.txt', 'classes.txt'])
def test_files_of_class_names_are_found(tmp_path, file):
    rgb = np.uint8([[[128, 64, 128], [64, 0, 128], [0, 0, 0]]])
    make(tmp_path, {'images/a.png': None, 'labels/a_L.png': rgb, file: 'road,128,64,128\nvoid,0,0,0\ncar,64,0,128\n'})
    t = seg_folder(tmp_path)
    assert t.mask(0).tolist() == [[0, 1, VOID]] and t.space.colours.tolist() == [[128, 64, 128], [64, 0, 128]]


@pytest.mark.parametrize('text', ['Straße\r\nAuto\r\nUnlabeled\r\n\r\n', '# Klassen\r\nStraße\r\nAuto'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_habits_of_windows(tmp_path, text, encoding):
    make(basic(tmp_path), {'codes.txt': text.encode(encoding)})
    assert seg_folder(tmp_path).space.names == ('Straße', 'Auto')


def test_names_that_look_like_other_formats(tmp_path):
    names = ['caravan, trailer, train & vehicle', 'lane 1', 'lane 2', '2 wheeler', 'object:vehicle:car', '4-wheel']
    make(tmp_path, {'codes.txt': '\n'.join(names)})
    assert [c.name for c in read_codes(tmp_path/'codes.txt')] == names


BAD = {'road\n\ncar\n': 'name is empty', 'road\nroad\n': "'road' comes twice", '': 'no class names',
       '0 road\n0 car\n': 'id 0 comes twice',
       '0 road\n1 car\nsky\n': 'line 3: not "id, name"', 'road,1,2,300\ncar,1,2,3\n': '300.* is no colour',
       'name,r,g,b\nroad,1,2,3\ncar,4,5,6\nsky\n': 'line 4: not "name, r, g, b"'}

@pytest.mark.parametrize('text', BAD)
def test_bad_class_names(tmp_path, text):
    with pytest.raises(ValueError, match=f'codes.txt.*{BAD[text]}'): seg_folder(basic(tmp_path, **{'codes.txt': text}))


def test_class_names_in_another_encoding(tmp_path):
    make(basic(tmp_path), {'codes.txt': 'Straße\n'.encode('latin-1')})
    with pytest.raises(ValueError, match='codes.txt is not UTF-8'): seg_folder(tmp_path)


def test_no_codes_says_how_to_pass_a_space(tmp_path):
    (basic(tmp_path)/'codes.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'pass space=LabelSpace'): seg_folder(tmp_path)
    assert len(seg_folder(tmp_path, LabelSpace(['a', 'b', 'c'])).labelled) == 4
    with pytest.raises(FileNotFoundError, match='mine.csv: no such file of class names'):
        seg_folder(tmp_path, codes='mine.csv')
    make(tmp_path.parent, {'mine.csv': 'a,1,1,2\nb,2,1,1\nc,3,3,1\n'})
    assert seg_folder(tmp_path, codes=str(tmp_path.parent/'mine.csv')).space.names == ('a', 'b', 'c')


def test_meta_json(tmp_path):
    "Case 27: classes and palette in meta.json, alone and beside codes.txt"
    rgb = np.array([[0, 0, 0], [128, 0, 0], [9, 9, 9]], np.uint8)[[[0, 1, 2]]]
    make(tmp_path, {'images/a.png': None, 'labels/a.png': rgb})
    meta = dict(classes=['bg', 'fg'], palette=[[0, 0, 0], [128, 0, 0], [9, 9, 9]], void_id=2)
    make(tmp_path, {'meta.json': json.dumps(meta)})
    assert seg_folder(tmp_path).mask(0).tolist() == [[0, 1, VOID]]
    make(tmp_path, {'codes.txt': 'fg\nbg\n'})
    t = seg_folder(tmp_path)
    assert t.space.names == ('fg', 'bg') and t.mask(0).tolist() == [[1, 0, VOID]]
    for text in ('{', '[1]', '{"classes": [{"title": "a"}]}'):
        make(tmp_path, {'meta.json': text})
        if text != '[1]':
            with pytest.raises(ValueError, match='meta.json'): seg_folder(tmp_path)
        else: assert seg_folder(tmp_path).space.names == ('fg', 'bg')


def test_binary_masks(tmp_path):
    "Case 01: an option reads masks of 0 and 255"
    files = {f'images/{i}.png': None for i in range(2)} | {f'masks/{i}.png': np.uint8([[0, 255]] * 4) for i in range(2)}
    t = seg_folder(make(tmp_path, files), remap='binary')
    assert t.space.names == ('background', 'foreground') and t.counts().tolist() == [8, 8]
    make(tmp_path, {'codes.txt': 'sane\nill\n'})
    assert seg_folder(tmp_path, remap='binary').space.names == ('sane', 'ill')
    assert seg_folder(tmp_path, remap={0: 1, 255: 0}).mask(0)[0].tolist() == [1, 0]
    make(tmp_path, {'codes.txt': 'a\nb\nc\n'})
    with pytest.raises(ValueError, match="'binary' needs two classes, not the 3"): seg_folder(tmp_path, remap='binary')
    with pytest.raises(ValueError, match="remap is 'binary', a Remap"): seg_folder(tmp_path, remap='colour')


def test_ids_above_255(tmp_path):
    mask = Image.fromarray(np.uint16([[0, 1000]] * 4))
    make(tmp_path, {'images/a.png': None, 'codes.txt': '0 bg\n1000 fg\n', 'labels/a.png': ''})
    mask.save(tmp_path/'labels/a.png')
    assert seg_folder(tmp_path).counts().tolist() == [4, 4]


def test_more_void(tmp_path):
    t = seg_folder(basic(tmp_path, **{'labels/1.png': 9}))
    with pytest.raises(ValueError, match=r'1\.png.*unknown id 9'): t.mask(1)
    assert t.check().problem.str.contains('unknown id 9').tolist() == [True]
    for void in (9, [7, 9], '7,9', '9'): assert seg_folder(tmp_path, void=void).mask(1).max() == VOID
    assert seg_folder(tmp_path, void='car').space.names == ('road',)
    assert seg_folder(tmp_path, void='9', remap={0: 0, 1: 1, 2: 0}).mask(1).max() == VOID
    with pytest.raises(ValueError, match='no class sky; there are road, car'): seg_folder(tmp_path, void='sky')
    with pytest.raises(ValueError, match="calls id 0 'road'.*void='road'.*\"0 void\", \"1 road\""):
        seg_folder(tmp_path, void=0)
    with pytest.raises(ValueError, match='all of its'): seg_folder(tmp_path, void='road,car')
    assert parse_void(None) == (set(), set(), set())


def test_two_classes_of_one_colour_are_read_by_id_only():
    space, remap = codes_space([Code(0, 'a', (1, 1, 1)), Code(1, 'b', (1, 1, 1))])
    assert remap.colours == {} and len(space.colours) == 2


def test_a_space_and_a_remap_of_ones_own(tmp_path):
    basic(tmp_path)
    assert seg_folder(tmp_path, LabelSpace(['bus', 'car', 'road'])).mask(0).max() == 2
    with pytest.raises(ValueError, match='codes.txt has classes that .* has not: car'):
        seg_folder(tmp_path, LabelSpace(['road']))
    t = seg_folder(tmp_path, LabelSpace(['road']), remap=Remap({0: 0, 1: 255, 2: 255}))
    assert t.mask(1).min() == VOID
    make(tmp_path/'rgb', {'images/a.jpg': None, 'labels/a_L.png': np.zeros((8, 8, 3), np.uint8)})
    assert (seg_folder(tmp_path/'rgb', LabelSpace(['x', 'y']), remap={(0, 0, 0): 1}).mask(0) == 1).all()


# Folders (case 28)

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('labels', ['masks', 'annotations', 'gt', 'SegmentationClass', 'Labels'])
@pytest.mark.parametrize('images', ['images', 'imgs', 'image', 'leftImg8bit', 'JPEGImages'])
def test_usual_names_of_folders(tmp_path, images, labels):
    assert len(seg_folder(basic(tmp_path, images=images, labels=labels)).labelled) == 4


SHAPES = {'inside': '{}/images {}/masks', 'beside': '{} {}_labels', 'segnet': '{} {}annot',
          'both': '{}_images {}_masks', 'after': 'images-{} labels-{}', 'below': 'images/{} labels/{}'}

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('names', ['train val test', 'Training Validation Testing', 'train valid test'])
def test_folders_of_splits(tmp_path, shape, names):
    for i, split in enumerate(names.split()):
        images, labels = SHAPES[shape].format(split, split).split()
        make(tmp_path, {f'{images}/{i}.jpg': None, f'{labels}/{i}.png': i % 2})
    t = seg_folder(make(tmp_path, {'class_dict.csv': 'name,r,g,b\nroad,0,0,1\ncar,1,0,0\n'}))
    assert splits(t) == {'0': 'train', '1': 'val', '2': 'test'} and len(t.labelled) == 3 and len(t.check()) == 0
    assert t.train.groups != t.val.groups


def test_labels_under_an_unknown_name_are_named(tmp_path, said):
    t = seg_folder(basic(tmp_path, labels='truth'))
    assert len(t.labelled) == 0 and "labels='truth'" in said()[0]
    assert len(seg_folder(tmp_path, labels='truth').labelled) == 4
    make(tmp_path/'poly', {'images/a.jpg': None, 'labels/a.json': '{}', 'codes.txt': 'road\n'})
    seg_folder(tmp_path/'poly')
    assert 'a.json' in said()[-1] and 'labels are PNG' in said()[-1]


def test_folders_that_are_not_read_are_named(tmp_path, said):
    basic(tmp_path, **{'masks/0.png': 0, 'test_images/9.jpg': None})
    assert len(seg_folder(tmp_path)) == 4
    assert 'masks' in said()[0] and 'test_images' in said()[0]
    assert len(seg_folder(tmp_path, images='images,test_images', labels='labels')) == 5
    assert len(said()) == 1


def test_folders_given_by_name(tmp_path):
    basic(tmp_path, images='a', labels='b')
    assert len(seg_folder(tmp_path, images='a', labels='b').labelled) == 4
    assert len(seg_folder(tmp_path, images='a', labels='none').labelled) == 0
    with pytest.raises(FileNotFoundError, match='no folder truth in it; it holds: a, b, codes.txt'):
        seg_folder(tmp_path, images='a', labels='truth')
    with pytest.raises(ValueError, match='must lie in different folders'): seg_folder(tmp_path, images='a', labels='a')
    with pytest.raises(ValueError, match='2 folders of labels for 1 of images'):
        seg_folder(tmp_path, images=('a',), labels='b,a')


def test_labels_by_name_where_images_lie_in_folders(tmp_path):
    files = {f'images/slide{i}/{i}.jpg': None for i in range(3)} | {f'labels/{i}_mask.png': 0 for i in range(2)}
    t = seg_folder(make(tmp_path, files | {'codes.txt': 'bg\ncell'}))
    pairs = zip(t.labelled.df.image, t.labelled.df.label)
    assert [(Path(a).stem, Path(b).stem) for a, b in pairs] == [('0', '0_mask'), ('1', '1_mask')]
    make(tmp_path, {'images/more/0.jpg': None})  # two images of one name
    with pytest.raises(ValueError, match='none of 2 labels fits any of 4 images'): seg_folder(tmp_path)


def test_labels_beside_their_images_are_named(tmp_path, said):
    files = {f's/{i}{end}.png': 0 for i in range(3) for end in ('', '_mask')}
    seg_folder(make(tmp_path, files | {'codes.txt': 'bg\ncell'}), images='.')
    assert any('3 images are named as the labels of others: s/0_mask' in s for s in said())


def test_white_is_stated_and_pages_are_told(tmp_path):
    deep = {f'images/{i}.tif': np.full((8, 8), 900, np.uint16) for i in range(3)}
    make(tmp_path, deep | {f'labels/{i}.png': i % 2 for i in range(3)} | {'codes.txt': 'bg\ncell'})
    assert seg_folder(tmp_path).white == 1023 and seg_folder(tmp_path, white=4095).white == 4095
    page = Image.fromarray(deep['images/0.tif'])
    page.save(tmp_path/'images'/'0.tif', save_all=True, append_images=[page])
    assert seg_folder(tmp_path).check().problem[0].endswith('has 2 pages, and the first is read; save the pages as '
                                                            'single images')


def test_a_line_with_an_id_among_names_and_colours_as_hex(tmp_path):
    file = make(tmp_path, {'c.txt': 'bg\ncell\n7 void'})/'c.txt'
    with pytest.raises(ValueError, match='c.txt, line 3: it begins with an id, and most lines have none'):
        read_codes(file)
    file.write_text('name,hex\nbg,#000000\ncell,#ff0000')
    assert [c.colour for c in read_codes(file)] == [(0, 0, 0), (255, 0, 0)]


def test_no_such_folder_and_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'): seg_folder(tmp_path/'nowhere')
    make(tmp_path, {'x.txt': 'x'})
    with pytest.raises(FileNotFoundError, match='is a file'): seg_folder(tmp_path/'x.txt')


def test_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder of images.*holds nothing'): seg_folder(tmp_path)
    (tmp_path/'images').mkdir()
    with pytest.raises(FileNotFoundError, match='no folder of images.*holds images'): seg_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'no images in it.*\.jpg \.jpeg'): seg_folder(tmp_path, images='images')


def test_one_folder_too_high_or_too_low(tmp_path):
    basic(tmp_path/'town')
    with pytest.raises(FileNotFoundError, match='did you mean .*town'): seg_folder(tmp_path)
    for sub in ('images', 'labels'):
        with pytest.raises(FileNotFoundError, match='did you mean .*town'): seg_folder(tmp_path/'town'/sub)
    make(tmp_path/'store', {'table.csv': 'image\n'})
    with pytest.raises(FileNotFoundError, match="SegTable.load"): seg_folder(tmp_path/'store')


@pytest.mark.filterwarnings('error')
def test_just_images(tmp_path):
    "A pool without labels: nested, a.jpg beside a.png, masks left out"
    make(tmp_path, {'a.jpg': None, 'a.png': None, 'sub/b.jpg': None, 'masks/a.png': 0})
    t = seg_folder(tmp_path, LabelSpace(['road']), labels='none')
    assert sorted(Path(p).name for p in t.df.image) == ['a.jpg', 'a.png', 'b.jpg'] and len(t.train.unlabelled) == 3
    shutil.rmtree(make(tmp_path, {'test/c.png': None})/'sub')
    assert len(seg_folder(tmp_path, LabelSpace(['road']), labels=None).test) == 1


def test_the_layout_is_found_and_can_be_given(tmp_path):
    found = find_layout(basic(tmp_path, images='imgs', labels='gt'))
    assert found == Layout('imgs', 'gt', 'codes.txt')
    assert str(found) == "Layout(images='imgs', labels='gt', codes='codes.txt')"
    assert len(seg_folder(tmp_path, layout=found).labelled) == 4
    assert seg_folder(tmp_path, layout=found, void='car').space.names == ('road',)
    with pytest.raises(TypeError, match='image'): seg_folder(tmp_path, image='imgs')
    with pytest.raises(TypeError, match="space is a LabelSpace, not 'imgs'"): seg_folder(tmp_path, 'imgs', layout=found)
    assert name_meaning('monday') == ('', '')
    assert list(image_keys(image_files(tmp_path/'imgs'))) == ['0', '1', '2', '3']


# Splits (case 06)

@pytest.mark.parametrize('file', ['val.txt', 'valid.txt', 'validation.txt', 'VAL.TXT', 'Valid.txt', 'splits/val.txt'])
def test_names_of_lists(tmp_path, file):
    assert splits(seg_folder(basic(tmp_path, **{file: '1\n'})))['1'] == 'val'


@pytest.mark.parametrize('folder,split', [('validation', 'val'), ('Val', 'val'), ('testing', 'test'), ('TEST', 'test')])
def test_names_of_folders(tmp_path, folder, split):
    make(tmp_path, {f'{d}/{s}/{i}.png': i for d in ('images', 'labels') for i, s in enumerate(('train', folder))})
    assert splits(seg_folder(make(tmp_path, {'codes.txt': 'a\nb\n'}))) == {'0': 'train', '1': split}


def test_an_unknown_folder_beside_splits_is_named(tmp_path, said):
    make(tmp_path, {f'images/{s}/x{i}.png': None for i, s in enumerate(('train', 'valid', 'extra', 'unlabelled'))})
    t = seg_folder(tmp_path, LabelSpace(['road']))
    assert splits(t) == dict(x0='train', x1='val', x2='train', x3='train')
    assert 'extra is not the name of a split' in said()[0] and 'unlabelled' not in said()[0]


def test_a_list_for_training_bounds_the_training_set(tmp_path, said):
    basic(tmp_path, 6, **{'train.txt': '0\n1\n', 'val.txt': '2\n'})
    assert splits(seg_folder(tmp_path)) == {'0': 'train', '1': 'train', '2': 'val'}
    assert '3 of 6 images are in none of the lists (train.txt, val.txt)' in said()[0]
    assert '3.jpg, 4.jpg, 5.jpg' in said()[0]
    t = seg_folder(tmp_path, unlisted='unlabelled')
    assert len(t.train.unlabelled) == 3 and (t.df.truth == '').all() and len(said()) == 1
    assert len(seg_folder(tmp_path, unlisted='train').train.real) == 5
    with pytest.raises(ValueError, match="unlisted is 'skip'"): seg_folder(tmp_path, unlisted='drop')


def test_without_a_list_for_training_the_rest_is_for_training(tmp_path, said):
    assert len(seg_folder(basic(tmp_path, 6, **{'val.txt': '2\n', 'test.txt': '3\n'})).train) == 4 and not said()


def test_lists_of_labelled_and_unlabelled_images(tmp_path, said):
    basic(tmp_path, 4, **{'labeled.txt': '0\n', 'unlabeled.txt': 'images/1.jpg labels/1.png\n3\n', 'val.txt': '2\n'})
    t = seg_folder(tmp_path)
    assert splits(t) == {'0': 'train', '1': 'train', '2': 'val', '3': 'train'} and not said()
    assert t.df.kind.tolist() == ['real', 'none', 'real', 'none'] and t.revealed.df.kind.tolist() == ['real'] * 4


def test_a_list_of_an_unknown_name_is_named(tmp_path, said):
    basic(tmp_path, **{'my_val.txt': '1.jpg\n', 'all.txt': '0\n1\n', 'README.txt': 'hello\n'})
    seg_folder(tmp_path)
    assert len(said()) == 1 and "splits='val=my_val.txt'" in said()[0]
    assert splits(seg_folder(tmp_path, splits='val=my_val.txt'))['1'] == 'val'


def test_wrong_list_entries(tmp_path):
    basic(tmp_path, **{'val.txt': '1.jpg\nno such picture\nnor this\n'})
    says = r"val\.txt, line 2: no image 'no such picture' among 4.*line 3: no image 'nor this'"
    with pytest.raises(ValueError, match=says): seg_folder(tmp_path)
    make(tmp_path, {'val.txt': '1\n', 'train.txt': '0\n1\n'})
    says = r"val\.txt, line 1: '1' is in the split 'train' already \(train\.txt, line 2\)"
    with pytest.raises(ValueError, match=says): seg_folder(tmp_path)
    with pytest.raises(ValueError, match='splits are train, val, test, not dev'):
        seg_folder(tmp_path, splits={'dev': 'val.txt'})
    with pytest.raises(FileNotFoundError, match='mine.txt'): seg_folder(tmp_path, splits={'val': 'mine.txt'})
    assert len(seg_folder(tmp_path, splits={}).train) == 4


def test_lists_know_stems_paths_and_columns(tmp_path):
    lines = '# mine\n/their/disk/d/a.png /their/disk/annot/a.png\n\n1.png,labels/1.png\n'
    basic(tmp_path, **{'images/d/a.jpg': None, 'images/e/a.jpg': None, 'val.txt': lines})
    t = seg_folder(tmp_path)
    assert [Path(p).relative_to(tmp_path/'images').as_posix() for p in t.val.df.image] == ['1.jpg', 'd/a.jpg']
    make(tmp_path, {'val.txt': 'a\n'})
    with pytest.raises(ValueError, match="'a' fits 2 images, d/a and e/a: write the path"): seg_folder(tmp_path)
    make(tmp_path, {'val.txt': 'other/a\n'})
    with pytest.raises(ValueError, match='line 1: no image'): seg_folder(tmp_path)
    assert [s for s, _ in split_lists(tmp_path)] == ['val']


def test_a_line_whose_image_is_gone_means_no_other(tmp_path):
    basic(tmp_path, **{'images/photo.jpg': None, 'val.txt': 'photo (2).jpg\n'})
    with pytest.raises(ValueError, match=r"line 1: no image 'photo \(2\)'"): seg_folder(tmp_path)


def test_links_to_each_other_end(tmp_path):
    for a, b in ('xy', 'yx'):
        make(tmp_path, {f'images/{a}/{a}.png': None})
        (tmp_path/'images'/a/'other').symlink_to(tmp_path/'images'/b)
    assert len(seg_folder(tmp_path, space=LabelSpace('ab'), labels='none')) == 4  # each link is followed once


def test_a_first_class_named_as_a_column_is_a_class(tmp_path):
    codes = make(tmp_path, {'a.txt': 'red\nyellow\ngreen\n', 'b.txt': 'name\nroad\n', 'c.txt': 'id name\n0 road\n'})
    found = [[c[1] for c in read_codes(codes/f'{k}.txt')] for k in 'abc']
    assert found == [['red', 'yellow', 'green'], ['road'], ['road']]


def test_lists_of_two_folders_are_not_mixed(tmp_path):
    basic(tmp_path, **{'val.txt': '1\n', 'splits/test.txt': '2\n'})
    with pytest.warns(UserWarning, match='splits: its lists are not read, because .*val.txt is there'):
        assert [s for s, _ in split_lists(tmp_path)] == ['val']


def test_a_share_for_validation(tmp_path):
    "Case 18: without a list, whole groups are held out"
    files = {f'{d}/v{i}_{j}.png': 0 for d in ('images', 'labels') for i in range(5) for j in range(4)}
    t = seg_folder(make(tmp_path, files | {'codes.txt': 'road\ncar\n'}), group=2, val=.2)
    assert len(t.val) == 4 and len(t.val.groups) == 1 and not set(t.val.groups) & set(t.train.groups)
    with pytest.raises(ValueError, match='val=1: a share'): seg_folder(tmp_path, val=1)
    make(tmp_path, {'val.txt': 'v0_0\n'})
    with pytest.raises(ValueError, match='val=0.2, but 1 images are for validation'): seg_folder(tmp_path, val=.2)


# Groups

def test_groups(tmp_path):
    names = ['a1_0', 'a1_1', 'b2_0']
    make(tmp_path, {f'images/train/{n}.jpg': None for n in names} | {'images/val/lyon/c_0.jpg': None})
    read = lambda **k: seg_folder(tmp_path, LabelSpace(['road']), **k).df.group.tolist()
    assert read() == ['train/a1_0', 'train/a1_1', 'train/b2_0', 'val/lyon']
    assert read(group='2') == read(group=2) == ['train/a1', 'train/a1', 'train/b2', 'val/lyon/c_']
    assert read(group=r'([a-z]\d?)_') == ['a1', 'a1', 'b2', 'c'] and read(group='image')[-1] == 'val/lyon/c_0'
    assert read(group=lambda k: k[-1]) == ['0', '1', '0', '0']
    with pytest.raises(ValueError, match=r"does not fit 1 names: val/lyon/c_0"): read(group=r'([a-z]\d)_')
    for bad in ('(', 'x', '(a)(b)'):
        with pytest.raises(ValueError, match='group='): read(group=bad)


@pytest.mark.parametrize('folder,split', [('val2017', 'val'), ('val_set', 'val'), ('Eval', 'val'), ('test2015', 'test'),
                                          ('train_set', 'train'), ('values', ''), ('testimony', ''), ('valley', '')])
def test_names_of_split_folders(folder, split):
    "A year or the word set behind a split's name does not hide it; longer words are no splits"
    from selftrain_nb.layout import name_meaning
    assert name_meaning(folder)[0] == split
