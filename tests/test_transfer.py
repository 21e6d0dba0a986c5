"A network taken to another city: its arms, what each is given to learn from, stops, and what cannot be."
import os, shutil
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from children import assert_same, contents, run as in_child, stamps, stopped_at
from selftrain_nb.files import folder_lock, read_json
from selftrain_nb.heads import remap_head
from selftrain_nb.labels import LabelSpace
from selftrain_nb.mapping import *
from selftrain_nb.models import seg_model
from selftrain_nb.predict import Predictor
from selftrain_nb.public import CAMVID, CITYSCAPES, IDD_LITE
from selftrain_nb.scenes import CITY_A, CITY_B, scenes
from selftrain_nb.selftrain import Options, Recipe, Run, self_train
from selftrain_nb.streams import TensorClasses
from selftrain_nb.table import SegTable
from selftrain_nb.transfer import TRANSFER_ARMS, Transfer, TransferData, TransferRecipe, transfer

NETWORK = dict(encoder='test_byobnet', pretrained=False, crop=(32, 48), bs=2, n=4)
QUICK = TransferRecipe(**NETWORK, epochs=(1, 1), target_labels=4, source_epochs=1)
QUIET = Options(progress=False)


@pytest.fixture(scope='module')
def cities(tmp_path_factory):
    "Two cities of eight training images each"
    home = tmp_path_factory.mktemp('cities')
    for c in 'AB': scenes(n=8, n_val=2, n_test=2, size=(48, 96), city=c, path=home/c).save(home/f'{c}.csv')
    return home


def table(home, c): return SegTable.load(home/f'{c}.csv')


def move(home, out, recipe=QUICK, source=None, mapping=CITY_A_TO_B, target=None, arms=None, options=QUIET):
    source = table(home, 'A') if source is None else source
    return transfer(source, table(home, 'B') if target is None else target, mapping, out, recipe, arms, options)


@pytest.fixture(scope='module')
def homes(cities):
    "Two finished runs in city A, of two seeds"
    recipe = Recipe(**NETWORK, epochs=(1, 1))
    return [self_train(table(cities, 'A'), cities/f'home{s}', replace(recipe, seed=s), ['teacher'], options=QUIET)
            for s in (0, 1)]


@pytest.fixture(scope='module')
def done(cities):
    "A finished transfer with all arms"
    return move(cities, cities/'done', replace(QUICK, epochs=(2, 1)))


def network(space=CITY_A, **kwargs):
    "A network that was never trained"
    return Predictor(seg_model(len(space), 'test_byobnet', **kwargs), space, encoder='test_byobnet', arch='fpn')


# Arms

def test_all_arms_and_what_they_took(done):
    r = done.results.query('split == "val"').set_index('arm')
    assert done.done == list(TRANSFER_ARMS) == list(r.index)
    assert r.steps.to_dict() == dict(source=0, scratch=4, finetune=4, finetune_long=6, centroids=4, joint=4, student=2,
                                     control=2, full=6)
    assert r.n_real.to_dict() == dict(source=0, scratch=4, finetune=4, finetune_long=4, centroids=4, joint=12,
                                      student=12, control=12, full=8)
    assert r.n_pseudo.to_dict() == {**dict.fromkeys(TRANSFER_ARMS, 0), 'student': 4}
    assert set(r.labels) == {4} and set(done.results.split) == {'val', 'test'}


def test_long_arms_are_as_long_as_teacher_and_student_whatever_there_is_to_read(cities, tmp_path):
    "No number of samples is given: the few labels ask for as many as all arms take"
    recipe = replace(QUICK, n=0, bs=1, target_labels=2)
    t = move(cities, tmp_path/'t', recipe, arms=['student', 'finetune_long', 'full'], target=wide(cities, 30))
    steps = t.results.groupby('arm').steps.first()
    assert steps['full'] == steps['finetune_long'] == steps['joint'] + steps['student'] == 50


