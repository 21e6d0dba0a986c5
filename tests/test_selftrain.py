"self_train from end to end: what a run is, what stops it, and what it goes on with."

import json, os, shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch.nn as nn
from fastai.learner import Learner
from PIL import Image

from children import assert_kept, assert_same, contents, histories, run as in_child, stamps, stopped_at
from selftrain_nb.files import folder_lock, read_json
from selftrain_nb.labels import Remap
from selftrain_nb.datasets import seg_folder
from selftrain_nb.doubts import together
from selftrain_nb.losses import SegLoss
from selftrain_nb.mixing import CutMix
from selftrain_nb.predict import Predictor
from selftrain_nb.rounds import _gained
from selftrain_nb.selftrain import ARMS, Options, Recipe, Run, Trainer, device_name, self_train
from selftrain_nb.table import SegTable
from selftrain_nb.training import seg_learner

TINY = dict(encoder='test_byobnet', pretrained=False, crop=(32, 48), bs=2, n=4, epochs=(1, 1), valid_every=1)
QUICK = Recipe(**TINY, teachers=1)
QUIET = Options(progress=False)


def halves(h=32, w=48):
    a = np.zeros((h, w), np.uint8)
    a[:, w // 2 :] = 1
    return a


def photo(seed, h=32, w=48):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def folder(path, n=7, labelled=4, val=(0,), test=(), codes='bg\nfg\n', mask=lambda i: halves()):
    "A small data set on disk"
    (path / 'images').mkdir(parents=True)
    (path / 'labels').mkdir()
    (path / 'codes.txt').write_text(codes)
    for i in range(n):
        photo(i).save(path / f'images/{i}.png')
        if i < labelled:
            Image.fromarray(mask(i)).save(path / f'labels/{i}.png')
    for name, ids in dict(val=val, test=test).items():
        if ids:
            (path / f'{name}.txt').write_text(''.join(f'{i}\n' for i in ids))
    return path


def train(data, out, recipe=QUICK, arms=ARMS[:3], options=QUIET, **kw):
    return self_train(seg_folder(data), out, recipe, arms, options=options, **kw)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished run with all arms but full, and its data"
    home = tmp_path_factory.mktemp('done')
    data = folder(home / 'data', test=(1,))
    return data, train(data, home / 'run')


@pytest.fixture
def copy(done, tmp_path):
    "The same, to be changed"
    data, run = done
    shutil.copytree(data, tmp_path / 'data')
    shutil.copytree(run.path, tmp_path / 'run')
    return tmp_path / 'data', tmp_path / 'run'


# What a run is


def test_steps_are_those_taken(tmp_path):
    "Student and control take the same steps whatever the shares are, and the report counts the optimiser's"
    import fastai.learner as L

    data, counted, one = folder(tmp_path / 'data'), [], L.Learner._step

    def step(self):
        counted.append(1)
        return one(self)

    L.Learner._step = step
    try:
        run = train(data, tmp_path / 'run', replace(QUICK, n=10, bs=4, ratio=2.5))
    finally:
        L.Learner._step = one
    steps = {a: run.metrics(a)['steps'] for a in run.done}
    assert steps == dict(teacher=3, student=3, control=3) and len(counted) == 6  # the control is the teacher
    assert run.metrics('student')['samples'] == run.metrics('control')['samples'] == 3 * (4 + 10)


def test_metrics_say_which_images_trained(done):
    data, run = done
    m = run.metrics('student')
    assert (m['n_real'], m['n_pseudo']) == (2, 3)
    assert [t['stream'] for t in m['trained_on']] == ['real', 'pseudo']
    drawn = [l.split(',')[1] for l in (run.path / 'student' / 'images.csv').read_text().splitlines()[1:]]
    assert {os.path.basename(p) for p in drawn} == {'2.png', '3.png', '4.png', '5.png', '6.png'}  # 0 validates, 1 tests


def test_an_image_that_was_never_drawn_did_not_train(tmp_path):
    "Four pseudo-labelled samples of eight images, in one epoch"
    run = train(folder(tmp_path / 'data', n=12), tmp_path / 'run', arms=['teacher', 'student'])
    m = run.metrics('student')
    assert m['n_pseudo'] == 8 and [(t['images'], t['samples']) for t in m['trained_on']] == [(3, 4), (4, 4)]


def test_neither_did_one_that_cannot_be_read(tmp_path):
    table = seg_folder(folder(tmp_path / 'data', n=8))
    (tmp_path / 'data/images/2.png').write_bytes(b'')
    trainer = Trainer(QUICK, QUIET)
    with pytest.warns(UserWarning, match='cannot be read'):
        trainer.fit(QUICK.arm('teacher', table), tmp_path / 'arm')
    times = pd.read_csv(tmp_path / 'arm/images.csv').times.tolist()
    assert times[:3] == [2, 0, 2] and times[4] == 0 and times[3] + times[5] == 4


def test_the_device_is_the_one_that_was_asked_for(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda *a: 'a GPU')
    assert 'CPU' in device_name('cpu') and device_name('cuda:0') == 'a GPU'


def test_the_control_has_the_students_streams(done):
    _, run = done
    student, control = (run.metrics(a) for a in ('student', 'control'))
    assert control['n_pseudo'] == 0 and [t['samples'] for t in student['trained_on']] == [
        t['samples'] for t in control['trained_on']
    ]


def test_the_same_call_does_nothing_again(done):
    data, run = done
    before = contents(run.path), stamps(run.path)
    assert train(data, run.path).done == ['teacher', 'student', 'control']
    assert (contents(run.path), stamps(run.path)) == before


def test_an_arm_can_be_added(copy):
    data, out = copy
    few = seg_folder(data)
    hidden = few.keep_labels(1, by='image')
    run = self_train(hidden, out.parent / 'hidden', QUICK, ('teacher',), options=QUIET)
    assert self_train(hidden, run.path, QUICK, ('teacher', 'full'), options=QUIET).done == ['teacher', 'full']
    assert run.metrics('full')['n_real'] == 2 and run.metrics('teacher')['n_real'] == 1


# The same run, however it is spelled


@pytest.mark.parametrize(
    'options',
    [
        Options(num_workers=1, progress=False),
        Options(valid_bs=3, progress=False),
        Options(readers=3, progress=False),
        Options(device='cpu', progress=False),
        Options(check=False, progress=False),
    ],
)
def test_what_cannot_change_a_result_is_no_other_run(copy, options):
    data, out = copy
    before = stamps(out)
    assert train(data, out, options=options).done == ['teacher', 'student', 'control']
    assert stamps(out) == before


def test_paths_links_and_moves_are_no_other_run(copy, monkeypatch):
    data, out = copy
    before = stamps(out)
    monkeypatch.chdir(data.parent)
    train(data.relative_to(data.parent), out.relative_to(data.parent))
    (data.parent / 'link').symlink_to(data)
    train(data.parent / 'link', out)
    data.rename(data.parent / 'moved')
    run = train(data.parent / 'moved', out)
    assert run.table.image(0).size == (48, 32)  # the run knows where its images are now
    assert stamps(out) == before


def test_another_recipe_is_refused_by_name(copy):
    data, out = copy
    with pytest.raises(ValueError, match=r'lr is 0.004 there and 0.001 here'):
        train(data, out, replace(QUICK, lr=1e-3))
    with pytest.raises(ValueError, match='holds other work'):
        train(data, out, replace(QUICK, seed=1))


def test_centroids_noted_while_labelling_are_used(tmp_path, monkeypatch):
    "Each pseudo label is looked through once, when it is made, and each human one once"
    import selftrain_nb.centroids as module

    data, r, seen, find = folder(tmp_path / 'data'), replace(QUICK, sampler='centroid', tile=8), [], module._entries
    train(data, tmp_path / 'run', r, ['teacher'])
    monkeypatch.setattr(module, '_entries', lambda mask, note: seen.append(1) or find(mask, note))
    run = train(data, tmp_path / 'run', r, ['student'])
    assert run.metrics('student')['n_pseudo'] == 3 and (run.path / 'pseudo/centroids.npz').exists()
    assert len(seen) == 3 + len(run.table.train.real) == 6


def test_numbers_of_numpy_are_numbers():
    r = replace(QUICK, seed=np.int64(3), lr=np.float32(0.5), epochs=(np.int64(1), 2))
    assert Recipe.from_dict(json.loads(json.dumps(r.validate().to_dict()))) == r


@pytest.mark.parametrize('kind', [list, tuple])
def test_the_settings_of_callbacks_are_part_of_a_run(kind, done, tmp_path):
    train(done[0], tmp_path / 'run', arms=['teacher'], cbs=kind([CutMix(0.1)]))
    with pytest.raises(ValueError, match='callback_settings'):
        train(done[0], tmp_path / 'run', cbs=kind([CutMix(0.9)]))


def test_arms_have_the_same_crop_where_images_differ_in_size(tmp_path):
    data = folder(tmp_path / 'data', n=3, labelled=3, val=(2,))
    for i, size in enumerate(((32, 48), (64, 96))):
        photo(i, *size).save(data / f'images/{i}.png')
        Image.fromarray(halves(*size)).save(data / f'labels/{i}.png')
    whole, crops = seg_folder(data), set()
    for seed in range(4):
        few = whole.keep_labels(1, by='image', seed=seed)
        r = replace(QUICK, crop=None, seed=seed)
        for name in ('control', 'full'):
            crops.add(Trainer(r, QUIET).dls(r.arm(name, few)).crop)
    assert crops == {(32, 48)}


def test_hooks_are_part_of_a_run(copy):
    data, out = copy
    from fastai.callback.core import Callback

    class Mine(Callback):
        pass

    with pytest.raises(ValueError, match='callbacks'):
        train(data, out, cbs=[Mine()])


# Files that change in place


def test_labels_changed_in_place_are_noticed(copy):
    data, out = copy
    was = read_json(out / 'teacher' / 'metrics.json')['splits']
    for i in (2, 3):
        Image.fromarray(1 - halves()).save(data / f'labels/{i}.png')
    with pytest.raises(
        ValueError, match=r'2 files have changed since this run used them; the first: .*2.png.*--refresh'
    ):
        train(data, out)
    assert read_json(out / 'teacher' / 'metrics.json')['splits'] == was
    run = train(data, out, options=replace(QUIET, refresh=True))
    fresh = train(data, out.parent / 'fresh')
    assert run.predictor('student').hash == fresh.predictor('student').hash


def test_a_changed_test_label_only_measures_again(copy):
    data, out = copy
    teacher = Run(out).predictor('teacher').hash
    stamp = (out / 'teacher' / 'predictor.safetensors').stat().st_mtime_ns
    Image.fromarray(1 - halves()).save(data / 'labels/1.png')
    with pytest.raises(ValueError, match='files have changed'):
        train(data, out)
    run = train(data, out, options=replace(QUIET, refresh=True))
    assert (
        run.predictor('teacher').hash == teacher
        and (out / 'teacher' / 'predictor.safetensors').stat().st_mtime_ns == stamp
    )


def test_other_test_images_keep_what_was_trained(copy, capsys):
    data, out = copy
    (data / 'test.txt').unlink()
    (data / 'images/1.png').unlink()
    (data / 'labels/1.png').unlink()
    stamp = (out / 'student' / 'predictor.safetensors').stat().st_mtime_ns
    run = train(data, out)
    assert 'measured again' in capsys.readouterr().out
    assert (
        list(run.metrics('student')['splits']) == ['val']
        and (out / 'student' / 'predictor.safetensors').stat().st_mtime_ns == stamp
    )


def test_touching_files_changes_nothing(copy):
    data, out = copy
    before = stamps(out)
    for p in data.rglob('*.png'):
        os.utime(p, (1, 1))
    assert train(data, out).done == ['teacher', 'student', 'control']
    assert stamps(out) == before


def test_names_that_are_no_utf_8(tmp_path):
    data = folder(tmp_path / 'data', n=5, labelled=3)
    try:
        os.rename(data / 'images/4.png', os.fsencode(data / 'images') + b'/\xff4.png')
    except OSError:
        pytest.skip('this file system has no such names')
    run = train(data, tmp_path / 'run')
    assert run.done == ['teacher', 'student', 'control'] and run.metrics('student')['n_pseudo'] == 2
    assert train(data, run.path).done == run.done


# Nothing is claimed for what cannot be


@pytest.mark.parametrize(
    'change,message',
    [
        (dict(epochs=10), 'epochs=10'),
        (dict(epochs=(1, 1, 1)), 'epochs='),
        (dict(scale=(1,)), 'scale='),
        (dict(scale=(2.0, 0.5)), 'scale='),
        (dict(scale=(0, 1)), 'scale='),
        (dict(crop=(0, 3)), 'crop='),
        (dict(crop=(1, 2, 3)), 'crop='),
        (dict(bs=0), 'bs=0'),
        (dict(ratio=-1.0), 'ratio=-1'),
        (dict(ratio=float('nan')), 'ratio=nan'),
        (dict(n=-5), 'n=-5'),
        (dict(size=0), 'size=0'),
        (dict(seed=-1), 'seed=-1'),
        (dict(seed=10**20), 'seed='),
        (dict(lr=0.0), 'lr=0'),
        (dict(pseudo_labels='firm'), "labels='firm'"),
        (dict(sampler='best'), 'sampler='),
        (dict(schedule='fast'), 'fast'),
        (dict(min_conf=2), 'min_conf=2'),
        (dict(min_conf=(0.1, 0.2, 0.3)), 'min_conf'),
        (dict(encoder='resnet1000'), 'resnet1000'),
        (dict(arch='vnet'), 'vnet'),
        (dict(student_encoder='nonsense'), 'nonsense'),
        (dict(rounds=0), 'rounds=0'),
        (dict(window=(1,)), 'window='),
        (dict(scales=()), 'scales='),
        (dict(flip='false'), "flip='false': must be True or False"),
        (dict(min_conf=(0.7,)), 'min_conf has 1 values, the table 2 classes'),
        (dict(min_conf=0.7, precision=0.9), 'min_conf=0.7 would be ignored'),
        (dict(student_init='teacher', student_arch='deeplabv3plus'), "use 'fresh'"),
    ],
)
def test_options_are_checked_first(done, tmp_path, change, message):
    with pytest.raises(ValueError) as e:
        train(done[0], tmp_path / 'out', replace(QUICK, **change))
    assert message in str(e.value) and '\n' not in str(e.value) and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('options', [dict(num_workers=-1), dict(valid_bs=-1), dict(readers=0)])
def test_so_are_those_that_change_no_result(done, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        train(done[0], tmp_path / 'out', options=replace(QUIET, **options))
    assert not (tmp_path / 'out').exists()


def test_arms_are_checked_first(done, tmp_path):
    for arms, message in ((['pupil'], 'no arm pupil'), (['full'], 'hidden labels')):
        with pytest.raises(ValueError, match=message):
            train(done[0], tmp_path / 'out', arms=arms)
    assert not (tmp_path / 'out').exists()


BAD = {
    'binary masks': (dict(mask=lambda i: halves() * 255), 'Remap.binary'),
    'all void': (dict(mask=lambda i: np.full((32, 48), 255, np.uint8)), 'void'),
    'one class': (dict(codes='crack\n', mask=lambda i: halves() * 0), 'class'),
    'no validation': (dict(val=()), 'hold_out'),
    'no labels': (dict(labelled=0, val=()), 'label'),
}


@pytest.mark.parametrize('name', BAD)
def test_data_is_looked_at_first(tmp_path, name):
    how, message = BAD[name]
    data = folder(tmp_path / 'data', **how)
    with pytest.raises(ValueError) as e:
        train(data, tmp_path / 'out')
    assert message in str(e.value) and not (tmp_path / 'out').exists()


def test_what_the_error_says_to_do_leads_on(tmp_path):
    table = seg_folder(folder(tmp_path / 'data', mask=lambda i: halves() * 255), remap=Remap.binary())
    assert self_train(table, tmp_path / 'a', QUICK, ['teacher'], options=QUIET).done == ['teacher']
    table = seg_folder(folder(tmp_path / 'flat', val=())).hold_out(0.3)
    assert self_train(table, tmp_path / 'b', QUICK, ['teacher'], options=QUIET).done == ['teacher']


# What cannot be read


@pytest.mark.parametrize(
    'what', ['images/0.png', 'labels/0.png', 'images/2.png', 'labels/2.png', 'images/5.png', 'images/1.png']
)
def test_an_unreadable_file_is_left_out_everywhere(tmp_path, what, capsys):
    data = folder(tmp_path / 'data', n=9, labelled=6, val=(0, 4), test=(1, 3))
    (data / what).write_bytes(b'')
    run = train(data, tmp_path / 'run')
    assert 'left out' in capsys.readouterr().out
    assert run.done == ['teacher', 'student', 'control']
    name = os.path.basename(what)
    assert not run.table.df.image.str.endswith('/' + name).any() and name in read_json(run.path / 'unusable.json')
    with pytest.raises(ValueError, match=name):
        train(data, tmp_path / 'strict', options=replace(QUIET, strict=True))
    (data / 'images' / name).unlink()
    (data / 'labels' / name).unlink(missing_ok=True)
    for f in ('val.txt', 'test.txt'):
        (data / f).write_text(''.join(l for l in (data / f).read_text().splitlines(True) if l.strip() + '.png' != name))
    assert train(data, run.path).done == run.done  # done as told: nothing is lost


def test_only_the_unreadable_of_two_files_of_one_name_is_left_out(tmp_path):
    data = folder(tmp_path / 'data', n=4, labelled=4)
    for kind in ('images', 'labels'):
        (data / kind / 'night').mkdir()
        shutil.copy(data / kind / '1.png', data / kind / 'night/1.png')
    (data / 'images/night/1.png').write_bytes(b'')
    run = train(data, tmp_path / 'run', arms=['teacher'])
    assert len(run.table) == 4 and read_json(run.path / 'unusable.json') == ['night/1.png']
    assert train(data, run.path, arms=['teacher']).done == ['teacher'] and len(run.table) == 4


def test_a_table_with_an_image_in_two_splits_goes_on(tmp_path):
    t = seg_folder(folder(tmp_path / 'data', n=4, labelled=4))
    twice = SegTable(pd.concat([t.df, t.val.df.assign(split='train')]), t.space, t.remaps)
    run = self_train(twice, tmp_path / 'run', QUICK, ['teacher'], options=QUIET)
    assert self_train(twice, run.path, QUICK, ['teacher'], options=QUIET).done == ['teacher']
    assert len(run.table.train) == 3


def test_a_diverged_teacher_labels_nothing(done, tmp_path):
    from fastai.callback.core import Callback

    class Blow(Callback):
        def after_pred(self):
            self.learn.pred = self.pred * float('nan')

    with pytest.raises(ValueError, match='epoch 1 of 1.*learning rate'):
        train(done[0], tmp_path / 'run', cbs=[Blow()])
    assert not (tmp_path / 'run' / 'pseudo').exists() and Run(tmp_path / 'run').done == []


# Two processes


def test_a_second_process_gets_a_clear_error(copy):
    data, out = copy
    with folder_lock(out):
        with pytest.raises(BlockingIOError, match='another process works in this folder'):
            in_child(train, data, out)
    in_child(train, data, out)


# Stopped at named points: the same bytes in the end

POINTS = [
    'claim',
    'write.temp:1',
    'write.temp:4',
    'write.temp:9',
    'write.temp:14',
    'write.replace:2',
    'write.replace:7',
    'write.replace:12',
    'train.checkpoint:1',
    'train.checkpoint:2',
    'train.checkpoint:3',
    'train.weights:1',
    'train.weights:2',
    'train.metrics:1',
    'train.metrics:2',
    'label.files:1',
    'label.files:2',
    'label.manifest:1',
    'index.journal:1',
    'index.save:1',
]
STOPPED = replace(QUICK, epochs=(2, 2), sampler='centroid', ema=0.9)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    home = tmp_path_factory.mktemp('whole')
    data = folder(home / 'data')
    in_child(train, data, home / 'run', STOPPED)
    return data, home / 'run'


@pytest.mark.parametrize('point', POINTS)
def test_a_stop_at_any_point_loses_nothing(uninterrupted, tmp_path, point):
    data, whole = uninterrupted
    stopped_at(point, train, data, tmp_path / 'run', STOPPED)
    kept = histories(tmp_path / 'run')
    in_child(train, data, tmp_path / 'run', STOPPED)
    assert_kept(kept, tmp_path / 'run')
    assert_same(whole, tmp_path / 'run')


# A teacher from elsewhere


def test_a_taken_over_teacher_keeps_its_provenance(done, tmp_path):
    data, run = done
    other = replace(QUICK, ratio=2.0, seed=7)
    again = train(data, tmp_path / 'again', other, teacher=run)
    assert again.predictor('teacher').hash == run.predictor('teacher').hash
    m = again.metrics('teacher')
    assert (
        m['origin']['seed'] == 0
        and m['steps'] == run.metrics('teacher')['steps']
        and m['splits'] == run.metrics('teacher')['splits']
    )
    third = train(data, tmp_path / 'third', other, teacher=again.path)
    assert third.metrics('teacher')['origin'] == m['origin']


def test_a_teacher_that_sees_other_greys_is_refused(done, tmp_path):
    data, run = done
    deep = seg_folder(data)
    deep.white = 4095
    with pytest.raises(ValueError, match='white is None for its teacher and 4095 here: state one for both'):
        self_train(deep, tmp_path / 'none', QUICK, options=QUIET, teacher=run)


def test_a_teacher_that_was_trained_on_validation_images_is_told(done, tmp_path):
    data, run = done
    table = seg_folder(data)
    seen = table.df.split.mask(table.df.image == table.train.real.df.image.iloc[0], 'val')
    tempted = SegTable(table.df.assign(split=seen), table.space, table.remaps)
    with pytest.warns(UserWarning, match='trained on images that measure it here .1 of val'):
        self_train(tempted, tmp_path / 'again', QUICK, ['teacher'], options=QUIET, teacher=run)


def test_any_arm_can_be_a_teacher(done, tmp_path):
    data, run = done
    later = train(data, tmp_path / 'later', arms=['student', 'control'], teacher=run.path / 'student')
    assert later.predictor('teacher').hash == run.predictor('student').hash
    assert later.metrics('teacher')['origin']['arm'] == 'student'
    assert later.metrics('teacher')['splits'] == run.metrics('student')['splits']
    assert later.predictor('student').hash != run.predictor('student').hash
    assert later.predictor('control').hash == run.predictor('control').hash != later.predictor('teacher').hash
    (tmp_path / 'own' / 'online').mkdir(parents=True)
    shutil.copy(run.path / 'config.json', tmp_path / 'own')
    with pytest.raises(ValueError, match='own: no finished online'):
        train(data, tmp_path / 'none', teacher=tmp_path / 'own' / 'online')


def test_a_run_of_an_older_version_goes_on(tmp_path):
    "Fields that the recipe has since then had their default; also in later rounds, and never in a folder of others"
    data, new = folder(tmp_path / 'data'), ('norm', 'mix_across', 'online_conf', 'online_views')
    recipe = replace(QUICK, rounds=2)
    run = train(data, tmp_path / 'run', recipe)
    (tmp_path / 'run' / 'round2').mkdir(exist_ok=True)
    (tmp_path / 'run' / 'round2' / 'config.json').write_text(json.dumps({**run.config, 'round': 2}))
    configs = [*run.path.rglob('config.json')]
    for file in configs:
        file.write_text(json.dumps({k: v for k, v in read_json(file).items() if k not in new}))
    assert train(data, tmp_path / 'run', recipe).config['norm'] == 'all'
    with pytest.raises(ValueError, match='norm is'):
        train(data, tmp_path / 'run', replace(recipe, norm='weak'))
    before = configs[0].read_text()
    with pytest.raises(ValueError, match='holds other work'):
        train(data, tmp_path / 'run', replace(recipe, lr=0.5))
    assert configs[0].read_text() == before
    for file in configs:
        old = {k: v for k, v in read_json(file).items() if k not in ('teachers', 'strong_teacher')}
        file.write_text(json.dumps(old))
    assert not run.recipe.strong_teacher
    with pytest.raises(ValueError, match='goes on with False, and teachers=1'):
        train(data, tmp_path / 'run', recipe)
    assert train(data, tmp_path / 'run', replace(recipe, strong_teacher=False)).done == run.done


@pytest.mark.parametrize('point', ['handover:1', 'handover:3'])
def test_a_stop_while_handing_over(done, tmp_path, point):
    data, run = done
    stopped_at(point, _take_over, data, tmp_path / 'run', run.path)
    in_child(_take_over, data, tmp_path / 'run', run.path)
    in_child(_take_over, data, tmp_path / 'whole', run.path)
    assert_same(tmp_path / 'whole', tmp_path / 'run')


def _take_over(data, out, teacher):
    train(data, out, teacher=teacher)


# A strong teacher, and several teachers


@pytest.mark.parametrize(
    'changes, one',
    [
        ({}, True),
        (dict(ema=0.0, cutmix=0.0, strong=False), True),
        (dict(epochs=(1, 2)), False),
        (dict(student_init='teacher'), False),
        (dict(student_arch='unet'), False),
        (dict(strong_teacher=False), False),
    ],
)
def test_the_control_is_the_teacher_where_it_would_be_the_same_training(tmp_path, changes, one):
    "A copy is what a training of its own gives, bit for bit"
    data, r = folder(tmp_path / 'data'), replace(QUICK, **changes)
    run = train(data, tmp_path / 'run', r, ['control'])
    assert r.one_training == ('same_as' in run.metrics('control')) == one
    own = train(data, tmp_path / 'own', r, ['control'], cbs=lambda arm: [])
    assert 'same_as' not in own.metrics('control')
    assert own.predictor('control').hash == run.predictor('control').hash
    assert (own.predictor('teacher').hash == own.predictor('control').hash) == one
    a, b = ({k: v for k, v in x.metrics('control').items() if k not in ('seconds', 'same_as')} for x in (own, run))
    assert a == b


def test_several_teachers_label_together(done, tmp_path):
    "The second is the teacher of seed 1000; a stop while it trains; a later round has one teacher"
    data, one = done
    recipe = replace(QUICK, teachers=2)
    run = train(data, tmp_path / 'run', recipe, ['student'])
    other = train(data, tmp_path / 'other', replace(QUICK, seed=1000), ['teacher'])
    second = Predictor.load(run.path / 'teacher' / '2' / 'predictor.safetensors')
    assert second.hash == other.predictor('teacher').hash
    assert run.predictor('teacher').hash == one.predictor('teacher').hash
    both = Predictor.of([run.predictor('teacher'), second])
    assert read_json(run.path / 'pseudo' / 'store.json')['teacher'] == both.hash
    pair, found = run.metrics('teacher')['together'], both.evaluate(run.table.split('val').real)
    assert pair['val'] == found.to_dict(run.table.space) != run.metrics('teacher')['splits']['val']
    assert f'reach {100 * pair["val"]["miou"]:.1f} mIoU on val (the student: ' in together(run)[1]
    assert run.predictor('student').hash != one.predictor('student').hash
    with pytest.raises(ValueError, match='teachers'):
        train(data, one.path, recipe)
    later = train(data, tmp_path / 'later', recipe, ['student'], teacher=run)
    assert later.predictor('student').hash == run.predictor('student').hash
    assert later.metrics('teacher')['together'] == pair and 'together' not in one.metrics('teacher')
    files = [r.path / 'teacher' / '2' / 'history.csv' for r in (run, later)]
    assert files[0].read_bytes() == files[1].read_bytes()
    for source in (one.path, run.path / 'student'):
        with pytest.raises(ValueError, match='say teachers=1'):
            train(data, tmp_path / 'no', recipe, teacher=source)
    alone = train(data, tmp_path / 'alone', QUICK, ['student'], teacher=run)
    assert alone.predictor('student').hash == one.predictor('student').hash
    assert 'together' not in alone.metrics('teacher') and len(together(alone)) == 0
    assert not (alone.path / 'teacher' / '2').exists() and not (tmp_path / 'no').exists()
    adjusted = train(data, tmp_path / 'adjusted', replace(recipe, adjust=True), ['student'], teacher=run)
    assert adjusted.done == ['teacher', 'student']


def _two_teachers(data, out):
    train(data, out, replace(QUICK, teachers=2, epochs=(2, 2)))


@pytest.mark.parametrize('point', ['train.checkpoint:3', 'train.weights:2', 'handover:2'])
def test_a_stop_between_teachers(tmp_path, point):
    "The second teacher is half trained, or has no file yet; the control is half copied"
    data = folder(tmp_path / 'data')
    stopped_at(point, _two_teachers, data, tmp_path / 'run')
    in_child(_two_teachers, data, tmp_path / 'run')
    in_child(_two_teachers, data, tmp_path / 'whole')
    assert_same(tmp_path / 'whole', tmp_path / 'run')


# Rounds, thresholds, other networks


def test_each_round_has_the_student_before_as_its_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr('selftrain_nb.rounds._gained', lambda run: 'student' in run.done)
    run = train(folder(tmp_path / 'data'), tmp_path / 'run', replace(QUICK, rounds=3))
    assert len(run.rounds) == 3
    for before, later in zip(run.rounds, run.rounds[1:]):
        assert later.metrics('teacher')['origin']['arm'] == 'student'
        assert later.predictor('teacher').hash == before.predictor('student').hash


@pytest.mark.parametrize(
    'student, teacher, pair, on',
    [(0.6, 0.5, None, True), (0.5, 0.6, None, False), (0.5, 0.5, None, False), (0.6, 0.5, 0.7, False),
     (None, 0.5, None, False)],
)
def test_a_round_begins_when_the_student_beats_what_labelled(student, teacher, pair, on):
    split = lambda v: dict(val=dict(miou=v))
    pair = dict(together=split(pair)) if pair else {}
    m = dict(student=dict(splits=split(student)), teacher=dict(splits=split(teacher), **pair))
    assert _gained(SimpleNamespace(done=['teacher', 'student'], metrics=m.get)) is on


def test_thresholds_by_precision_say_what_chose_them(tmp_path):
    data = folder(tmp_path / 'data')
    run = train(data, tmp_path / 'run', replace(QUICK, precision=0.5))
    assert 'precision' in run.metrics('student')['chosen_on'][0] and not run.metrics('control')['chosen_on']


def test_these_thresholds_are_of_the_calibrated_teacher(tmp_path):
    run = train(folder(tmp_path / 'data'), tmp_path / 'run', replace(QUICK, precision=0.5), ['teacher', 'student'])
    calibrated = run.predictor('teacher').tempered(read_json(run.path / 'calibration.json')['temperature'])
    assert read_json(run.path / 'pseudo/store.json')['teacher'] == calibrated.hash


def own_network(dls, recipe, arm):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, len(dls.space), 1))
    wrapped = arm.name == 'student' and recipe.student_init == 'fresh'
    return seg_learner(dls, net) if wrapped else Learner(dls, net, loss_func=SegLoss())


