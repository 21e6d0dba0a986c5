"Runs that are stopped with everything switched on, in later rounds, twice, and while they are made anew."

import shutil
from dataclasses import replace

import pytest
from PIL import Image

import selftrain_nb.rounds as loop
from children import assert_same, run as in_child, stopped_at
from selftrain_nb.datasets import seg_folder
from selftrain_nb.runs import _own
from selftrain_nb.selftrain import ARMS, self_train
from test_selftrain import QUICK, QUIET, folder, halves, photo, train

EVERYTHING = replace(
    QUICK,
    epochs=(2, 3),
    sampler='centroid',
    tile=8,
    ema=0.9,
    schedule='coarse2fine',
    bf16=True,
    rounds=2,
    teachers=2,
    pseudo_labels='soft',
    precision=0.5,
    share=0.8,
    best=0.7,
    classmix=0.5,
    valid_every=2,
    student_init='teacher',
    adjust=True,
    scales=(0.75, 1.0),
    crop=(32, 32),
)


def everything(data, out):
    loop._gained = lambda run: 'student' in run.done  # a second round, whatever the scores; this process ends here
    return self_train(seg_folder(data).keep_labels(3, by='image'), out, EVERYTHING, ARMS, options=QUIET)


def anew(data, out):
    return train(data, out, options=replace(QUIET, refresh=True))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp('everything')
    folder(home / 'data', n=8, labelled=6, test=(1,))
    in_child(everything, home / 'data', home / 'run')
    return home


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp('finished')
    in_child(train, folder(home / 'data'), home / 'run')
    return home


@pytest.fixture
def mine(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


STOPS = [
    ('train.checkpoint:4',),
    ('train.checkpoint:15',),
    ('label.files:2',),
    ('label.manifest:3',),
    ('index.save:2',),
    ('handover:1',),
    ('handover:3',),
    ('claim:3',),
    ('label.files:1', 'train.checkpoint:1', 'train.weights:2'),
]


@pytest.mark.parametrize('points', STOPS, ids='+'.join)
def test_stops_with_everything_switched_on(whole, tmp_path, points):
    for point in points:
        stopped_at(point, everything, whole / 'data', tmp_path / 'run')
    in_child(everything, whole / 'data', tmp_path / 'run')
    assert_same(whole / 'run', tmp_path / 'run')


@pytest.mark.parametrize('point', ['refresh:1', 'refresh:2', 'write.temp:4', 'train.checkpoint:1'])
def test_a_stop_while_a_run_is_made_anew(mine, point):
    for i in (2, 3):
        Image.fromarray(1 - halves()).save(mine / f'data/labels/{i}.png')
    stopped_at(point, anew, mine / 'data', mine / 'run')
    in_child(anew, mine / 'data', mine / 'run')
    in_child(train, mine / 'data', mine / 'fresh')
    assert_same(mine / 'fresh', mine / 'run')


def test_folders_of_the_user_stay(mine):
    (mine / 'run/notes').mkdir()
    (mine / 'run/notes/metrics.json').write_text('mine')
    Image.fromarray(1 - halves()).save(mine / 'data/labels/2.png')
    in_child(anew, mine / 'data', mine / 'run')
    assert (mine / 'run/notes/metrics.json').read_text() == 'mine'


def test_an_unlabelled_image_that_changed_did_not_teach_the_teacher(mine):
    file = mine / 'run/teacher/predictor.safetensors'
    before = file.stat().st_mtime_ns
    photo(77).save(mine / 'data/images/5.png')
    in_child(anew, mine / 'data', mine / 'run')
    in_child(train, mine / 'data', mine / 'fresh')
    for part in ('pseudo', 'student'):
        assert_same(mine / 'fresh' / part, mine / 'run' / part)
    assert file.stat().st_mtime_ns == before


def test_what_unlabelled_images_taught_is_made_anew(tmp_path):
    for name in ('teacher', 'student', 'control', 'online', 'full', 'pseudo', 'round2', 'notes'):
        (tmp_path / name).mkdir()
    assert {p.name for p in _own(tmp_path, all=False)} == {'student', 'online', 'full', 'round2'}


@pytest.mark.parametrize('repaired', [True, False])
def test_other_files_can_be_used(mine, repaired):
    file = mine / 'data/images/2.png'
    good, out = file.read_bytes(), mine / 'run'
    if repaired:
        file.write_bytes(b'')
        out = mine / 'other'
        in_child(train, mine / 'data', out)
    file.write_bytes(good if repaired else b'')
    in_child(anew, mine / 'data', out)
    in_child(train, mine / 'data', mine / 'fresh')
    assert_same(mine / 'fresh', out)