def wide(cities, n):
    "City B with some images several times, under names of their own"
    b = table(cities, 'B')
    train = b.df[b.df.split == 'train']
    copies = []
    for k in range(n // len(train)):
        for r in train.itertuples():
            image = os.path.join(cities, 'wide', f'{k}', os.path.basename(r.image))
            os.makedirs(os.path.dirname(image), exist_ok=True)
            if not os.path.exists(image): shutil.copy(r.image, image)
            copies.append(r._replace(image=image, group=f'{k} {r.group}'))
    more = pd.DataFrame(copies)[list(b.df.columns)]
    return SegTable(pd.concat([b.df, more], ignore_index=True), b.space, b.remaps)


def test_means_over_shared_and_new_classes(done, cities):
    r = done.results.query('split == "val"').set_index('arm')
    for arm in ('source', 'student'):
        found = done.predictor(arm).evaluate(table(cities, 'B').val)
        assert r.miou[arm] == pytest.approx(100 * found.miou, abs=.01)
        iou = {k: 100 * v for k, v in found.iou.items() if v == v}
        for col, part in dict(miou_new=('fence', 'tram'), miou_shared=CITY_A.names).items():
            values = [iou[k] for k in part if k in iou]
            assert r[col][arm] == pytest.approx(np.mean(values), abs=.02) if values else np.isnan(r[col][arm])
    assert r.miou_new['source'] in (0, None) and done.metrics('source')['origin']['n_real'] == 8


def test_the_control_is_the_student_but_for_its_labels(done):
    student, control = (done.metrics(a) for a in ('student', 'control'))
    assert [t['samples'] for t in student['trained_on']] == [t['samples'] for t in control['trained_on']]
    assert [t['stream'] for t in student['trained_on']] == ['real', 'pseudo', 'replay']
    assert [t['stream'] for t in control['trained_on']] == ['real', 'control', 'replay']
    assert control['n_pseudo'] == 0 and control['steps'] == student['steps']
    drawn = {a: pd.read_csv(done.path/a/'images.csv', dtype=str) for a in ('student', 'control')}
    folders = {a: d.groupby('stream').image.agg(lambda p: {x.split('/')[-3] for x in p}) for a, d in drawn.items()}
    assert folders['student'].to_dict() == dict(real={'B'}, pseudo={'B'}, replay={'A'})
    assert folders['control'].to_dict() == dict(real={'B'}, control={'B'}, replay={'A'})
    few = set(done.table.train.real.df.image)
    assert set(drawn['control'].query('stream == "control"').image) == few


def test_replay_is_a_stream_of_human_labels(cities):
    data = TransferData(table(cities, 'B').keep_labels(4, seed=0), CITY_A_TO_B(table(cities, 'A')).train.labelled)
    real, replay = QUICK.transfer_arm('joint', data, None).streams
    assert set(replay.rows.df.kind) == {'real'} and replay.name == 'replay' and len(replay.rows) == 8
    a = table(cities, 'A').train
    assert all((replay.rows.mask(i) == a.mask(i)).all() for i in range(8))     # the classes of A have the same ids in B


def test_labels_of_the_source_do_not_teach_against_new_classes(cities):
    from selftrain_nb.selftrain import Trainer
    data = TransferData(table(cities, 'B').keep_labels(4, seed=0), CITY_A_TO_B(table(cities, 'A')).train.labelled)
    for name, samples in (('joint', (2, 2)), ('control', (2, 2, 2))):
        learn = Trainer(QUICK, QUIET).learn(QUICK.transfer_arm(name, data, None))
        batch = learn.dls.one_batch()
        known = next(t for t in batch if isinstance(t, TensorClasses)).cpu().numpy()
        of_a = np.arange(len(known)) >= sum(samples[:-1])
        assert len(known) == sum(samples) and known[:, :10].all() and (known[:, 10:].all(1) == ~of_a).all()
        assert not known[of_a, 10:].any()
        pred = torch.zeros(*batch[1].shape[:1], 12, *batch[1].shape[1:])
        loud = pred.clone()
        loud[torch.from_numpy(of_a), 11] = 9.                # "tram" everywhere in city A costs nothing
        assert learn.loss_func(loud, *batch[1:]).item() == pytest.approx(learn.loss_func(pred, *batch[1:]).item())
        loud[torch.from_numpy(~of_a), 11] = 9.               # in city B it does
        assert learn.loss_func(loud, *batch[1:]) > learn.loss_func(pred, *batch[1:]) + 1


@pytest.mark.parametrize('where,pseudo', [('target', 4), ('source', 8), ('both', 12)])
def test_where_pseudo_labels_are_made(cities, homes, tmp_path, where, pseudo):
    recipe = replace(QUICK, pseudo_on=where, replay=False)
    t = move(cities, tmp_path/'out', recipe, homes[0], arms=['student'])
    assert t.results.set_index('arm').n_pseudo['student'].max() == pseudo and t.done == ['finetune', 'student']
    made = SegTable.load(t.path/'pseudo'/'table.csv')
    folders = {'target': {'B'}, 'source': {'A'}, 'both': {'A', 'B'}}[where]
    assert {p.split('/')[-3] for p in made.df.image} == folders
    assert all('/B/' in p for p in made.df.image[made.df.truth != ''])  # the source's labels are no truth


def test_the_plain_baselines_draw_at_random(cities):
    data = TransferData(table(cities, 'B').keep_labels(4, seed=0), CITY_A_TO_B(table(cities, 'A')).train.labelled)
    r = replace(QUICK, sampler='centroid', replay=False)
    arms = {a: r.transfer_arm(a, data, 'init', data.few) for a in TRANSFER_ARMS[1:] if a != 'joint'}
    centroid = {a for a, arm in arms.items() if 'centroid' in repr(arm.streams[0])}
    assert centroid == {'centroids', 'student', 'control', 'full'} and r.labelling_arm == 'centroids'
    assert {a for a, arm in arms.items() if arm.init is None} == {'scratch'}


def test_a_student_may_start_from_its_teacher(cities, homes, tmp_path):
    recipe = replace(QUICK, student_init='teacher')
    t = move(cities, tmp_path/'out', recipe, homes[0], arms=['control'])
    assert t.done == ['joint', 'control']
    fresh = move(cities, tmp_path/'fresh', QUICK, homes[0], arms=['joint', 'control'])
    assert t.predictor('joint').hash == fresh.predictor('joint').hash
    assert t.predictor('control').hash != fresh.predictor('control').hash


def test_without_hidden_or_unlabelled_images(cities, homes, tmp_path):
    "There is nothing to label, so there is no student, no control and no upper bound"
    t = move(cities, tmp_path/'out', replace(QUICK, target_labels=0), homes[0])
    assert t.done == ['source', 'scratch', 'finetune', 'finetune_long', 'centroids', 'joint']
    b = table(cities, 'B').keep_labels(4, seed=0)
    b = SegTable(b.df.assign(truth=''), b.space, b.remaps)
    t = move(cities, tmp_path/'few', replace(QUICK, target_labels=0, replay=False), homes[0], target=b)
    assert t.done == ['source', 'scratch', 'finetune', 'finetune_long', 'centroids', 'student', 'control']


def test_thresholds_by_precision_say_what_chose_them(cities, homes, tmp_path):
    t = move(cities, tmp_path/'out', replace(QUICK, precision=.5), homes[0], arms=['student', 'control'])
    assert 'precision' in t.metrics('student')['chosen_on'][0] and not t.metrics('control')['chosen_on']


# Where a source comes from

def test_a_run_its_folder_its_network_and_a_file(cities, homes, tmp_path):
    arms, alone = ['source', 'finetune'], replace(QUICK, replay=False)
    first = move(cities, tmp_path/'run', alone, homes[0], arms=arms)
    assert not (first.path/'source'/'history.csv').exists()                    # it was trained elsewhere
    origin = first.metrics('source')['origin']
    assert origin == dict(arm='teacher', seed=0, n_real=8, steps=2)
    file = homes[0].path/'teacher'/'predictor.safetensors'
    for i, source in enumerate((homes[0].path, str(homes[0].path), Predictor.load(file), file, str(file))):
        t = move(cities, tmp_path/f'{i}', alone, source, arms=arms)
        assert [t.predictor(a).hash for a in arms] == [first.predictor(a).hash for a in arms]
        assert move(cities, first.path, alone, source, arms=arms).done == arms  # all of them are the same source


def test_a_transfer_starts_as_the_source(cities, homes, tmp_path):
    t = move(cities, tmp_path/'out', source=homes[0], arms=['source'])
    x = torch.rand(2, 3, 48, 96)
    old, new = homes[0].predictor('teacher').model, Predictor.load(t.path/'init.safetensors').model
    with torch.no_grad(): assert torch.allclose(new.eval()(x)[:, :10], old.eval()(x), atol=1e-4)


def test_a_saved_table_is_a_source(cities, done):
    assert move(cities, done.path, done.recipe, str(cities/'A.csv')).done == list(TRANSFER_ARMS)


def test_the_network_of_the_source_is_the_default(cities, tmp_path, capsys):
    other = Predictor(seg_model(10, 'test_efficientnet', 'unet'), CITY_A, (48, 96), 'test_efficientnet', 'unet')
    r = replace(TransferRecipe(), crop=(32, 48), bs=2, n=4, epochs=(1, 1), target_labels=4, replay=False)
    t = move(cities, tmp_path/'out', r, other, arms=['finetune'])
    assert (t.recipe.encoder, t.recipe.arch, t.recipe.size) == ('test_efficientnet', 'unet', (48, 96))
    assert t.predictor('finetune').arch == 'unet' and 'test_efficientnet with unet' in capsys.readouterr().out
    assert move(cities, tmp_path/'out', r, other, arms=['finetune']).done == ['finetune']
    with pytest.raises(ValueError, match='arch is unet there and deeplabv3plus here'):
        move(cities, tmp_path/'x', replace(r, arch='deeplabv3plus'), other, arms=['finetune'])
    assert not (tmp_path/'x').exists()


@pytest.mark.parametrize('source,says', [
    (lambda: Predictor(torch.nn.Conv2d(3, 10, 1), CITY_A), 'network of your own'),
    (lambda: network().tempered(2.), 'changed output'),
    (lambda: Predictor.ensemble([network(), network()]), 'network of your own'),
    (lambda: network(light=False), 'weights are of another network than'),
    (lambda: network(CITY_B), 'the mapping is from'),
    (lambda: 'nowhere.safetensors', 'nowhere')], ids='own tempered ensemble other classes missing'.split())
def test_networks_that_cannot_be_a_source(cities, tmp_path, source, says):
    with pytest.raises((ValueError, OSError), match=says):
        move(cities, tmp_path/'out', replace(QUICK, replay=False), source())
    assert not (tmp_path/'out').exists()


def test_folders_that_are_no_source_name_those_nearby(cities, homes, done, tmp_path):
    (tmp_path/'runs').mkdir()
    shutil.copytree(homes[0].path, tmp_path/'runs'/'seed0')
    with pytest.raises(ValueError, match='did you mean .*seed0'): move(cities, tmp_path/'out', source=tmp_path/'runs')
    with pytest.raises(ValueError, match='no finished teacher.*student.predictor.safetensors'):
        move(cities, tmp_path/'out', source=done.path)
    alone = replace(QUICK, replay=False)
    file, own = done.path/'student'/'predictor.safetensors', {n: n for n in CITY_B.names}
    t = move(cities, tmp_path/'out', alone, file, own, arms=['finetune'])
    assert t.done == ['finetune']                                              # done as the error says


def test_only_a_network_has_no_images_to_replay(cities, tmp_path):
    for recipe in (QUICK, replace(QUICK, replay=False, pseudo_on='both')):
        with pytest.raises(ValueError, match=r'only the network is known.*--no-replay.*pseudo_on="target"'):
            move(cities, tmp_path/'out', recipe, network())
    assert not (tmp_path/'out').exists()
    t = move(cities, tmp_path/'out', replace(QUICK, replay=False), network(), arms=['scratch'])
    assert t.done == ['scratch']                                               # done as the error says


# Nothing is claimed for what cannot be

@pytest.mark.parametrize('change,says', [
    (dict(pseudo_on='unlabelled'), "pseudo_on='unlabelled'"), (dict(target_labels=-1), 'target_labels=-1'),
    (dict(target_labels=1.5), 'target_labels=1.5'), (dict(target_labels=9), '(--target-labels): cannot keep 9 of 8'),
    (dict(by='groups'), "by='groups'"), (dict(epochs=(1, 1, 1)), 'epochs='), (dict(source_epochs=0), 'source_epochs=0'),
    (dict(source_lr=0.), 'source_lr=0'), (dict(replay_ratio=0.), 'replay_ratio=0'), (dict(rounds=2), 'rounds=2'),
    (dict(student_encoder='test_efficientnet'), 'student_encoder'), (dict(student_arch='unet'), 'student_arch'),
    (dict(pseudo_on='both'), 'choose one of the two'), (dict(min_conf=(.1, .2)), '2 values'), (dict(lr=0.), 'lr=0'),
    (dict(encoder='resnet1000'), 'resnet1000'), (dict(pretrained='nothing.pth'), 'nothing.pth')])
def test_settings_are_checked_first(cities, tmp_path, change, says):
    with pytest.raises((ValueError, OSError)) as e: move(cities, tmp_path/'out', replace(QUICK, **change))
    assert says in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'out').exists()


