"Images and label files of all kinds: read as what they are, or one error that names the file."

import itertools, struct, sys, zlib

import numpy as np, pytest
from PIL import Image

from selftrain_nb.images import *
from selftrain_nb.labels import *

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:PIL', 'ignore::DeprecationWarning')
SPACE = LabelSpace(['road', 'sky', 'car'], [[9, 9, 200], [0, 80, 0], [7, 0, 0]])


def pixels(seed=0, h=32, w=48):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def ids(seed=0, h=32, w=48, n=3):
    return np.random.default_rng(seed).integers(0, n, (h, w), dtype=np.uint8)


def smooth(h=32, w=48):
    "A photo in which every corner is different, and that JPEG keeps well"
    y, x = np.mgrid[:h, :w]
    return np.dstack([x * 4, y * 6, 120 + 0 * x]).astype(np.uint8)


def save(path, a, **kwargs):
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(path, **kwargs)
    return path


def note(o):
    exif = Image.Exif()
    exif[0x0112] = o
    return exif


def chunks(data):
    "Blocks of a PNG file"
    at = 8
    while at < len(data):
        n = int.from_bytes(data[at : at + 4], 'big') + 12
        yield data[at + 4 : at + 8], data[at : at + n]
        at += n


def block(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png16(path, a):
    "A colour PNG of 16 bits, which Pillow cannot write"
    h, w, c = a.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in a)
    head = block(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, {3: 2, 4: 6}[c], 0, 0, 0))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + head + block(b'IDAT', zlib.compress(rows)) + block(b'IEND', b''))
    return path


def tif16(path, a, order, deflate=False):
    "A colour TIFF of 16 bits"
    h, w, c = a.shape
    data = a.astype(order + 'u2').tobytes()
    data = zlib.compress(data) if deflate else data
    data += b'\0' * (len(data) % 2)
    tags = {256: w, 257: h, 258: 8, 259: 8 if deflate else 1, 262: 2, 273: 14, 277: c, 278: h, 279: len(data)}
    start = 8 + 2 * c + len(data)
    out = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', start) + struct.pack(order + 'H', 16) * c
    out += data + struct.pack(order + 'H', len(tags))
    for tag, v in tags.items():
        out += struct.pack(order + 'HHII', tag, 3 if tag == 258 else 4, c if tag == 258 else 1, v)
    path.write_bytes(out + struct.pack(order + 'I', 0))
    return path


# Images


@pytest.mark.parametrize(
    'mode,ext',
    [
        ('L', 'png'),
        ('RGBA', 'png'),
        ('CMYK', 'jpg'),
        ('P', 'png'),
        ('1', 'png'),
        ('LA', 'png'),
        ('RGB', 'webp'),
        ('P', 'gif'),
        ('RGB', 'bmp'),
        ('CMYK', 'tif'),
        ('YCbCr', 'jpg'),
    ],
)
def test_images_of_all_kinds_are_rgb(tmp_path, mode, ext):
    im = read_image(save(tmp_path / f'a.{ext}', Image.fromarray(smooth()).convert(mode)))
    assert (im.mode, im.size, image_size(tmp_path / f'a.{ext}')) == ('RGB', (48, 32), (32, 48))
    if mode not in ('1', 'P', 'L', 'LA', 'CMYK'):
        assert np.abs(np.asarray(im).astype(int) - smooth()).mean() < 6


@pytest.mark.parametrize('o,ext', [*itertools.product(range(1, 9), ['jpg', 'png', 'tif', 'webp'])])
def test_one_rule_for_orientation_of_images_and_labels(tmp_path, o, ext):
    """An image and a label that carry the same note are turned alike, in every format; the size is known without
    decoding"""
    a, mask = smooth(), (smooth()[..., 0] > 90).astype(np.uint8) * 255
    im = save(
        tmp_path / f'a.{ext}',
        a,
        exif=note(o),
        **(dict(quality=95) if ext == 'jpg' else dict(lossless=True) if ext == 'webp' else {}),
    )
    assert image_size(im) == read_image(im).size[::-1] == ((32, 48) if o < 5 else (48, 32))
    assert orientation(im) == o
    if ext != 'jpg':
        label = np.dstack([mask] * 3) if ext == 'webp' else mask
        m = read_mask(
            save(tmp_path / f'm.{ext}', label, exif=note(o), **(dict(lossless=True) if ext == 'webp' else {})),
            Remap.binary(),
        )
        assert ((np.asarray(read_image(im))[..., 0] > 90) == m).all()


