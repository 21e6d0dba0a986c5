"Readers of data sets: what they read, what they refuse, and the real data where SELFTRAIN_NB_DATA names the folder that holds camvid/ and idd_lite/."
import os, subprocess, sys, unicodedata, warnings
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from selftrain_nb.datasets import CAMVID, IDD_LITE, camvid, idd_lite, seg_folder
from selftrain_nb.labels import LabelSpace, Remap

DATA = os.environ.get('SELFTRAIN_NB_DATA')
real_data = pytest.mark.skipif(not DATA, reason='SELFTRAIN_NB_DATA does not name a folder with camvid/ and idd_lite/')


def make(root, files):
    "Write {name: text, or id for an 8x8 PNG label, or None for an 8x8 image}"
    for name, content in files.items():
        p = root/name
        p.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str): p.write_text(content, encoding='utf-8')
        else: Image.fromarray(np.full((8, 8) if content is not None else (8, 8, 3), content or 0, np.uint8)).save(p)
    return root


def basic(root, n=4, **more):
    files = {f'images/{i}.jpg': None for i in range(n)} | {f'labels/{i}.png': i % 3 for i in range(n)} | {'codes.txt': 'road\ncar\nVoid\n'}
    return make(root, files | more)


def test_reads_pairs_void_and_default_split(tmp_path):
    t = seg_folder(basic(tmp_path))
    assert (len(t), len(t.labelled), len(t.train)) == (4, 4, 4)
    assert t.space.names == ('road', 'car') and t.remaps[tmp_path.name].ids[2] == 255
    assert t.mask(2).max() == 255 and len(t.check()) == 0


def test_no_such_folder_and_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'): seg_folder(tmp_path/'nowhere')
    make(tmp_path, {'x.txt': 'x'})
    with pytest.raises(FileNotFoundError, match='is a file'): seg_folder(tmp_path/'x.txt')
    for reader in (camvid, idd_lite):
        with pytest.raises(FileNotFoundError, match='no such folder'): reader(tmp_path/'nowhere')


def test_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder 'images'.*holds: nothing"): seg_folder(tmp_path)
    (tmp_path/'images').mkdir()
    with pytest.raises(FileNotFoundError, match=r'no images in it.*\.jpg \.jpeg'): seg_folder(tmp_path)


def test_one_folder_too_high_or_too_low(tmp_path):
    basic(tmp_path/'town')
    with pytest.raises(FileNotFoundError, match='did you mean .*town'): seg_folder(tmp_path)
    for sub in ('images', 'labels'):
        with pytest.raises(FileNotFoundError, match='did you mean .*town'): seg_folder(tmp_path/'town'/sub)