@pytest.mark.parametrize('how,says', [
    (dict(arms=['best']), 'no arm best'), (dict(arms=[]), 'no arm given'),
    (dict(arms=['joint'], recipe=replace(QUICK, replay=False)), 'the arm joint needs replay=True'),
    (dict(arms=['full'], recipe=replace(QUICK, target_labels=0)), 'the arm full needs hidden labels'),
    (dict(arms=['student'], recipe=replace(QUICK, target_labels=0)), 'student and its control need unlabelled images'),
    (dict(mapping=CITY_B_TO_A), 'the mapping is'), (dict(mapping={'road': 'road'}), 'without a place'),
    (dict(options=Options(num_workers=-1)), 'num_workers=-1')])
def test_so_are_arms_and_mappings(cities, tmp_path, how, says):
    with pytest.raises(ValueError, match=says): move(cities, tmp_path/'out', **how)
    assert not (tmp_path/'out').exists()


def without(t, split):
    "The table with no label in a split"
    off = t.df.split == split
    df = t.df.assign(label=t.df.label.where(~off, ''), kind=t.df.kind.where(~off, 'none'))
    return SegTable(df, t.space, t.remaps)


@pytest.mark.parametrize('side', ['source', 'target'])
@pytest.mark.parametrize('split,says', [('train', 'no training image has'), ('val', 'no validation image has')])
def test_both_tables_are_looked_at(cities, tmp_path, side, split, says):
    how = {side: without(table(cities, dict(source='A', target='B')[side]), split)}
    with pytest.raises(ValueError, match=f'{side}: {says}'):
        move(cities, tmp_path/'out', replace(QUICK, target_labels=0), **how)
    assert not (tmp_path/'out').exists()