@pytest.mark.parametrize('init', ['fresh', 'teacher'])
def test_a_network_of_ones_own(tmp_path, init):
    "Any fastai learner; its network is built again to label, and to be taken over"
    data, r = folder(tmp_path / 'data'), replace(QUICK, student_init=init)
    run = train(data, tmp_path / 'run', r, learner=own_network)
    assert run.done == ['teacher', 'student', 'control'] and {run.metrics(a)['steps'] for a in run.done} == {2}
    with pytest.raises(ValueError, match='a network of your own'):
        run.predictor('student')
    again = train(data, tmp_path / 'again', r, learner=own_network, teacher=run)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)) for _ in range(2)]
    assert again.predictor('teacher', model=nets[0]).hash == run.predictor('teacher', model=nets[1]).hash


def test_the_students_weights_are_looked_for_before_the_teacher_trains(tmp_path):
    own = replace(QUICK, encoder='tf_efficientnet_lite0', student_encoder='test_efficientnet', pretrained=True)
    with pytest.raises(OSError, match='test_efficientnet'):
        train(folder(tmp_path / 'data'), tmp_path / 'run', own)
    assert not (tmp_path / 'run').exists()


def test_a_student_of_another_network(tmp_path):
    data = folder(tmp_path / 'data')
    run = train(data, tmp_path / 'run', replace(QUICK, student_encoder='test_efficientnet'))
    assert [run.predictor(a).encoder for a in run.done] == ['test_byobnet', 'test_efficientnet', 'test_efficientnet']


@pytest.mark.parametrize(
    'change',
    [
        dict(pseudo_labels='soft'),
        dict(pseudo_labels='weighted'),
        dict(adjust=True),
        dict(share=0.5),
        dict(best=0.5),
        dict(classmix=0.5, cutmix=0.0),
        dict(flip=False),
        dict(scales=(0.75, 1.0)),
        dict(window=(32, 32)),
        dict(schedule='coarse2fine'),
        dict(student_init='teacher'),
        dict(arch='unet'),
        dict(bf16=True),
        dict(weight_power=0.0),
        dict(valid_every=2, epochs=(2, 2)),
        dict(size=(48, 64)),
    ],
)
def test_every_setting_runs(tmp_path, change):
    data = folder(tmp_path / 'data')
    run = train(data, tmp_path / 'run', replace(QUICK, **change), ['teacher', 'student'])
    assert run.done == ['teacher', 'student'] and json.dumps(run.results.to_dict())
