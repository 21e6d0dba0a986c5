"Street scenes: the same bytes as ever, tables that grow, folders that belong to one data set."

import hashlib, json, os

import numpy as np, pytest

from selftrain_nb.drawing import CITY_A, CITY_B, DOMAINS, FRAMES, VERSION, Camera, _weather, _world, scene
from selftrain_nb.labels import VOID
from selftrain_nb.scenes import scenes
import children

# computed by generator 7 of the first edition: sha256 of image and mask, 16 digits, for (seed, index, size,
# city, domain)
KNOWN = {
    (0, 0, (96, 192), 'A', 'day'): '9611d806b1b6a260',
    (0, 9, (96, 192), 'A', 'dusk'): 'a1c2b599aa348376',
    (1, 14, (96, 192), 'A', 'night'): '673000a57de4accc',
    (1, 33, (96, 192), 'A', 'fog'): '9925ac17fcf220ca',
    (0, 2, (96, 192), 'B', 'day'): '3669bc106ba69bc7',
    (1, 57, (96, 192), 'B', 'dusk'): '4f68f9e11301bffe',
    (0, 120, (96, 192), 'B', 'night'): '45ce4500275d1297',
    (1, 21, (96, 192), 'B', 'fog'): 'e3c7d8ebc4238e31',
    (0, 4000000, (96, 192), 'A', 'day'): '5d22bac570f79ed9',
    (1, 8000003, (96, 192), 'B', 'day'): '67d034c2cd1fa3e2',
    (3, 6, (97, 191), 'A', 'night'): 'c7293b015379de50',
    (3, 11, (192, 384), 'B', 'day'): 'bef5f3019532bf85',
    (3, 6, (64, 96), 'A', 'day'): 'cc6a375ab8e0979d',
    (3, 0, (120, 100), 'B', 'night'): '6456da377882f582',
}


def digest(seed, index, size=(96, 192), city='A', domain='day'):
    image, mask = scene(seed, index, size, city, domain)
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize('args', KNOWN, ids=str)
def test_the_same_bytes_as_generator_7(args):
    assert VERSION == 7, 'another generator: compute the digests anew'
    assert digest(*args) == KNOWN[args]


def test_the_order_of_drawing_does_not_matter():
    first = [digest(3, i) for i in (0, 5, 9)]
    for i in range(20, 120, FRAMES):
        _world(3, i, 'A')  # more streets than the cache holds
    assert [digest(3, i) for i in (9, 5, 0)][::-1] == first
    assert len(set(first)) == 3


@pytest.mark.parametrize('size', [(16, 16), (17, 190), (190, 17), (95, 191)])
def test_any_size_can_be_drawn(size):
    for city, space in (('A', CITY_A), ('B', CITY_B)):
        for domain in DOMAINS:
            image, mask = scene(1, 6, size, city, domain)
            assert image.shape == (*size, 3) and mask.shape == size and image.dtype == mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {*range(len(space)), VOID}


def test_domains_share_the_label_and_size_is_only_resolution():
    masks = [scene(0, 12, domain=d)[1] for d in DOMAINS]
    assert all((m == masks[0]).all() for m in masks)
    large = scene(0, 12, (192, 384))[1][1::2, 1::2]
    assert (large == masks[0]).mean() > 0.9
    with pytest.raises(ValueError, match='domain'):
        scene(0, 0, domain='snow')
    assert [_weather(0, 1, d).domain for d in DOMAINS] == list(DOMAINS)


def test_camera_projects_back_what_it_sees():
    cam = Camera((60, 90), lateral=0.7, yaw=0.04, bend=0.01)
    row, x, z = cam.ground()
    for r, c in ((3, 5), (10, 44), (len(z) - 1, 80)):
        np.testing.assert_allclose(cam.project(x[r, c], 0, z[r, 0]), (c + 0.5, row + r + 0.5), atol=1e-2)
    wall = cam.hit(6.0)
    c = int(np.argmin(wall))
    np.testing.assert_allclose(cam.project(6.0, 0, float(wall[c]))[0], c + 0.5, atol=1e-2)


def test_every_class_occurs_and_every_kind_of_thing():
    masks = [scene(0, FRAMES * i, city='B')[1] for i in range(12)]
    assert set(np.unique(masks)) == {*range(len(CITY_B)), VOID}
    assert {o.kind for i in range(12) for o in _world(0, i, 'B').things} >= {
        'car',
        'tree',
        'lamp',
        'sign',
        'bin',
        'tram',
    }