def test_what_the_error_says_to_do_leads_on(cities, tmp_path):
    a = table(cities, 'A')
    a = a[a.df.split == 'train']
    with pytest.raises(ValueError, match='source: .*hold_out'): move(cities, tmp_path/'out', source=a, arms=['source'])
    assert move(cities, tmp_path/'out', source=a.hold_out(.3), arms=['source']).done == ['source']


def test_images_that_count_twice(cities, tmp_path):
    own, a = Mapping(CITY_A, CITY_A, {n: n for n in CITY_A.names}), table(cities, 'A')
    (tmp_path/'link').symlink_to(cities)
    linked = SegTable(a.df.assign(image=a.df.image.str.replace(str(cities), str(tmp_path/'link'))), a.space, a.remaps)
    for target in (a, linked):
        with pytest.raises(ValueError, match='4 images have no label in the target and one in the source.*--no-replay'):
            move(cities, tmp_path/'out', mapping=own, target=target)
    assert not (tmp_path/'out').exists()
    t = move(cities, tmp_path/'out', replace(QUICK, replay=False), mapping=own, target=a, arms=['student'])
    assert t.done == ['finetune', 'student']


def test_no_image_that_measures_trains(cities, homes, tmp_path, capsys):
    a, b = table(cities, 'A'), table(cities, 'B')
    both, rows = a.remaps | b.remaps, [a.df, b.val.df.assign(split='train')]
    shared = SegTable(pd.concat(rows, ignore_index=True), a.space, both)
    t = move(cities, tmp_path/'out', source=shared, arms=['joint'])
    assert '2 training images of the source are for validation or test in the target' in capsys.readouterr().out
    assert t.metrics('joint')['n_real'] == 4 + 8
    target = SegTable(pd.concat([b.df, a.train.df.assign(split='test')], ignore_index=True), b.space, both)
    with pytest.raises(ValueError, match='8 training images.*its network was trained on them'):
        move(cities, tmp_path/'no', source=homes[0], target=target)
    assert not (tmp_path/'no').exists()


