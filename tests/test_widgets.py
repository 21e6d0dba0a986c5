"The explorers without a browser: controls are moved by code, and what is shown is compared with what is computed."
import re

import numpy as np
import pytest
import torch
import matplotlib.pyplot as plt
from ipywidgets import IntSlider

from selftrain_nb.centroids import CentroidIndex, CentroidSampler
from selftrain_nb.crops import CropCost, CropSchedule
from selftrain_nb.labels import VOID, LabelSpace, Remap, read_conf, read_mask
from selftrain_nb.models import seg_model
from selftrain_nb.predict import Predictor
from selftrain_nb.pseudo import LabelJob, PseudoStore, pseudo_label
from selftrain_nb.scenes import scenes
from selftrain_nb.streams import Stream, seg_dls
from selftrain_nb.training import seg_learner
from selftrain_nb.widgets import *


@pytest.fixture(scope='module')
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp('widgets')/'scenes'
    return scenes(n=6, n_val=2, n_test=0, size=(48, 96), path=path).keep_labels(3, by='image')

@pytest.fixture
def store(ds, tmp_path):
    torch.manual_seed(0)
    net = seg_model(len(ds.space), 'test_byobnet')
    teacher = Predictor(net, ds.space, None, 'test_byobnet', 'fpn')
    pseudo_label(teacher, ds.unlabelled, tmp_path/'pseudo', job=LabelJob(progress=False))
    return PseudoStore.open(tmp_path/'pseudo')


def test_a_moved_control_draws_a_new_picture_and_leaves_no_figure_open():
    def draw(n):
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, n])
        return fig
    plt.close('all')
    box, seen = Explorer(dict(n=IntSlider(1, 0, 9)), draw), set()
    for n in range(5):
        box.controls['n'].value = n
        seen.add(bytes(box.picture.value))
    assert len(seen) == 5 and not plt.get_fignums()
    assert all(png.startswith(b'\x89PNG') for png in seen)


# --- centroids

def test_the_counts_are_those_of_the_plan(ds):
    box, table = explore_centroids(ds, n=50), ds.labelled
    for name, value in dict(p=.8, tile=32, epoch=3, row=1).items(): box.controls[name].value = value
    plan = CentroidSampler(.8, index=CentroidIndex.build(table, 32)).plan(50, (0, 3))['cls']
    assert box.counts == [*(int((plan == c).sum()) for c in range(len(ds.space))), int((plan < 0).sum())]

def test_an_index_is_built_once_for_each_tile(ds, monkeypatch):
    built, build = [], CentroidIndex.build
    monkeypatch.setattr(CentroidIndex, 'build', lambda *args, **kwargs: built.append(args[1]) or build(*args, **kwargs))
    box = explore_centroids(ds, most=2)
    for tile in (64, None, 64, 32): box.controls['tile'].value = tile
    assert built == [None, 64, 32] and box.controls['row'].max == 1

def test_without_labels_there_is_one_clear_error(ds):
    with pytest.raises(ValueError, match='no labelled row'): explore_centroids(ds.unlabelled)


# --- crops

@pytest.fixture(scope='module')
def cost(ds):
    learn = seg_learner(seg_dls(Stream(ds, n=8), crop=(48, 64), bs=4), 'test_byobnet')
    return CropCost(learn, repeats=1)

def test_the_sliders_make_a_schedule(cost):
    box = explore_crops(cost, epochs=4)
    values = dict(a=.5, b=.9, small=.4, final=.25, cycle=2, batch='constant')
    for name, value in values.items(): box.controls[name].value = value
    s = box.schedule
    assert isinstance(s, CropSchedule) and (s.when['cycle'], s.when['final'], s.rules.batch) == (2, .25, 'constant')
    assert s.when['phases'] == [(.5, .4), (.5, .75), (0., 1.)]  # shares of more than 1 are cut
    box.controls['cycle'].value = 0
    assert box.schedule.when.get('cycle') is None
    box.controls['epochs'].value = 6
    assert len(box.plan()) == 6

def test_full_crops_cost_what_they_cost(cost):
    box = explore_crops(cost, epochs=2)
    for name in 'ab': box.controls[name].value = 0
    assert set(zip(box.plan().height, box.plan().width)) == {(48, 64)} and abs(box.plan().speedup.iloc[-1] - 1) < 1e-9