def test_a_note_behind_the_pixels_of_a_png(tmp_path):
    "The PNG standard allows it, and it must not matter where it stands"
    data = save(tmp_path / 'a.png', smooth(), exif=note(6)).read_bytes()
    parts = [*chunks(data)]
    assert b'eXIf' in [k for k, _ in parts]
    late = [c for k, c in parts if k not in (b'eXIf', b'IEND')] + [c for k, c in parts if k in (b'eXIf', b'IEND')]
    (tmp_path / 'late.png').write_bytes(data[:8] + b''.join(late))
    assert image_size(tmp_path / 'late.png') == read_image(tmp_path / 'late.png').size[::-1] == (48, 32)
    assert np.array_equal(read_image(tmp_path / 'late.png'), read_image(tmp_path / 'a.png'))


@pytest.mark.parametrize('o', [0, 9, 'x'])
def test_a_note_that_makes_no_sense(tmp_path, o):
    exif = Image.Exif()
    exif[0x0112 if o != 'x' else 0x010E] = o
    assert read_image(save(tmp_path / 'a.jpg', smooth(), exif=exif)).size == (48, 32)


def test_damaged_exif_data(tmp_path):
    "The pixels are sound"
    save(tmp_path / 'a.jpg', smooth(), exif=b'Exif\0\0nonsense')
    assert read_image(tmp_path / 'a.jpg').size == (48, 32) and image_size(tmp_path / 'a.jpg') == (32, 48)


@pytest.mark.parametrize('ext', ['jpg', 'png', 'tif', 'gif', 'webp', 'bmp'])
@pytest.mark.parametrize('keep', [0, 0.1, 0.6])
def test_a_file_that_is_cut(tmp_path, ext, keep):
    f = save(tmp_path / f'a.{ext}', pixels())
    f.write_bytes(f.read_bytes()[: int(len(f.read_bytes()) * keep)])
    with pytest.raises(OSError, match=rf'a.{ext}: cannot be read as an image \(.*\); replace or remove the file'):
        read_image(f)
    if ext != 'jpg':
        with pytest.raises(OSError, match=f'a.{ext}: cannot be read as a label'):
            read_mask(f, Remap.identity(3))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='a.png: no such image'):
        read_image(tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError, match='a.png: no such image'):
        image_size(tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError, match='a.png: no such label'):
        read_mask(tmp_path / 'a.png', Remap.identity(3))


def test_any_damage_is_an_error_that_names_the_file(tmp_path):
    "Whatever the decoder raises; here bytes are changed at random"
    rng, names = np.random.default_rng(0), set()
    for ext in ('png', 'tif', 'gif', 'jpg', 'webp'):
        data = save(tmp_path / f'a.{ext}', smooth()).read_bytes()
        for k in range(60):
            a = bytearray(data)
            for at in rng.integers(0, min(len(a), 400), 4):
                a[at] = rng.integers(0, 256)
            (tmp_path / f'b.{ext}').write_bytes(a)
            for read in (read_image, image_size, lambda f: read_mask(f, Remap.identity(3))):
                try:
                    read(tmp_path / f'b.{ext}')
                except (OSError, ValueError) as e:
                    assert str(e).startswith(f'{tmp_path}/b.{ext}: ')
                    names.add(ext)
    assert names == {'png', 'tif', 'gif', 'jpg', 'webp'}