# What cannot be read

@pytest.mark.parametrize('city,what', [('A', 'images'), ('A', 'labels'), ('B', 'images'), ('B', 'labels')])
def test_an_unreadable_file_is_left_out(cities, tmp_path, city, what, capsys):
    for c in 'AB': shutil.copytree(cities/c, tmp_path/c)
    tables = {c: scenes(n=8, n_val=2, n_test=2, size=(48, 96), city=c, path=tmp_path/c) for c in 'AB'}
    name = os.path.basename(tables[city].train.df.image[0])
    (tmp_path/city/what/name).write_bytes(b'')
    t = transfer(tables['A'], tables['B'], CITY_A_TO_B, tmp_path/'t', QUICK, ['joint', 'student'], QUIET)
    assert t.done == ['joint', 'student'] and 'cannot be read and are left out' in capsys.readouterr().out
    folder = t.path/'source' if city == 'A' else t.path
    assert [os.path.basename(p) for p in read_json(folder/'unusable.json')] == [name]
    drawn = pd.read_csv(t.path/'joint'/'images.csv')
    assert not drawn.image.str.endswith(f'{city}/images/{name}').any()
    before = contents(t.path)
    transfer(tables['A'], tables['B'], CITY_A_TO_B, tmp_path/'t', QUICK, ['joint', 'student'], QUIET)
    assert contents(t.path) == before
    with pytest.raises(ValueError, match=f'{"source" if city == "A" else "target"}: 1 files cannot be used.*{name}'):
        transfer(tables['A'], tables['B'], CITY_A_TO_B, tmp_path/'s', QUICK, ['joint'], replace(QUIET, strict=True))
    assert not (tmp_path/'s').exists()