def test_a_learner_is_measured(cost):
    assert isinstance(explore_crops(cost.learn, epochs=2).cost, CropCost)


# --- pseudo labels

def rows(box):
    "[(class, text of this image, text of all)] of the table below the picture"
    cells = re.findall(r'<tr><td>.*?</span> (.*?)</td><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>', box.counts.value)
    assert len(cells) == len(box.store.space)
    return cells

def test_the_table_tells_what_the_thresholds_keep(store):
    box = explore_pseudo(store, start=.3)
    t, n = np.linspace(.1, .6, len(store.space)).round(2), len(store.space)
    for slider, v in zip(box.thresholds, t): slider.value = v
    said, kept = np.zeros((2, n), int)
    for label, conf in zip(store.table.df.label, store.table.df.conf):
        mask, conf = read_mask(label, Remap.identity(n)), read_conf(conf)
        said += np.bincount(mask.ravel(), minlength=n)
        kept += np.bincount(mask[conf >= np.ceil(t * 255)[mask]], minlength=n)
    for (_, _, every), a, b in zip(rows(box), kept, said):
        assert every == (f'{100 * a / b:.0f} % of {b:,}'.replace(',', ' ') if b else 'none')
    masks = [box.select().mask(i) for i in range(len(store))]
    assert np.array_equal(sum(np.bincount(m.ravel(), minlength=256)[:n] for m in masks), kept)
    assert np.array_equal(box.pixels[1], np.bincount(masks[box.row].ravel(), minlength=256)[:n])

def test_a_slider_moves_its_own_class_and_its_end_keeps_nothing(store):
    box = explore_pseudo(store.path, start=0.)
    before, k = rows(box), int(box.pixels[0].argmax())
    box.thresholds[k].value = box.thresholds[k].max
    after = rows(box)
    assert box.pixels[1, k] == 0 and after[k][2].startswith('0 % of')
    assert [r for i, r in enumerate(after) if i != k] == [r for i, r in enumerate(before) if i != k]
    assert not (box.select().counts()[k])

def test_a_mark_belongs_to_its_image_and_is_kept(store):
    box = explore_pseudo(store)
    first = box.name
    assert first == store.name(store.ranked()[-1])  # the image to look at first
    box.bad.value = True
    box.at.value = 1
    assert not box.bad.value and box.name != first
    box.at.value = 0
    assert box.bad.value and PseudoStore.open(store.path).marked == [first]
    assert len(box.select()) == len(store) - 1
    assert explore_pseudo(store).bad.value  # also when it is opened anew
    box.bad.value = False
    assert not store.marked and len(box.select()) == len(store)

def test_looking_at_images_does_not_write_into_the_store(store):
    store.mark([store.name(store.ranked()[-1])])
    seen = (store.path/'bad.json').stat().st_mtime_ns
    box = explore_pseudo(store)
    for at in (1, 2, 0): box.at.value = at
    assert (store.path/'bad.json').stat().st_mtime_ns == seen

def test_names_are_escaped_and_a_truth_that_cannot_be_read_is_left_out(store):
    names = ['<b>&'] + list(store.space.names[1:])
    store.space = LabelSpace(names, store.space.colours)
    store.table.df['truth'] = ['nowhere.png'] * len(store)
    box = explore_pseudo(store)
    assert rows(box)[0][0] == '&lt;b&gt;&amp;'

def test_an_empty_store_is_one_clear_error(store, monkeypatch):
    monkeypatch.setattr(PseudoStore, '__len__', lambda self: 0)
    with pytest.raises(ValueError, match='no pseudo label to explore'): explore_pseudo(store)

def test_the_picture_tells_the_shares(store):
    fig, (said, kept) = draw_pseudo(store, 0, .2)
    titles = [ax.get_title() for ax in fig.axes]
    plt.close(fig)
    mask = store.select(.2).mask(0)
    assert titles[0] == store.name(0) and titles[2] == f'pseudo label, {(mask != VOID).mean():.0%} kept'
    assert kept.sum() == (mask != VOID).sum() and said.sum() == mask.size
