"Crops and changes of an image and its labels: in step, reproducible, and never in the wrong direction."

from dataclasses import replace
import numpy as np, pytest
from PIL import Image
from hypothesis import given, settings, strategies as st
from selftrain_nb.augment import *
from selftrain_nb.labels import VOID

EVERYTHING = Augment(scale=(0.5, 2.0), colour=0.5, hue=0.15, grey=0.2, blur=0.5, cutout=0.5, rotate=20.0)


def ids(h, w, n=200):
    "An image whose pixels are all known: value by place"
    return Image.fromarray((np.arange(h * w).reshape(h, w) % n).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))
def test_labels_stay_in_step(h, w, ch, cw, seed):
    "Mask and confidence go through the same geometry, at every size; the crop has the size that was asked for"
    mask = ids(h, w)
    soft = Image.merge('RGB', [mask] * 3)
    image, (a, b, c) = EVERYTHING.apply(
        Image.new('RGB', (w, h)), [mask, mask, soft], np.random.default_rng(seed), (ch, cw)
    )
    a, b, c = map(np.asarray, (a, b, c))
    assert image.size == (cw, ch) and a.shape == b.shape == c.shape[:2] == (ch, cw)
    inside = a != VOID  # CutOut and padding
    assert (a[inside] == b[inside]).all() and (a[inside] == c[inside][:, 1]).all()


def test_image_and_mask_stay_in_step():
    "At scale 1, without changes of colour, the image's red channel is its mask"
    mask = ids(40, 60)
    aug = Augment(scale=(1, 1), cutout=0.5)
    for seed in range(50):
        image, m = aug(mask.convert('RGB'), mask, np.random.default_rng(seed), (32, 48))
        m, red = np.asarray(m), np.asarray(image)[..., 0]
        assert (red[m != VOID] == m[m != VOID]).all()


@pytest.mark.parametrize('conf', [None, ids(30, 50)])
def test_same_generator_same_result(conf):
    im, mask = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)), ids(30, 50)
    a, b = (EVERYTHING(im, mask, np.random.default_rng(5), (16, 24), conf=conf) for _ in range(2))
    assert len(a) == 2 + (conf is not None)
    assert all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(a, b))


def test_padding_is_void_and_without_confidence():
    "A crop larger than the image: outside, the mask is void, the confidence 0, the image grey"
    im, mask, conf = Image.new('RGB', (10, 10), (1, 2, 3)), Image.new('L', (10, 10), 7), Image.new('L', (10, 10), 200)
    x, y, c = Augment(scale=(1, 1), flip=0.0)(im, mask, np.random.default_rng(0), (20, 20), conf=conf)
    x, y, c = map(np.asarray, (x, y, c))
    assert set(np.unique(y)) == {7, VOID} and (y == 7).sum() == 100
    assert (c[y == VOID] == 0).all() and (c[y == 7] == 200).all()
    assert (x[y == VOID] == GREY).all()


@pytest.mark.parametrize('aug', [weak, replace(EVERYTHING, cutout=0.0)], ids=['weak', 'everything'])
def test_a_centroid_crop_shows_its_class(aug):
    "Also a single pixel that shrinking or turning would drop"
    speck = np.zeros((55, 63), np.uint8)
    speck[0, 62] = 1
    for seed in range(150):
        out = aug(
            Image.new('RGB', (63, 55)),
            Image.fromarray(speck),
            np.random.default_rng(seed),
            (37, 41),
            centroid=(1, 0, 62),
        )
        assert (np.asarray(out[1]) == 1).any()


@pytest.mark.parametrize('aug', [weak, strong])
def test_mirror_images_can_be_switched_off(aug):
    "Classes with a side, left and right, must never be mirrored (case 40)"
    left = np.zeros((32, 32), np.uint8)
    left[:, 16:] = 1

    def mirrored(a):
        return [
            np.asarray(a(Image.new('RGB', (32, 32)), Image.fromarray(left), np.random.default_rng(s))[1])[0, 0] == 1
            for s in range(40)
        ]

    assert any(mirrored(aug)) and not any(mirrored(replace(aug, flip=0.0)))


def test_without_a_crop_the_size_stays():
    im, mask = Image.new('RGB', (31, 17)), ids(17, 31)
    x, y = Augment(flip=0.0)(im, mask, np.random.default_rng(0))
    assert x.size == (31, 17) and (np.asarray(y) == np.asarray(mask)).all()


def test_weak_and_strong_differ_in_the_image_alone():
    im, mask = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)), ids(40, 60)
    for seed in range(10):
        (_, a), (_, b) = (f(im, mask, np.random.default_rng(seed), (20, 30)) for f in (weak, strong))
        assert (np.asarray(a) == np.asarray(b)).all()
    changed = [
        np.asarray(strong(im, mask, np.random.default_rng(s), (20, 30))[0])
        != np.asarray(weak(im, mask, np.random.default_rng(s), (20, 30))[0])
        for s in range(20)
    ]
    assert sum(c.any() for c in changed) > 10


@pytest.mark.parametrize(
    'wrong, named',
    [
        (dict(flip=1.5), 'flip=1.5'),
        (dict(flip='yes'), "flip='yes'"),
        (dict(colour=-1), 'colour=-1'),
        (dict(hue=0.6), 'hue=0.6'),
        (dict(scale=(2, 1)), 'scale='),
        (dict(scale=(0, 1)), 'scale='),
        (dict(scale=(1, 2, 3)), 'scale='),
        (dict(rotate=-1), 'rotate=-1'),
    ],
)
def test_wrong_values_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        Augment(**wrong)


def test_json():
    import json

    assert Augment(**json.loads(json.dumps(strong.to_dict()))) == strong
    assert as_augment(ids).to_dict() == dict(func='ids')


def test_a_function_of_ones_own():
    "It comes after the crop of `weak`; what it cannot do has one error each"

    def invert(image, mask, rng):
        return Image.fromarray(255 - np.asarray(image)), mask

    def smaller(image, mask, rng):
        return image.resize((8, 8)), mask

    im, mask, rng = Image.new('RGB', (40, 30)), ids(30, 40), np.random.default_rng
    x, y = as_augment(invert)(im, mask, rng(0), (16, 16))
    assert x.size == (16, 16) and np.asarray(x).max() == 255
    assert (np.asarray(y) == np.asarray(weak(im, mask, rng(0), (16, 16))[1])).all()
    with pytest.raises(ValueError, match='smaller changed'):
        as_augment(smaller)(im, mask, rng(0), (16, 16))
    with pytest.raises(ValueError, match='not a confidence'):
        as_augment(invert)(im, mask, rng(0), (16, 16), conf=mask)
    with pytest.raises(ValueError, match="augment='strong'"):
        as_augment('strong')