# The same transfer, or another

def test_the_same_call_does_nothing_again(done, cities):
    before = contents(done.path), stamps(done.path)
    options = Options(progress=False, num_workers=1, valid_bs=3, check=False)
    assert move(cities, done.path, done.recipe, options=options).done == list(TRANSFER_ARMS)
    assert (contents(done.path), stamps(done.path)) == before


@pytest.fixture
def copy(cities, homes, tmp_path):
    "A small transfer whose data may be changed"
    for c in 'AB': shutil.copytree(cities/c, tmp_path/c)
    tables = [scenes(n=8, n_val=2, n_test=2, size=(48, 96), city=c, path=tmp_path/c) for c in 'AB']
    def go(options=QUIET, recipe=QUICK, mapping=CITY_A_TO_B, out='t', source=tables[0], target=tables[1]):
        return transfer(source, target, mapping, tmp_path/out, recipe, ['source', 'joint'], options)
    go()
    return tmp_path, tables, go


def test_another_transfer_is_refused_by_name(copy, homes):
    home, (a, b), go = copy
    less = Mapping(CITY_A, CITY_B, {**CITY_A_TO_B.to, 'sign': None}, ['sign', 'fence', 'tram'])
    fewer = a[a.df.index != 0]
    for says, how in {'the mapping is another one': dict(mapping=less), 'the source is another one': dict(source=fewer),
                      'lr is 0.001 there and 0.004 here': dict(recipe=replace(QUICK, lr=4e-3)),
                      'seed is 0 there and 1 here': dict(recipe=replace(QUICK, seed=1)),
                      'source_epochs is 1 there and 2 here': dict(recipe=replace(QUICK, source_epochs=2))}.items():
        with pytest.raises(ValueError, match='holds other work') as e: go(**how)
        assert says in str(e.value)
    with pytest.raises(ValueError, match='the source is another one'): go(source=homes[0])