def test_an_image_that_claims_a_billion_pixels(tmp_path):
    head = block(b'IHDR', struct.pack('>IIBBBBB', 2**16, 2**16, 8, 2, 0, 0, 0))
    (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n' + head)
    with pytest.raises(OSError, match='a.png: cannot be read as an image'):
        read_image(tmp_path / 'a.png')


# More than 8 bits


def test_one_white_for_a_data_set(tmp_path):
    "The same value is as bright in each image, whatever else the image shows"
    lamp = np.full((8, 8), 200, np.uint16)
    lamp[0, 0] = 256
    files = [save(tmp_path / 'dark.png', np.full((8, 8), 200, np.uint16)), save(tmp_path / 'lamp.png', lamp)]
    for white in (None, white_level(files)):
        a, b = (read_image(f, white).getpixel((5, 5)) for f in files)
        assert a == b
    assert white_level(files) == 1023


@pytest.mark.parametrize('white', [1023, 4095, 16383, 65535])
def test_all_levels_of_a_camera_are_kept(tmp_path, white):
    ramp = np.linspace(0, white, 16 * 16).round().astype(np.uint16).reshape(16, 16)
    grey, colour = save(tmp_path / 'grey.png', ramp), png16(tmp_path / 'colour.png', np.dstack([ramp] * 3))
    save(tmp_path / 'grey.tif', ramp)
    how = [(k, o, z) for k, o in (('le', '<'), ('be', '>')) for z in (0, 1)]
    tifs = [tif16(tmp_path / f'{k}{z}.tif', np.dstack([ramp] * 3), o, z) for k, o, z in how]
    for f in (grey, colour, png16(tmp_path / 'alpha.png', np.dstack([ramp] * 4)), tmp_path / 'grey.tif', *tifs):
        assert white_level([f]) == white
        a = np.asarray(read_image(f, white))
        assert (a.min(), a.max(), len(np.unique(a))) == (0, 255, 256) and (a == a[..., :1]).all()


def test_what_an_editor_notes_in_a_file_of_16_bits_changes_nothing(tmp_path):
    "XMP before the pixels, EXIF behind them"
    data = png16(tmp_path / 'a.png', np.random.default_rng(0).integers(0, 4096, (8, 8, 3))).read_bytes()
    head, pixels, end = (c for _, c in chunks(data))
    xmp = block(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>')
    exif = block(b'eXIf', note(6).tobytes().removeprefix(b'Exif\0\0'))
    for name, parts in dict(xmp=[head, xmp, pixels, end], exif=[head, pixels, exif, end]).items():
        (tmp_path / f'{name}.png').write_bytes(data[:8] + b''.join(parts))
    a, x, e = (np.asarray(read_image(tmp_path / f'{k}.png', 4095)) for k in ('a', 'xmp', 'exif'))
    assert np.array_equal(x, a) and np.array_equal(np.sort(e, None), np.sort(a, None))
    assert white_level([tmp_path / 'xmp.png']) == 4095


def test_ids_in_a_gif(tmp_path):
    "Pillow numbers the greys of a GIF anew; colours are read as such"
    assert read_mask(save(tmp_path / 'a.gif', np.array([[0, 2]], np.uint8)), Remap.identity(3)).tolist() == [[0, 2]]
    red = save(tmp_path / 'b.gif', np.full((2, 2, 3), (200, 0, 0), np.uint8))
    assert (read_mask(red, Remap(colours={(200, 0, 0): 1})) == 1).all()


def test_pixels_that_are_no_number_do_not_choose_the_white(tmp_path):
    files = [save(tmp_path / f'{i}.tif', np.full((4, 4), 0.5, np.float32)) for i in range(3)]
    hole = np.full((4, 4), 0.5, np.float32)
    hole[0, 0] = np.nan
    save(files[0], hole)
    assert white_level(files) == white_level(files[::-1]) == 1.0
    assert white_level([save(tmp_path / 'none.tif', hole * np.nan)]) is None


def test_floats(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for name, a, white in [('one', ramp, 1.0), ('byte', ramp * 255, 255.0)]:
        f = save(tmp_path / f'{name}.tif', a)
        assert white_level([f]) == white
        assert np.asarray(read_image(f)).max() == np.asarray(read_image(f, white)).max() == 255
        assert len(np.unique(read_image(f))) == 256
    for name, a in [('low', ramp - 0.5), ('high', ramp * 3000), ('nan', ramp * np.nan)]:
        with pytest.raises(ValueError, match=f'{name}.tif: its values go from .* white is'):
            read_image(save(tmp_path / f'{name}.tif', a))


def test_values_beyond_white_are_not_clipped_in_silence(tmp_path):
    f = save(tmp_path / 'a.png', np.full((4, 4), 5000, np.uint16))
    with pytest.raises(ValueError, match='a.png: its values go from 5000 to 5000, but black is 0 and white is 4095'):
        read_image(f, 4095)


def test_white_of_a_mixed_folder(tmp_path):
    eight = save(tmp_path / '8.png', smooth())
    twelve = save(tmp_path / '12.png', np.full((4, 4), 4000, np.uint16))
    (tmp_path / 'broken.png').write_bytes(b'x')
    assert white_level([eight, twelve, tmp_path / 'broken.png', tmp_path / 'missing.png']) == 4095
    assert white_level([eight]) is None and white_level([]) is None
    assert np.array_equal(read_image(eight, 4095), smooth()), '8 bits are 8 bits'
    with pytest.raises(ValueError, match='no common white'):
        white_level([twelve, save(tmp_path / 'f.tif', np.ones((4, 4), np.float32))])


def test_the_sample_is_spread_over_all_files(tmp_path):
    files = [save(tmp_path / f'{i}.png', np.full((2, 2), i, np.uint16)) for i in range(0, 2000, 20)]
    assert white_level(files, most=10) == 4095 and white_level(files[:50], most=1) == 1023


# Label files


def test_forms_of_a_label(tmp_path):
    "The same ids, however they are stored"
    mask = ids(n=2)
    by_colour = Remap(colours={tuple(map(int, c)): i for i, c in enumerate(SPACE.colours)})
    palette = Image.fromarray(mask)
    palette.putpalette(SPACE.palette.tobytes())
    plain, rgb = Remap.identity(3), SPACE.decode(mask)
    forms = dict(
        rgb=(rgb, by_colour),
        rgba=(Image.fromarray(rgb).convert('RGBA'), by_colour),
        palette=(palette, plain),
        coloured=(palette, by_colour),
        deep=(mask.astype(np.uint16), plain),
        bit=(mask.astype(bool), plain),
        grey_rgb=(np.dstack([mask] * 3), plain),
        la=(Image.fromarray(mask).convert('LA'), plain),
        binary=(mask * 255, Remap.binary()),
        binary_rgb=(np.dstack([mask * 255] * 3), Remap.binary()),
    )
    for name, (form, remap) in forms.items():
        np.testing.assert_array_equal(read_mask(save(tmp_path / f'{name}.png', form), remap), mask, err_msg=name)


def test_ids_above_255(tmp_path):
    f = save(tmp_path / 'a.png', (ids(n=2) * np.uint16(40_000)))
    np.testing.assert_array_equal(read_mask(f, Remap({0: 0, 40_000: 1})), ids(n=2))
    with pytest.raises(ValueError, match='a.png: unknown id 40000; the remap knows'):
        read_mask(f, Remap.identity(2))
    with pytest.raises(ValueError, match='from ids 0-65535'):
        Remap({70_000: 1})
    again = Remap.from_dict(Remap({0: 0, 40_000: 1}).to_dict())
    assert again == Remap({0: 0, 40_000: 1}) and again.classes == {0, 1}


def test_a_mask_in_the_alpha_channel(tmp_path):
    car = ids(n=2) * 255
    f = save(tmp_path / 'a.png', np.dstack([car * 0] * 3 + [car]))
    np.testing.assert_array_equal(read_mask(f, Remap.binary()), car // 255)
    opaque = save(tmp_path / 'b.png', np.dstack([car] * 3 + [car | 255]))
    np.testing.assert_array_equal(read_mask(opaque, Remap.binary()), car // 255)


def test_black_and_white_files_with_a_colour_table(tmp_path):
    "A program that saves grey instead of RGB changes nothing"
    remap = Remap(colours={(0, 0, 0): 0, (255, 255, 255): 1})
    for form in (ids(n=2) * 255, np.dstack([ids(n=2) * 255] * 3)):
        np.testing.assert_array_equal(read_mask(save(tmp_path / 'a.png', form), remap), ids(n=2))


@pytest.mark.parametrize(
    'a,remap,says',
    [
        (
            np.full((4, 4), 77, np.uint8),
            Remap.identity(3),
            r'unknown id 77; the remap knows \[0, 1, 2, 255\]. Correct the file',
        ),
        (np.full((4, 4), 255, np.uint8), Remap({0: 0, 1: 1}), r'unknown id 255; .* Remap.binary\(\)'),
        (np.arange(64, dtype=np.uint8).reshape(8, 8), Remap.identity(3), 'Was the label resized smoothly'),
        (pixels(), Remap.identity(3), 'a colour label needs a colour table'),
        (pixels(), Remap(colours={(0, 0, 0): 0}), 'unknown colours .*the remap knows 1 colours'),
        (np.full((4, 4), -1, np.int32), Remap.identity(3), 'ids from 0 to 65535'),
        (np.ones((4, 4), np.float32), Remap.identity(3), 'ids from 0 to 65535'),
    ],
)
def test_a_label_that_cannot_be_read_rightly(tmp_path, a, remap, says):
    f = save(tmp_path / 'bad.tif', a)
    with pytest.raises(ValueError, match=f'bad.tif: .*{says}'):
        read_mask(f, remap)


def test_a_label_saved_as_jpeg(tmp_path):
    with pytest.raises(ValueError, match='a.jpg: JPEG changes ids; save labels as PNG'):
        read_mask(save(tmp_path / 'a.jpg', ids()), Remap.identity(3))


def test_colours_are_looked_up_rightly():
    "Run by run, against a plain loop"
    table = {
        (int(r), int(g), int(b)): k for k, (r, g, b) in enumerate(np.random.default_rng(1).integers(0, 256, (30, 3)))
    }
    names = np.array([*table], np.uint8)
    want = np.sort(np.random.default_rng(2).integers(0, 30, (20, 31)), 1)
    got = Remap(colours=table).decode_rgb(names[want])
    assert got.dtype == np.uint8 and (got == want).all()


def test_what_is_written_is_read_again(tmp_path):
    mask = np.array([[0, 1, 2], [2, VOID, 1]], np.uint8)
    for space in (None, SPACE):
        write_mask(tmp_path / 'm.png', mask, space)
        np.testing.assert_array_equal(read_mask(tmp_path / 'm.png', Remap.identity(3)), mask)
    seen = np.asarray(Image.open(tmp_path / 'm.png').convert('RGB'))
    assert seen[0, 0].tolist() == [9, 9, 200] and seen[1, 1].tolist() == [0, 0, 0], 'as any viewer shows it'


def test_confidence(tmp_path):
    mask, conf = np.array([[0, 1, VOID]], np.uint8), np.array([[127, 128, 0]], np.uint8)
    write_mask(tmp_path / 'm.png', mask)
    save(tmp_path / 'c.png', conf)
    assert read_mask(tmp_path / 'm.png', Remap.identity(2, min_conf=0.5), tmp_path / 'c.png').tolist() == [
        [VOID, 1, VOID]
    ]
    assert read_mask(tmp_path / 'm.png', Remap.identity(2, min_conf=[0.4, 0.6]), tmp_path / 'c.png').tolist() == [
        [0, VOID, VOID]
    ]
    save(tmp_path / 'small.png', conf[:, :2])
    with pytest.raises(ValueError, match='small.png: its shape is'):
        read_mask(tmp_path / 'm.png', Remap.identity(2, min_conf=0.5), tmp_path / 'small.png')
    soft = save(tmp_path / 'soft.png', np.dstack([conf, conf, conf]))
    assert read_conf(soft).shape == (1, 3) and read_conf(soft, soft=True).shape == (1, 3, 3)
    with pytest.raises(ValueError, match='c.png: no second class'):
        read_conf(tmp_path / 'c.png', soft=True)


# Label spaces


def test_label_spaces():
    assert LabelSpace(['a', 'b']) == LabelSpace(['a', 'b'], [[0, 0, 0], [1, 1, 1]]) != LabelSpace(['b', 'a'])
    assert len({tuple(c) for c in LabelSpace(range(60)).colours}) == 60
    for names in ([], range(255), ['a', 'a']):
        with pytest.raises(ValueError):
            LabelSpace(names)


@pytest.mark.parametrize('n', [3, 19, 66])
def test_the_legend_shows_all_names(n):
    import matplotlib.pyplot as plt

    space = LabelSpace([f'class {i}' for i in range(n)])
    fig, ax = plt.subplots(figsize=(2.6, 1.6))
    legend = space.legend(ax)
    fig.canvas.draw()
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == n and box.height <= 1.1 * fig.bbox.height
    plt.close(fig)


def test_working_size():
    assert (
        fit_size((100, 200)) == (100, 200)
        and fit_size((100, 200), 50) == (25, 50)
        and fit_size((100, 200), 999) == (100, 200)
    )
    assert fit_size((3, 3000), 100) == (1, 100) and fit_size((100, 200), np.int64(50)) == (25, 50)
    im = Image.fromarray(pixels())
    assert resize(im, None, Image.BILINEAR) is im and resize(im, (8, 9), Image.NEAREST).size == (9, 8)


def palette_file(path, index, colours):
    im = Image.fromarray(index)
    im.putpalette(np.asarray(colours, np.uint8).ravel().tobytes())
    return save(path, im)


BOTH = Remap({0: 0, 1: 1, 2: 2, 255: VOID}, {(9, 9, 200): 0, (0, 80, 0): 1, (7, 0, 0): 2, (0, 0, 0): VOID})


def test_a_palette_in_another_order(tmp_path):
    "Programs that turn a colour mask into a palette file number the colours as they like"
    mask = ids()
    f = palette_file(tmp_path / 'a.png', np.array([2, 0, 1], np.uint8)[mask], SPACE.colours[[1, 2, 0]])
    np.testing.assert_array_equal(read_mask(f, BOTH), mask)
    np.testing.assert_array_equal(read_mask(f, Remap(colours=BOTH.colours)), mask)
    np.testing.assert_array_equal(read_mask(f, Remap(BOTH.ids)), np.array([2, 0, 1])[mask], err_msg='ids by default')


def test_a_palette_with_other_colours_is_for_display(tmp_path):
    mask = ids()
    mask[0] = VOID
    for palette in (np.arange(256).repeat(3), np.random.default_rng(0).integers(100, 250, 768)):
        np.testing.assert_array_equal(read_mask(palette_file(tmp_path / 'a.png', mask, palette), BOTH), mask)
    write_mask(tmp_path / 'zero.png', mask * 0)
    assert (read_mask(tmp_path / 'zero.png', BOTH) == 0).all(), 'black in a grey palette is id 0'


def test_void_in_a_palette(tmp_path):
    mask = np.array([[0, 1, 2, VOID]], np.uint8)
    np.testing.assert_array_equal(
        read_mask(palette_file(tmp_path / 'a.png', mask, [*SPACE.colours, *[[1, 2, 3]] * 253]), BOTH), mask
    )


def test_heic_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    (tmp_path / 'a.HEIC').write_bytes(b'\0\0\0\x18ftypheic')
    with pytest.raises(OSError, match='a.HEIC: cannot be read as an image .*pillow-heif'):
        read_image(tmp_path / 'a.HEIC')