def test_the_table_and_its_files(tmp_path):
    ds = scenes(9, 4, 5, (32, 64), seed=2, city='B', domain=['fog', 'day'], path=tmp_path / 'x')
    assert [len(ds.split(s)) for s in ('train', 'val', 'test')] == [9, 4, 5] and set(ds.df.kind) == {'real'}
    assert ds.train.groups == ['B-day-s2-0001', 'B-fog-s2-0000', 'B-fog-s2-0002']
    assert ds.val.groups == ['B-fog-s2-v0000'] and ds.test.groups == ['B-day-s2-t0001', 'B-fog-s2-t0000']
    image, mask = scene(2, 5, (32, 64), 'B', 'day')
    assert (np.array(ds.image(5)) == image).all() and (ds.mask(5) == mask).all()
    image, mask = scene(2, 2_000_000 * FRAMES + 4, (32, 64), 'B', 'day')
    assert (np.array(ds.test.image(4)) == image).all() and (ds.test.mask(4) == mask).all()
    assert not [p for p in tmp_path.rglob('*') if 'tmp' in p.name]


def stamps(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob('*.png')}


def test_a_table_grows_and_splits_do_not_depend_on_each_other(tmp_path):
    small = scenes(4, 2, 0, (32, 64), path=tmp_path)
    before = stamps(tmp_path / 'images')
    large = scenes(10, 6, 4, (32, 64), path=tmp_path)
    after = stamps(tmp_path / 'images')
    assert {k: after[k] for k in before} == before and len(after) == 20
    assert list(large.train.df.image[:4]) == list(small.train.df.image)
    fewer = scenes(2, 0, 0, (32, 64), path=tmp_path)
    assert len(fewer) == 2 and stamps(tmp_path / 'images') == after
    assert len(scenes(0, 0, 0, (32, 64), path=tmp_path)) == 0


def test_a_missing_label_is_drawn_again(tmp_path):
    ds = scenes(4, 0, 0, (32, 64), path=tmp_path)
    whole = {p: p.read_bytes() for p in tmp_path.rglob('*.png')}
    for p in (ds.df.label[1], ds.df.label[2], ds.df.image[2]):
        os.remove(p)
    scenes(4, 0, 0, (32, 64), path=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*.png')} == whole


def _scenes(path):
    scenes(6, 0, 0, (32, 64), path=path)


@pytest.mark.parametrize('point', ['write.temp:6', 'write.replace:4', 'claim'])
def test_a_killed_call_goes_on_where_it_stopped(tmp_path, point):
    children.stopped_at(point, _scenes, tmp_path / 'x')
    assert len([*(tmp_path / 'x/labels').glob('*.png')]) < 6
    ds = scenes(6, 0, 0, (32, 64), path=tmp_path / 'x')
    for i in range(6):
        image, mask = scene(0, i, (32, 64))
        assert (np.array(ds.image(i)) == image).all() and (ds.mask(i) == mask).all()


def test_a_folder_belongs_to_one_data_set(tmp_path):
    scenes(2, 0, 0, (32, 64), path=tmp_path / 'a')
    for kwargs, says in (
        (dict(seed=1), 'seed is 0 there and 1 here'),
        (dict(city='B'), "city is 'A' there and 'B' here"),
        (dict(domain='night'), 'domain'),
        (dict(size=(32, 66)), 'size'),
    ):
        with pytest.raises(ValueError, match=says):
            scenes(**{**dict(n=2, size=(32, 64), path=tmp_path / 'a'), **kwargs})
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/mine.txt').write_text('x')
    with pytest.raises(ValueError, match='not empty'):
        scenes(2, path=tmp_path / 'b')


def test_a_folder_of_the_first_edition_is_still_good(tmp_path):
    note = dict(generator=7, seed=0, city='A', domain=['day'], size=[32, 64], frames=4)
    (tmp_path / 'scenes.json').write_text(json.dumps(note, indent=1))
    assert len(scenes(2, 0, 0, (32, 64), path=tmp_path)) == 2


@pytest.mark.parametrize(
    'kwargs,says',
    [
        (dict(city='C'), 'city must be one of A, B'),
        (dict(domain='snow'), 'domain must be one or more of day'),
        (dict(domain=[]), 'domain'),
        (dict(n=-1), 'whole numbers'),
        (dict(n_val=0.5), 'whole numbers'),
        (dict(seed=-3), 'whole numbers'),
        (dict(size=(8, 64)), 'size'),
        (dict(size=(64,)), 'size'),
    ],
)
def test_bad_arguments_are_named_before_a_folder_is_made(tmp_path, kwargs, says):
    with pytest.raises(ValueError, match=says):
        scenes(path=tmp_path / 'x', **kwargs)
    assert not (tmp_path / 'x').exists()


def test_without_a_path_scenes_go_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('SELFTRAIN_NB_HOME', str(tmp_path))
    scenes(1, 0, 0, (16, 32), domain=['day', 'fog'])
    assert (tmp_path / 'scenes/A-day+fog-s0-16x32-f4-v7/images/0000_0.png').exists()