@pytest.mark.parametrize('how, says', [
    (dict(target='town'), 'target='), (dict(recipe=Recipe()), 'give a TransferRecipe'),
    (dict(arms='finetune'), 'give a list'), (dict(mapping='map.json'), 'mapping=')])
def test_what_is_of_another_kind_is_named(cities, tmp_path, how, says):
    given = dict(target=table(cities, 'B'), mapping=CITY_A_TO_B, recipe=QUICK, arms=['finetune'])
    with pytest.raises(ValueError, match=says): transfer(table(cities, 'A'), out=tmp_path/'t', **{**given, **how})
    assert not (tmp_path/'t').exists()


def test_moved_data_is_the_same_transfer(copy):
    home, (a, b), go = copy
    stamp = (home/'t'/'joint'/'predictor.safetensors').stat().st_mtime_ns
    (home/'elsewhere').mkdir()
    for c in 'AB': (home/c).rename(home/'elsewhere'/c)
    def there(t): return SegTable(t.df.replace(f'{home}/', f'{home}/elsewhere/', regex=True), t.space, t.remaps)
    t = go(source=there(a), target=there(b))
    assert t.table.image(0).size == (96, 48) and (t.path/'joint'/'predictor.safetensors').stat().st_mtime_ns == stamp


@pytest.mark.parametrize('city', ['A', 'B'])
def test_labels_changed_in_place_are_noticed(copy, city):
    home, tables, go = copy
    t = Transfer(home/'t')
    part = tables['AB'.index(city)].train if city == 'A' else t.table.train.real
    for i, p in enumerate(part.df.label): Image.fromarray(np.ascontiguousarray(part.mask(i)[:, ::-1])).save(p)
    was = t.predictor('joint').hash
    with pytest.raises(ValueError, match='files .*have changed since .*--refresh'): go()
    assert t.predictor('joint').hash == was
    go(replace(QUIET, refresh=True))
    assert_same(t.path, go(out='fresh').path)
    go()                                                                       # it is not asked about again


def test_changed_test_labels_only_measure_again(copy):
    home, (a, b), go = copy
    stamp = (home/'t'/'joint'/'predictor.safetensors').stat().st_mtime_ns
    Image.fromarray(np.full((48, 96), 3, np.uint8)).save(b.test.df.label[0])
    with pytest.raises(ValueError, match='files have changed'): go()
    go(replace(QUIET, refresh=True))
    assert (home/'t'/'joint'/'predictor.safetensors').stat().st_mtime_ns == stamp


def test_a_run_as_source_needs_no_images_without_replay(cities, homes, tmp_path):
    home = tmp_path/'run'
    shutil.copytree(homes[0].path, home)
    t = SegTable.load(home/'table.csv')
    SegTable(t.df.replace(f'{cities}/A/', '/nowhere/A/', regex=True), t.space, t.remaps).save(home/'table.csv')
    assert move(cities, tmp_path/'t', replace(QUICK, replay=False), home, arms=['finetune']).done == ['finetune']


def test_a_second_process_gets_a_clear_error(cities, done):
    with folder_lock(done.path):
        with pytest.raises(BlockingIOError, match='another process works in this folder'):
            in_child(move, cities, done.path, done.recipe)
    in_child(move, cities, done.path, done.recipe)


# Stopped at named points: the same bytes in the end

STOPPED = replace(QUICK, epochs=(2, 1), source_epochs=2, sampler='centroid')
ARMS = ['source', 'joint', 'student', 'control']
POINTS = ['claim', 'write.temp:2', 'write.temp:7', 'write.temp:16', 'write.temp:30', 'write.replace:9',
          'write.replace:24', 'train.checkpoint:1', 'train.checkpoint:3', 'train.checkpoint:5', 'train.weights:1',
          'train.weights:2',
          'train.weights:3', 'train.metrics:1', 'train.metrics:2', 'label.files:1', 'label.manifest:1',
          'index.journal:1', 'index.save:1']