def test_no_codes_says_how_to_pass_a_space(tmp_path):
    (basic(tmp_path)/'codes.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'pass space=LabelSpace'): seg_folder(tmp_path)
    assert len(seg_folder(tmp_path, space=LabelSpace(['a', 'b', 'c'])).labelled) == 4


@pytest.mark.parametrize('codes,says', [('road\n\ncar\n', 'line 2: empty'), ('road\nroad\n', "line 2: 'road' comes twice")])
def test_bad_codes(tmp_path, codes, says):
    with pytest.raises(ValueError, match=says): seg_folder(basic(tmp_path, **{'codes.txt': codes}))


def test_codes_of_another_encoding_or_with_windows_habits(tmp_path):
    basic(tmp_path)
    (tmp_path/'codes.txt').write_bytes('Straße\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='codes.txt is not UTF-8'): seg_folder(tmp_path)
    (tmp_path/'codes.txt').write_bytes(b'\xef\xbb\xbf' + 'Straße\r\nAuto\r\nUnlabeled\r\n\r\n'.encode())
    assert seg_folder(tmp_path).space.names == ('Straße', 'Auto')


def test_image_without_label_becomes_unlabelled(tmp_path):
    (basic(tmp_path)/'labels/1.png').unlink()
    t = seg_folder(tmp_path)
    assert list(t.df.kind) == ['real', 'none', 'real', 'real'] and t.df.label[1] == ''


def test_label_without_image_warns_and_names_it(tmp_path):
    with pytest.warns(UserWarning, match='2 of 6 labels have no image and are left out: x, y'):
        assert len(seg_folder(basic(tmp_path, **{'labels/x.png': 0, 'labels/y.png': 0}))) == 4


def test_no_label_fits_at_all(tmp_path):
    make(tmp_path, {'images/a.jpg': None, 'labels/truth of a.png': 0, 'codes.txt': 'road\n'})
    with pytest.raises(ValueError, match='Pass label_name='): seg_folder(tmp_path)
    assert len(seg_folder(tmp_path, label_name=lambda k: f'truth of {k}.png').labelled) == 1


def test_names_with_spaces_and_beyond_ascii_in_both_unicode_forms(tmp_path):
    nfc, nfd = (unicodedata.normalize(f, 'über été') for f in ('NFC', 'NFD'))
    make(tmp_path, {f'images/a b/{nfd} 1.JPG': None, f'labels/a b/{nfc} 1_P.png': 1, 'images/日本.webp': None, 'labels/日本.png': 0,
                    'codes.txt': 'road\ncar\n', 'val.txt': f'{nfc} 1\n', 'test.txt': '日本.webp\n'})
    t = seg_folder(tmp_path)
    assert sorted(zip(t.df.split, t.df.kind)) == [('test', 'real'), ('val', 'real')]
    assert t.val.groups == ['a b'] and len(t.check()) == 0


def test_unknown_id_names_file_and_id(tmp_path):
    t = seg_folder(basic(tmp_path, **{'labels/1.png': 9}))
    with pytest.raises(ValueError, match=r'1\.png.*unknown id 9'): t.mask(1)
    assert t.check().problem.str.contains('unknown id 9').tolist() == [True]
    assert seg_folder(tmp_path, void=9).mask(1).max() == 255
    assert seg_folder(tmp_path, void=[7, 9]).mask(1).max() == 255


def test_wrong_list_entries(tmp_path):
    basic(tmp_path, **{'val.txt': '1.jpg\nno such picture\n'})
    with pytest.raises(ValueError, match=r"val\.txt, line 2: no image 'no such picture' among 4"): seg_folder(tmp_path)
    make(tmp_path, {'val.txt': '1\n', 'train.txt': '0\n1\n'})
    with pytest.raises(ValueError, match=r"val\.txt, line 1: '1' is in the split 'train' already \(train\.txt, line 2\)"): seg_folder(tmp_path)
    with pytest.raises(ValueError, match='splits are train, val, test, not dev'): seg_folder(tmp_path, splits={'dev': 'val.txt'})
    with pytest.raises(FileNotFoundError, match='mine.txt'): seg_folder(tmp_path, splits={'val': 'mine.txt'})


def test_lists_know_stems_paths_and_two_columns(tmp_path):
    basic(tmp_path, **{'images/d/a.jpg': None, 'images/e/a.jpg': None, 'val.txt': '/their/disk/d/a.png /their/disk/annot/a.png\n\n1.png\n'})
    t = seg_folder(tmp_path)
    assert [Path(p).relative_to(tmp_path/'images').as_posix() for p in t.val.df.image] == ['1.jpg', 'd/a.jpg']
    make(tmp_path, {'val.txt': 'a\n'})
    with pytest.raises(ValueError, match="'a' fits 2 images, d/a and e/a: write the path"): seg_folder(tmp_path)
    make(tmp_path, {'val.txt': 'other/a\n'})
    with pytest.raises(ValueError, match='line 1: no image'): seg_folder(tmp_path)


def test_two_images_for_one_label(tmp_path):
    with pytest.raises(ValueError, match='differ only in the extension'): seg_folder(basic(tmp_path, **{'images/1.png': None}))
    with pytest.raises(ValueError, match='must lie in different folders'): seg_folder(tmp_path, images='labels')


def test_hidden_files_are_left_out(tmp_path):
    assert len(seg_folder(basic(tmp_path, **{'images/._1.jpg': 'x', 'images/.cache/9.jpg': 'x', 'images/notes.txt': 'x'}))) == 4


def test_folders_named_after_splits(tmp_path):
    t = seg_folder(make(tmp_path, {f'images/{s}/x.png': None for s in ('train', 'valid', 'test', 'extra')}), space=IDD_LITE)
    assert dict(zip(t.df.group, t.df.split)) == {'train': 'train', 'valid': 'val', 'test': 'test', 'extra': 'train'}


def test_a_space_and_a_remap_of_ones_own(tmp_path):
    basic(tmp_path)
    assert seg_folder(tmp_path, space=LabelSpace(['bus', 'car', 'road'])).mask(0).max() == 2
    with pytest.raises(ValueError, match='codes.txt has classes that .* has not: car'): seg_folder(tmp_path, space=LabelSpace(['road']))
    assert seg_folder(tmp_path, space=LabelSpace(['road']), remap=Remap({0: 0, 1: 255, 2: 255})).mask(1).min() == 255


def test_bad_meta(tmp_path):
    with pytest.raises(ValueError, match='meta.json is not JSON'): seg_folder(basic(tmp_path, **{'meta.json': '{'}))


def test_images_only_need_a_space(tmp_path):
    make(tmp_path, {'a.jpg': None, 'sub/b.jpg': None})
    t = seg_folder(tmp_path, space=CAMVID)
    assert len(t.unlabelled) == 2 and sorted(Path(p).name for p in t.df.image) == ['a.jpg', 'b.jpg']


def test_rgb_labels_with_a_colour_table(tmp_path):
    make(tmp_path, {'images/a.jpg': None, 'labels/a_L.png': None})
    t = seg_folder(tmp_path, space=LabelSpace(['x', 'y']), remap=Remap(colours={(0, 0, 0): 1}))
    assert (t.mask(0) == 1).all()


def test_nothing_is_opened_and_no_torch_is_imported(tmp_path):
    make(tmp_path, {f'images/{i}.jpg': '' for i in range(50)} | {f'labels/{i}.png': '' for i in range(50)} | {'codes.txt': 'road\n'})
    code = f'import sys; from selftrain_nb.datasets import seg_folder; assert len(seg_folder({str(tmp_path)!r})) == 50; assert not {{"torch", "fastai"}} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent.parent)


def _video(name, numbers): return {f'images/{name.format(i)}.jpg': None for i in numbers} | {f'labels/{name.format(i)}.png': 0 for i in numbers}


def test_camvid_stretches_last_twenty_seconds_and_never_cross_a_split(tmp_path):
    files = _video('0006R0_f{:05}', range(930, 3931, 30)) | _video('0016E5_{:05}', [*range(390, 2401, 30), *range(8190, 8641, 30), *range(7959, 8160, 2)])
    val = '\n'.join(f'0016E5_{i:05}' for i in range(7959, 8160, 2))
    t = camvid(make(tmp_path, files | {'val.txt': val, 'codes.txt': '\n'.join(CAMVID.names)}))
    df = t.df.assign(f=[int(Path(p).stem.split('_')[1].strip('f')) for p in t.df.image])
    span = df.groupby('group').f.agg(lambda f: (f.max() - f.min())/30)
    assert (df.groupby('group').split.nunique() == 1).all()
    assert (span[df[df.split == 'train'].group.unique()] >= 20).all() and t.space == CAMVID


def test_camvid_refuses_other_names_and_protocols(tmp_path):
    make(tmp_path, {'images/holiday.jpg': None, 'labels/holiday.png': 0, 'codes.txt': 'road\n'})
    with pytest.raises(ValueError, match="'holiday' is no CamVid frame"): camvid(tmp_path)
    with pytest.raises(ValueError, match="'official' or 'sequence'"): camvid(tmp_path, protocol='mine')


@pytest.mark.parametrize('lists', [True, False])
def test_camvid_of_segnet(tmp_path, lists):
    stems = dict(train='0001TP_006690', val='0016E5_07959', test='Seq05VD_f00000')
    files = {f'{s}/{f}.png': None for s, f in stems.items()} | {f'{s}annot/{f}.png': 11 for s, f in stems.items()}
    if lists: files |= {f'{s}.txt': f'/SegNet/CamVid/{s}/{f}.png /SegNet/CamVid/{s}annot/{f}.png\n' for s, f in stems.items()}
    t = camvid(make(tmp_path, files))
    assert {Path(r.image).stem: r.split for r in t} == {f: s for s, f in stems.items()}
    assert len(t.labelled) == 3 and (t.mask(0) == 255).all() and t.space == CAMVID


def test_forms_of_our_own(tmp_path):
    "Classes in meta.json instead of codes.txt; IDD-lite without a list for validation"
    make(tmp_path/'c', _video('0006R0_f{:05}', range(930, 1000, 30)) | {'meta.json': '{"classes": ["Road", "Void"]}'})
    assert len(camvid(tmp_path/'c').train.real) == 3
    make(tmp_path/'i', {f'images/d00{i}_0.jpg': None for i in range(3)} | {f'labels/d00{i}_0.png': 0 for i in range(3)})
    assert len(idd_lite(tmp_path/'i').train.real) == 3


def test_camvid_of_fastai(tmp_path):
    make(tmp_path, {'images/0016E5_00390.png': None, 'labels/0016E5_00390_P.png': 3, 'images/0016E5_07961.png': None, 'labels/0016E5_07961_P.png': 2,
                    'codes.txt': 'Animal\nCar\nVoid\nWall', 'valid.txt': '0016E5_07961.png'})
    t = camvid(tmp_path)
    assert t.space.names == ('Animal', 'Car', 'Wall') and len(t.val) == 1
    assert t.mask(0).max() == 2 and t.val.mask(0).min() == 255


def test_camvid_offline_says_what_to_do(monkeypatch):
    import fastai.data.external as external
    def offline(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(external, 'untar_data', offline)
    with pytest.raises(OSError, match=r'no route to host.*camvid\(path\)'): camvid()


def test_idd_lite_archive(tmp_path):
    files = {f'leftImg8bit/{s}/{d}/{d}7_image.jpg': None for s, d in (('train', 12), ('val', 3), ('test', 5))}
    files |= {f'gtFine/{s}/{d}/{d}7_{e}label.png': 6 for s, d in (('train', 12), ('val', 3)) for e in ('', 'inst_')}
    make(tmp_path/'idd20k_lite', files)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = idd_lite(tmp_path)
    assert sorted((r.split, r.kind, r.group) for r in t) == [('train', 'none', 'test/5'), ('train', 'real', 'train/12'), ('val', 'real', 'val/3')]
    assert t.space == IDD_LITE and t.labelled.mask(0).max() == 6


@real_data
def test_real_camvid():
    t, s = camvid(f'{DATA}/camvid'), camvid(f'{DATA}/camvid', protocol='sequence')
    assert [len(x) for x in (t.train, t.val, t.test)] == [367, 101, 233]
    assert [len(x) for x in (s.train, s.val, s.test)] == [429, 101, 171]
    assert t.space == CAMVID and len(t.unlabelled) == 0 and len(t.check()) == 0


@real_data
def test_real_idd_lite():
    t = idd_lite(f'{DATA}/idd_lite')
    assert [len(x) for x in (t.train.labelled, t.val, t.unlabelled)] == [1403, 163, 404]
    assert t.space == IDD_LITE and len(t.groups) == 458 and len(t.check()) == 0