def whole(cities, out): move(cities, out, STOPPED, arms=ARMS)


@pytest.fixture(scope='module')
def uninterrupted(cities, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'t'
    in_child(whole, cities, out)
    return out


@pytest.mark.parametrize('point', POINTS)
def test_a_stop_at_any_point_loses_nothing(cities, uninterrupted, tmp_path, point):
    stopped_at(point, whole, cities, tmp_path/'t')
    in_child(whole, cities, tmp_path/'t')
    assert_same(uninterrupted, tmp_path/'t')


def test_no_checkpoint_stays(uninterrupted): assert not [*uninterrupted.rglob('state.safetensors')]


# The last layer

@lru_cache
def biased(n):
    torch.manual_seed(n)
    model = seg_model(n, 'test_byobnet').eval()
    model.net.segmentation_head[0].bias.data.uniform_(-1, 1)
    return model


ALL = CITYSCAPES_TO_CAMVID, CAMVID_TO_CITYSCAPES, CAMVID_TO_IDD_LITE, IDD_LITE_TO_CAMVID, CITY_B_TO_A, CITY_A_TO_B

@pytest.mark.parametrize('mapping', ALL, ids=lambda m: f'{m.source.name} to {m.target.name}')
def test_rows_of_the_last_layer(mapping):
    source = Predictor(biased(len(mapping.source)), mapping.source, encoder='test_byobnet', arch='fpn')
    old, new = source.model.net.segmentation_head[0], remap_head(source, mapping).model.net.segmentation_head[0]
    for c, name in enumerate(mapping.target.names):
        of = [k for k, n in enumerate(mapping.source.names) if mapping.to[n] == name]
        assert torch.allclose(new.bias[c], old.bias[of].mean() if of else old.bias.mean(), atol=1e-6)
        if of: assert torch.allclose(new.weight[c], old.weight[of].mean(0), atol=1e-6)
    assert {len(IDD_LITE), len(CAMVID), len(CITYSCAPES)} == {7, 11, 19}


def test_new_classes_depend_on_the_seed_alone():
    source = Predictor(biased(10), CITY_A, encoder='test_byobnet', arch='fpn')
    state = torch.get_rng_state()
    one, two, other = (remap_head(source, CITY_A_TO_B, seed).hash for seed in (0, 0, 1))
    assert one == two != other and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('encoder,arch', [('test_vit', 'dpt'), ('test_byobnet', 'deeplabv3plus'),
                                          ('test_byobnet', 'unet')])
def test_other_decoders(encoder, arch):
    source = Predictor(seg_model(10, encoder, arch), CITY_A, encoder=encoder, arch=arch)
    new, x = remap_head(source, CITY_A_TO_B), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        old, out = source.model.eval()(x), new.model.eval()(x)
    assert torch.allclose(out[:, :10], old, atol=1e-4)


# Reading a folder

def test_telling_images(done, cities):
    b = table(cities, 'B')
    new = [CITY_B.index(n) for n in ('fence', 'tram')]
    pixels = {p: np.isin(b.mask(i), new).sum() for i, p in enumerate(b.df.image)}
    first = done.telling(1).df.image[0]
    assert first in set(b.val.df.image) and pixels[first] == max(pixels[p] for p in b.val.df.image)
    with pytest.raises(ValueError, match="no labelled images of split 'sky'"): done.telling(split='sky')


def test_a_folder_is_read_at_any_stage(done, tmp_path):
    assert repr(Transfer(tmp_path)).endswith('nothing yet)')
    assert done.mapping == CITY_A_TO_B and done.mapping.new == ('fence', 'tram')
    with pytest.raises(FileNotFoundError, match='no run here'): Transfer(tmp_path).results
    with pytest.raises(ValueError, match='nothing is trained here'): Transfer(tmp_path).show()
    assert isinstance(done.mapping.source, LabelSpace) and not isinstance(Run(done.path), Transfer)
