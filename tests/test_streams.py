"Streams: proportions, reproducibility, what a batch holds, broken files, and fastai's own tools on plain Learners."

import warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Interpretation, Learner, Normalize, TensorImage, TensorMask, load_learner, nn
from selftrain_nb.augment import *
from selftrain_nb.centroids import *
from selftrain_nb.labels import *
from selftrain_nb.losses import SegLoss
from selftrain_nb.models import seg_model
from selftrain_nb.predict import Predictor, Views
from selftrain_nb.reading import *
from selftrain_nb.scenes import scenes
from selftrain_nb.streams import *
from selftrain_nb.table import *
from selftrain_nb.training import seg_learner

N, H, W = 4, 32, 48
SPACE = LabelSpace([f'c{i}' for i in range(N)])


def files(folder, n, first=0, hw=(H, W)):
    """Images whose green and blue channels are their mask times 60; the red one is noise. A class a quarter, in
    random order"""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        rng = np.random.default_rng(i)
        m = np.kron(rng.integers(0, N, (4, 6)), np.ones((hw[0] // 4, hw[1] // 6))).astype(np.uint8)
        im = np.stack([rng.integers(0, 256, m.shape, dtype=np.uint8), m * 60, m * 60], -1)
        Image.fromarray(im).save(folder / f'{i}.png')
        Image.fromarray(m).save(folder / f'{i}_mask.png')
        Image.fromarray(np.stack([200 - m, 3 - m, m * 10], -1).astype(np.uint8)).save(folder / f'{i}_conf.png')
    return [folder / f'{i}' for i in range(first, first + n)]


def table(names, label='_mask.png', remap=None, **columns):
    return SegTable.make(
        [f'{n}.png' for n in names],
        [n and f'{n}{label}' for n in names] if label else [None] * len(names),
        SPACE,
        remap,
        **columns,
    )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Six labelled images of which two are for validation, ten pseudo-labelled ones with confidences"
    names = files(tmp_path_factory.mktemp('streams') / 'd', 16)
    real = table(names[:6], split=['train'] * 4 + ['val'] * 2)
    return real, table(names[6:], kind='pseudo', conf=[f'{n}_conf.png' for n in names[6:]])


def copy_of(t, tmp_path):
    "The same rows with their files copied, to be broken"
    import shutil

    df = t.df.copy()
    for c in ('image', 'label'):
        df[c] = [str(shutil.copy(p, tmp_path / Path(p).name)) for p in df[c]]
    return SegTable(df, t.space, t.remaps)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) and type(x) is type(y) for s, t in zip(a, b) for x, y in zip(s, t)
    )


def only(b, cls):
    return next(t for t in b if isinstance(t, cls))


def epoch(dl):
    return [tuple(t.clone() for t in b) for b in dl]


def plain_loss(pred, mask, *more, reduction='mean'):
    return nn.functional.cross_entropy(pred, mask, ignore_index=VOID, reduction=reduction)


plain_loss.decodes = lambda pred: pred.max(1).indices


def learner(dls):
    torch.manual_seed(0)
    return Learner(dls, nn.Conv2d(3, N, 1), loss_func=plain_loss)


# ---- proportions and epochs


@pytest.mark.parametrize('n, bs', [(20, (2, 5)), (7, (2, 1)), (1, (3, 2)), (None, (1, 1))])
def test_every_batch_holds_the_same_of_each_stream(data, n, bs):
    "An epoch is defined by the first stream, and every batch is full"
    real, pseudo = data
    dl = seg_dls(Stream(real, n=n), Stream(pseudo, augment=strong), crop=16, bs=bs).train
    batches = epoch(dl)
    wanted = -(-(n or max(4, 25 * bs[0])) // bs[0])
    assert len(batches) == len(dl) == wanted and dl.n_first == (n or max(4, 25 * bs[0])) and dl.stream_bs == bs
    for b in batches:
        assert only(b, TensorStream).tolist() == [0] * bs[0] + [1] * bs[1]


def test_student_and_control_take_the_same_steps(data):
    "Whatever the second stream holds (case 36)"
    real, pseudo = data
    steps = {
        len(seg_dls(Stream(real, n=100), Stream(t, augment=strong), crop=16, bs=(8, 56)).train) for t in (pseudo, real)
    }
    assert steps == {13} == {len(seg_dls(Stream(real, n=100), crop=16, bs=8).train)}


def test_a_second_stream_does_not_change_the_first(data):
    real, pseudo = data
    one = epoch(seg_dls(Stream(real, n=12), crop=16, bs=3).train)
    two = epoch(
        seg_dls(Stream(real, n=12), Stream(pseudo, augment=strong, sampler='centroid'), crop=16, bs=(3, 4)).train
    )
    assert same([(b[0], b[1]) for b in one], [(b[0][:3], b[1][:3]) for b in two])


def test_workers_change_no_byte(data):
    real, pseudo = data
    kw = dict(crop=16, bs=(2, 3), seed=5)
    streams = lambda: (
        Stream(real, n=10),
        Stream(pseudo, augment=replace(strong, rotate=10), sampler='centroid', labels='soft'),
    )
    none, two = (seg_dls(*streams(), num_workers=w, **kw).train for w in (0, 2))
    for _ in range(2):
        assert same(epoch(none), epoch(two))


def test_a_sample_depends_on_its_place_alone(data):
    """Not on what was read before: one sample by itself is the same as in its batch, and a run that begins at
    epoch 2 sees epoch 2"""
    real, pseudo = data
    make = lambda **kw: seg_dls(Stream(real, n=6), Stream(pseudo, augment=strong), crop=16, bs=(2, 2), **kw).train
    dl = make()
    epochs = [epoch(dl) for _ in range(3)]
    later = make()
    later.epoch = 2
    assert torch.equal(later.do_item(9)[1], epochs[2][2][1][1])
    assert same(epoch(later), epochs[2]) and not same(epochs[0], epochs[1])
    assert not same(epoch(make(seed=1)), epochs[0])


def test_one_batch_and_pictures_do_not_move_the_epoch(data):
    dls = seg_dls(Stream(data[0], n=4), crop=16, bs=2)
    first = epoch(dls.train)
    dls.train.epoch = 0
    dls.one_batch(), dls.show_batch(), class_exposure(dls.train)
    assert same(epoch(dls.train), first)


@pytest.mark.parametrize('world', [2, 3])
def test_processes_share_the_batches(data, world):
    "Each takes every `world`-th batch, all the same number; together they read what one would"
    real, pseudo = data
    make = lambda **kw: seg_dls(Stream(real, n=14), Stream(pseudo), crop=16, bs=(2, 3), **kw).train
    whole, parts = epoch(make()), [epoch(make(shard=(r, world))) for r in range(world)]
    assert {len(p) for p in parts} == {7 // world}
    assert same([b for group in zip(*parts) for b in group], whole[: 7 // world * world])
    with pytest.raises(ValueError, match='shard=.* fewer than there are processes'):
        make(shard=(0, 8))


def test_resized(data):
    "The first stream's batch is given, the others keep their proportion, the epoch stays"
    real, pseudo = data
    dl = seg_dls(Stream(real, n=24), Stream(pseudo, augment=strong), Stream(pseudo), crop=16, bs=(4, 6, 1)).train
    dl.epoch = 3
    small = dl.resized((8, 12), 8, zoom=0.5)
    assert (small.stream_bs, small.n_first, small.epoch, len(small), small.crop) == ((8, 12, 2), 24, 3, 3, (8, 12))
    assert [a.scale for a in small.plan.augments] == [(0.25, 1.0)] * 3 and small.plan.augments[1].colour == 0.5
    assert dl.resized(16, 1).stream_bs == (1, 2, 1)
    assert small.one_batch()[0].shape == (22, 3, 8, 12) and dl.one_batch()[0].shape == (11, 3, 16, 16)
    assert [t['row'].tolist() for t in small.plan.draw(3)][0] == dl.plan.draw(3)[0]['row'].tolist()


def test_images_drawn_is_what_was_read(data):
    real, pseudo = data
    dl = seg_dls(Stream(real, n=9), Stream(pseudo, sampler='centroid'), crop=16, bs=(2, 3)).train
    read, create = [], dl.create_item
    dl.create_item = lambda i: read.append(dl.dataset.items[i].path) or create(i)
    epoch(dl), epoch(dl)
    told = images_drawn(dl, 2)
    assert told.groupby('image').times.sum().to_dict() == {
        **dict.fromkeys(told.image, 0),
        **pd.Series(read).value_counts().to_dict(),
    }
    assert set(told.stream) == {'real', 'pseudo'} and told.times.sum() == 2 * 5 * 5


@pytest.mark.parametrize('workers', [0, 2])
def test_what_cannot_be_read_was_not_drawn(data, tmp_path, workers):
    "After an epoch it is known; the samples that stood in for it count"
    t = copy_of(data[0], tmp_path)
    broken(t, [0, 2])
    dl = seg_dls(Stream(t, n=8), Stream(data[1]), crop=16, bs=(2, 1), num_workers=workers).train
    read, create = [], dl.create_item
    dl.create_item = lambda i: (create(i), read.append(dl.dataset.items[i].path))[0]
    told(lambda: epoch(dl))
    times = images_drawn(dl, 1).groupby('image').times.sum()
    assert times[t.df.image[[0, 2]]].sum() == 0 and times.sum() == 12
    if not workers:
        assert times[times > 0].to_dict() == pd.Series(read).value_counts().to_dict()


# ---- what a batch holds


def test_images_are_not_normalised(data):
    "Values from 0 to 1, whatever the encoder: the network normalises them itself (case 41)"
    x, y, s = seg_dls(Stream(data[0]), crop=(H, W), bs=4).one_batch()
    assert x.min() == 0 and 0.9 < x.max() <= 1
    assert (type(x), x.dtype, type(y), y.dtype, type(s), s.dtype) == (
        TensorImage,
        torch.float32,
        TensorMask,
        torch.int64,
        TensorStream,
        torch.int64,
    )


def test_image_and_mask_fit(data):
    for s in ('random', 'centroid'):
        x, y, _ = seg_dls(Stream(data[0], augment=Augment(scale=(1, 1)), sampler=s), crop=(24, 24), bs=8).one_batch()
        assert torch.equal(
            (x[:, 1] * 255 / 60).round().long().as_subclass(torch.Tensor)[y != VOID],
            y.as_subclass(torch.Tensor)[y != VOID],
        )


@pytest.mark.parametrize(
    'kinds, types',
    [
        (('hard', 'hard'), []),
        (('hard', 'weighted'), [TensorConfidence]),
        (('soft', 'hard'), [TensorSoft]),
        (('weighted', 'soft'), [TensorConfidence, TensorSoft]),
    ],
)
def test_confidences_only_where_asked_for(data, kinds, types):
    "A stream that does not use a map is certain in it"
    pseudo = data[1]
    streams = [Stream(pseudo, labels=k, augment=Augment(scale=(1, 1))) for k in kinds]
    b = seg_dls(*streams, crop=(H, W), bs=3, valid=data[0].val).one_batch()
    assert [type(t) for t in b[2:]] == [*types, TensorStream]
    y, stream = b[1].as_subclass(torch.Tensor), only(b, TensorStream)
    for k, kind in enumerate(kinds):
        m = y[stream == k]
        for t in b[2:-1]:
            t = t.as_subclass(torch.Tensor)[stream == k].long()
            if isinstance(t, TensorConfidence):
                continue
            used = kind == ('weighted' if t.ndim == 3 else 'soft')
            if t.ndim == 3:
                assert torch.equal(t, 200 - m if used else torch.full_like(m, 255))
            elif used:
                assert torch.equal(t, torch.stack([200 - m, 3 - m, m * 10], 1))
            else:
                assert t[:, 0].unique().tolist() == [255] and t[:, 1:].unique().tolist() == [0]
        assert {t.dtype for t in b[2:-1]} <= {torch.uint8}


def test_a_function_of_ones_own_beside_soft_labels(data):
    "Its stream has no map that it would have to change"

    def same(image, mask, rng):
        return image, mask

    b = seg_dls(Stream(data[0], augment=same), Stream(data[1], labels='soft'), crop=16, bs=2).one_batch()
    assert only(b, TensorSoft)[:2, 0].unique().tolist() == [255]
    with pytest.raises(ValueError, match="labels='soft'"):
        Stream(data[1], augment=same, labels='soft')


def test_partially_labelled_classes_over_all_streams(data):
    "A replay stream that cannot name a class gets its TensorClasses although every label of that stream is alike"
    real, pseudo = data
    old = table([p[:-4] for p in real.df.image[:3]], remap=Remap({0: 0, 1: 1, 2: 2, 3: 255, 255: 255}))
    b = seg_dls(Stream(real), Stream(old), crop=16, bs=2).one_batch()
    assert only(b, TensorClasses).tolist() == [[True] * 4] * 2 + [[True, True, True, False]] * 2
    for streams in (
        [Stream(real), Stream(pseudo)],
        [Stream(old), Stream(old, augment=strong)],
    ):  # nobody names it: absent
        assert not any(
            isinstance(t, TensorClasses) for t in seg_dls(*streams, crop=16, bs=2, valid=real.val).one_batch()
        )
    bare = table([p[:-4] for p in pseudo.df.image], label='')
    b = seg_dls(Stream(real), Stream(old), Stream(bare), crop=16, bs=1).one_batch()
    assert only(b, TensorClasses)[2].all()


def test_a_stream_without_labels(data):
    real, pseudo = data
    bare = table([p[:-4] for p in pseudo.df.image], label='')
    s = Stream(bare, augment=strong)
    x, y, stream = seg_dls(Stream(real), s, crop=16, bs=2).one_batch()
    assert s.name == 'unlabelled' and not s.labelled and y[stream == 1].unique().tolist() == [VOID]
    with pytest.raises(ValueError, match='no labelled training image'):
        seg_dls(s, crop=16, valid=real.val)
    mixed = Stream(real + bare)
    assert len(mixed.rows) == 4 and mixed.labelled  # where some rows have labels, those are the stream


def test_centroid_crops_show_their_class(data):
    dl = seg_dls(Stream(data[0], n=40, sampler=CentroidSampler(p=1.0)), crop=(6, 6), bs=8).train
    classes = dl.drawn()[0]['cls']
    for i, c in enumerate(classes):
        assert (dl.do_item(i)[1] == int(c)).any()


def test_a_sampler_of_ones_own(data):
    class First:
        def fit(self, table, size=None):
            return self

        def plan(self, n, key):
            return np.zeros(n, int)

    s = Stream(data[0], n=6, sampler=First())
    dl = seg_dls(s, crop=16, bs=2).train
    epoch(dl)
    assert images_drawn(dl).times.tolist() == [6, 0, 0, 0] and 'First' in repr(s)


# ---- splits


def test_pseudo_labels_of_other_splits_are_not_trained_on(data):
    "Unless `split` names them (case 04)"
    real, pseudo = data
    t = SegTable(pseudo.df.assign(split=['test'] * 3 + ['val'] * 3 + ['train'] * 4), SPACE, pseudo.remaps)
    assert len(Stream(t).rows) == 4 and len(Stream(t, split=('train', 'test')).rows) == 7
    dl = seg_dls(Stream(real), Stream(t), crop=16, bs=4).train
    assert not set(images_drawn(dl, 3).image) & set(t.df.image[:6])
    with pytest.raises(ValueError, match="no image of split train.*split='test'"):
        Stream(t.split('test'))


def test_validation(data):
    "Human labels of split val by default; never pseudo labels by accident; otherwise the table that is given"
    real, pseudo = data
    t = SegTable(pd.concat([real.df, pseudo.df.assign(split='val')]), SPACE, real.remaps)
    assert len(seg_dls(Stream(t), crop=16).valid_ds) == 2
    assert len(seg_dls(Stream(t), crop=16, valid=pseudo).valid_ds) == 10
    with pytest.raises(ValueError, match=r'hold_out\(.2\).*valid='):
        seg_dls(Stream(real.train), crop=16)


def test_images_of_different_size(data, tmp_path):
    other = table(files(tmp_path / 'wide', 2, 50, (40, 36)))
    t = SegTable(pd.concat([data[0].val.df, other.df]), SPACE, data[0].remaps)
    x, y, _ = seg_dls(Stream(data[0]), crop=16, valid=t, valid_bs=4).valid.one_batch()
    assert (
        x.shape == (4, 3, 40, 48)
        and (y[:2, 32:] == VOID).all()
        and (y[2:, :, 36:] == VOID).all()
        and (y[2:, :, :36] != VOID).all()
    )
    assert seg_dls(Stream(data[0]), size=24, valid=t).crop == (16, 24)  # of the first image, at working size


# ---- broken files


def broken(t, rows, what='image', how=b'no image'):
    for i in rows:
        Path(t.df[what].iloc[i]).write_bytes(how)


def told(f):
    "The warnings of a call"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    return [str(i.message) for i in w if 'cannot be read' in str(i.message)]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('what', ['image', 'label'])
def test_a_broken_training_file_is_replaced_within_its_stream(data, tmp_path, what, workers):
    "Also the first one (case 24), and also in worker processes; counted, and named once"
    real, pseudo = data
    t = copy_of(real, tmp_path)
    broken(t, [0, 2], what)
    dl = seg_dls(Stream(t, n=8), Stream(pseudo), crop=16, bs=(2, 2), num_workers=workers).train
    said = told(lambda: [epoch(dl) for _ in range(3)])
    assert all(only(b, TensorStream).tolist() == [0, 0, 1, 1] for b in epoch(dl))
    assert sorted(dl.skipped) == sorted(t.df.image[[0, 2]]) and all(
        'cannot be read' in m or m == 'could not be read at first' for m in dl.skipped.values()
    )
    assert len(said) == 1 and '2 of 14' in said[0]
    with pytest.raises(OSError, match='cannot be read'):
        epoch(seg_dls(Stream(t, n=8), crop=16, bs=2, strict=True).train)


def test_replacements_are_deterministic(data, tmp_path):
    t = copy_of(data[0], tmp_path)
    broken(t, [1])
    a, b = (epoch(seg_dls(Stream(t, n=8), crop=16, bs=2, num_workers=w).train) for w in (0, 2))
    assert same(a, b)


@pytest.mark.parametrize('how', [dict(how=b'')], ids=['empty'])
def test_nothing_readable_is_an_error(data, tmp_path, how):
    t = copy_of(data[0], tmp_path)
    broken(t, range(4), **how)
    with pytest.raises(OSError, match='0.png'):
        seg_dls(Stream(t), crop=16)
    t2 = copy_of(data[1], (tmp_path / 'b').mkdir() or tmp_path / 'b')
    broken(t2, range(10), **how)
    dl = seg_dls(Stream(data[0], n=2), Stream(t2), crop=16, bs=1).train
    with pytest.raises(OSError, match='50 samples of Stream pseudo.* in a row cannot be read'):
        epoch(dl)


def test_a_label_that_does_not_fit_is_left_out_too(data, tmp_path):
    t = copy_of(data[0], tmp_path)
    Image.new('L', (9, 9)).save(t.df.label[1])
    Image.new('L', (W, H), 77).save(t.df.label[2])
    dl = seg_dls(Stream(t, n=8), crop=16, bs=2).train
    told(lambda: epoch(dl))
    assert sorted(dl.skipped) == sorted(t.df.image[[1, 2]])
    assert any('9x9' in m for m in dl.skipped.values()) and any('unknown id' in m for m in dl.skipped.values())


@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_validation_file_is_left_out(data, tmp_path, workers):
    "Never replaced by another, which would count twice (case 11)"
    rows = SegTable(
        pd.concat([data[0].df, data[1].df.assign(kind='real', conf='')]).assign(split='val'), SPACE, data[0].remaps
    )
    t = copy_of(rows, tmp_path)
    broken(t, [3, 7, 8])
    dls = seg_dls(Stream(data[0]), crop=16, valid=t, valid_bs=4, num_workers=workers)
    seen = []
    said = told(lambda: [seen.append(b[1].as_subclass(torch.Tensor)) for b in dls.valid])
    masks = torch.cat(seen)
    want = torch.stack([torch.from_numpy(t.mask(i).astype(int)) for i in range(16) if i not in (3, 7, 8)])
    assert torch.equal(masks, want) and len(dls.valid.skipped) == 3 and len(said) == 1
    assert len(dls.valid.items) == 13
    with pytest.raises(OSError, match='cannot be read'):
        list(seg_dls(Stream(data[0]), crop=16, valid=t, strict=True).valid)


def test_a_broken_validation_file_moves_no_image_to_another_batch(data, tmp_path):
    "Neither in later epochs: an interrupted training would measure other batches than one that ran through"
    t = copy_of(data[1], tmp_path)
    broken(t, [2])
    valid = seg_dls(Stream(data[0]), crop=16, valid=t, valid_bs=3).valid
    found = []
    told(lambda: found.extend([len(b[0]) for b in valid] for _ in range(3)))
    assert found == [[2, 3, 3, 1]] * 3


def test_predictions_with_broken_files_keep_their_order(data, tmp_path):
    "get_preds asks for the order before it reads; the first time as well as later"
    t = copy_of(data[1], tmp_path)
    broken(t, [2, 5])
    learn = learner(seg_dls(Stream(data[0]), crop=16, valid=t, valid_bs=3))
    with learn.no_bar():
        for _ in range(2):
            preds, (masks, _) = learn.get_preds()
            want = torch.stack([torch.from_numpy(t.mask(i).astype(int)) for i in range(10) if i not in (2, 5)])
            assert len(preds) == 8 and torch.equal(masks.as_subclass(torch.Tensor), want)
        with pytest.raises(OSError, match='none of 1 images can be read'):
            learn.predict(t.df.image[2])


# ---- fastai's tools on a plain Learner (case 22)


@pytest.fixture(scope='module')
def learn(data):
    real, pseudo = data
    learn = learner(seg_dls(Stream(real, n=8), Stream(pseudo, labels='weighted'), crop=(16, 24), bs=(2, 3)))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
    return learn


@pytest.mark.parametrize(
    'form', [str, Path, Image.open, lambda p: np.asarray(Image.open(p))], ids=['str', 'Path', 'PIL', 'array']
)
def test_predict(learn, data, form):
    path = data[0].df.image[0]
    with learn.no_bar():
        mask, ids, scores = learn.predict(form(path))
    x = torch.from_numpy(np.asarray(data[0].image(0)).copy()).permute(2, 0, 1)[None] / 255
    want = learn.model(x)[0].detach()
    assert (
        type(mask) is TensorMask and torch.allclose(scores, want, atol=1e-6) and torch.equal(ids, want.max(0).indices)
    )


def test_get_preds(learn, data):
    "Of validation in the order of the rows, of an epoch of streams, and of files"
    dls = learn.dls
    with learn.no_bar():
        preds, targets = learn.get_preds()
        of_epoch = learn.get_preds(ds_idx=0)[0]
        of_files = learn.get_preds(dl=dls.test_dl([*data[0].val.df.image]))[0]
    assert torch.equal(targets[0][1].as_subclass(torch.Tensor), torch.from_numpy(data[0].mask(5).astype(int)))
    assert len(of_epoch) == 20 and torch.equal(of_files, preds)


@pytest.mark.parametrize(
    'draw',
    [
        lambda l, p: l.dls.show_batch(),
        lambda l, p: l.dls.valid.show_batch(max_n=1),
        lambda l, p: l.dls.show_batch(unique=True),
        lambda l, p: l.dls.test_dl([p]).show_batch(),
        lambda l, p: l.show_results(),
        lambda l, p: l.show_results(ds_idx=0),
    ],
)
def test_pictures(learn, data, draw):
    import matplotlib.pyplot as plt

    plt.close('all')
    with learn.no_bar():
        draw(learn, data[0].df.image[0])
    assert len(plt.get_fignums()) == 1 and any(im for ax in plt.gcf().axes for im in ax.get_images())
    plt.close('all')


def test_titles_name_the_stream(learn):
    import matplotlib.pyplot as plt

    learn.dls.show_batch()
    assert [ax.get_title() for ax in plt.gcf().axes][:5] == ['real'] * 2 + ['pseudo'] * 3
    plt.close('all')


def test_interpretation(learn):
    with learn.no_bar():
        found = Interpretation.from_learner(learn)
        losses, at, items = found.top_losses(2, items=True)
        found.plot_top_losses(2)
        found.show_results([0, 1])
    assert sorted(at.tolist()) == [0, 1] and losses[0] >= losses[1] and all(isinstance(i, Item) for i in items)


def test_export(learn, data, tmp_path):
    "What fastai exports predicts the same"
    learn.path = tmp_path
    learn.export('learner.pkl')
    back = load_learner(tmp_path / 'learner.pkl')
    with learn.no_bar(), back.no_bar():
        a, b = (l.predict(data[0].df.image[0])[2] for l in (learn, back))
    assert torch.equal(a, b)


def test_the_block_alone(data, capsys):
    "An ordinary DataBlock: summary, DataLoaders of whole images, item transforms"
    from fastai.vision.all import Resize

    seg_block(SPACE).summary(data[0], bs=2, show_batch=True)
    assert 'TensorMask of size 32x48' in capsys.readouterr().out
    dls = (
        seg_block(SPACE, ['weighted', 'soft'], classes=True)
        .new(item_tfms=Resize(16))
        .dataloaders(data[0], bs=2, num_workers=0)
    )
    assert [(type(t), *t.shape[1:]) for t in dls.one_batch()] == [
        (TensorImage, 3, 16, 16),
        (TensorMask, 16, 16),
        (TensorConfidence, 16, 16),
        (TensorSoft, 3, 16, 16),
        (TensorStream,),
        (TensorClasses, 4),
    ]
    assert len(dls.train_ds) == 4 and len(dls.valid_ds) == 2
    with pytest.raises(ValueError, match='confidence='):
        seg_block(SPACE, 'sure')


# ---- options


@pytest.mark.parametrize(
    'wrong, named',
    [
        (dict(labels='firm'), "labels='firm'"),
        (dict(sampler='even'), "sampler='even'"),
        (dict(sampler=3), 'sampler=3'),
        (dict(weight=-1), 'weight=-1'),
        (dict(weight=float('nan')), 'weight=nan'),
        (dict(weight='1'), "weight='1'"),
        (dict(n=0), 'n=0'),
        (dict(n=2.5), 'n=2.5'),
        (dict(augment=1), 'augment=1'),
        (dict(split='validation'), 'no image of split validation'),
    ],
)
def test_wrong_stream_options_are_named(data, wrong, named):
    with pytest.raises(ValueError, match=named):
        Stream(data[0], **wrong)


@pytest.mark.parametrize(
    'wrong, named',
    [
        (dict(bs=0), 'bs='),
        (dict(bs=(2,)), 'bs=.*1 numbers for 2 streams'),
        (dict(bs=2.0), 'bs='),
        (dict(crop=0), 'crop='),
        (dict(crop=(8, 8, 8)), 'crop='),
        (dict(crop=(8.5, 8)), 'crop='),
        (dict(seed=-1), 'seed=-1'),
        (dict(seed='a'), "seed='a'"),
        (dict(num_workers=-1), 'num_workers=-1'),
        (dict(valid_bs=0.5), 'valid_bs=0.5'),
        (dict(shard=(2, 2)), 'shard='),
        (dict(valid=3), 'valid=3'),
    ],
)
def test_wrong_options_are_named(data, wrong, named):
    with pytest.raises(ValueError, match=named):
        seg_dls(Stream(data[0]), Stream(data[1]), **{'crop': 16, **wrong})


def test_streams_that_do_not_go_together(data):
    real, pseudo = data
    other = SegTable.make(pseudo.df.image, pseudo.df.label, LabelSpace([*'abcd']))
    with pytest.raises(ValueError, match='n=5 of stream pseudo'):
        seg_dls(Stream(real), Stream(pseudo, n=5))
    with pytest.raises(ValueError, match='different label spaces'):
        seg_dls(Stream(real), Stream(other))
    with pytest.raises(ValueError, match='another label space'):
        seg_dls(Stream(real), valid=other)
    with pytest.raises(ValueError, match='at least one stream'):
        seg_dls()
    with pytest.raises(ValueError, match='must be a SegTable'):
        Stream(real.df)
    with pytest.raises(TypeError, match='no option ratio'):
        seg_dls(Stream(real), ratio=2)


def test_names_and_descriptions(data):
    real, pseudo = data
    dls = seg_dls(Stream(real), Stream(real, augment=strong, weight=0.5), real, crop=16, bs=1)
    assert [s.name for s in dls.streams] == ['real', 'real 2', 'real 3']
    assert repr(dls.streams[1]) == 'Stream real 2: 4 images, strong, random, weight 0.5'
    assert (dls.space, dls.crop, dls.size, dls.seed, dls.table) == (SPACE, (16, 16), None, 0, real)
    import json

    assert json.loads(json.dumps(dls.streams[1].identity()))['augment'] == strong.to_dict()
    assert Stream(real).identity() != Stream(real, weight=2).identity()
    assert Stream(real).identity()['rows'] != Stream(pseudo).identity()['rows']


def test_default_crop(tmp_path):
    "The first image's size, at most 512 a side"
    big = table(files(tmp_path / 'big', 2, hw=(40, 600)), split=['train', 'val'])
    assert seg_dls(Stream(big)).crop == (40, 512)


def test_files_of_more_than_8_bits_keep_the_scale_of_the_table(tmp_path):
    "A file that is predicted is read as the table's images are, not by a scale of its own"
    rng, names = np.random.default_rng(0), []
    for i, top in enumerate((4095, 4000, 900)):
        a = rng.integers(0, top, (16, 24), dtype=np.uint16)
        a[0, 0] = top
        Image.fromarray(a).save(tmp_path / f'{i}.png')
        Image.fromarray(rng.integers(0, N, (16, 24), dtype=np.uint8)).save(tmp_path / f'{i}_mask.png')
        names.append(tmp_path / f'{i}')
    t = table(names, split=['train', 'train', 'val'])
    learn = learner(seg_dls(Stream(t), crop=8, bs=1))
    with learn.no_bar():
        of_file, of_table = learn.predict(t.df.image[2])[2], learn.get_preds()[0][0]
    assert t.white == 4095 and torch.equal(of_file, of_table)


def test_a_folder_labelled_by_a_model_does_not_bring_test_images_back(tmp_path):
    "Pseudo labels of a folder say train for every image; the table of the human labels knows better"
    t = scenes(n=8, n_val=4, n_test=4, size=(32, 64))
    folder = SegTable(t.df.assign(kind='pseudo', split='train', conf=''), t.space, t.remaps)
    with pytest.raises(ValueError, match=r'8 images of stream pseudo are for validation or test.*table \+ pseudo'):
        seg_dls(Stream(t), Stream(folder), crop=(32, 32), bs=2)
    few = t.keep_labels(4)
    with pytest.warns(UserWarning, match='two splits'):
        kept = (few + folder).pseudo
    assert seg_dls(Stream(few), Stream(kept), crop=(32, 32), bs=2).streams[1].rows.df.split.eq('train').all()


# Size


def test_no_table_is_described_for_each_image(tmp_path, monkeypatch):
    "fastai makes a text of all items; with a table in each, 20 000 images took minutes"
    t = table(files(tmp_path, 6), split=['train'] * 4 + ['val'] * 2)
    called = []
    monkeypatch.setattr(SegTable, '__repr__', lambda self: called.append(1) or 'table')
    seg_dls(Stream(t), Stream(t, augment=strong), crop=(16, 16), bs=2)
    assert not called


def test_images_that_are_held_out_are_refused_however_the_split_is_named(tmp_path):
    names = files(tmp_path, 3)
    few, other = table(names, split=['train', 'train', 'val']), table(names)
    for split in ('train', ['train'], ('train',)):
        with pytest.raises(ValueError, match='are for validation or test'):
            seg_dls(Stream(few), Stream(other, split=split), crop=(16, 16), bs=1)


@pytest.mark.parametrize('size', [None, 48, (24, 48)])
def test_a_predictor_of_an_exported_learner_is_the_same(data, tmp_path, size):
    table = data[0]
    dls = seg_dls(Stream(table, n=4), crop=(16, 16), bs=2, size=size)
    block = seg_block(table.space, size=size).dataloaders(table, bs=2, num_workers=0)
    for k, d in enumerate((dls, block)):
        learn = Learner(d, seg_model(len(table.space), 'test_byobnet'), SegLoss())
        learn.export(tmp_path / 'x.pkl')
        before, after = (Predictor.of(o) for o in (learn, load_learner(tmp_path / 'x.pkl')))
        assert before.size == after.size == size and before.white == after.white == table.white
        assert before.hash == after.hash


def test_normalisation_of_the_loaders_counts(data):
    "As `unet_learner` adds it"
    table = data[0]
    dls = seg_dls(Stream(table, n=4), crop=(16, 16), bs=2, size=(32, 64))
    dls.add_tfms([Normalize.from_stats((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), cuda=False)], 'after_batch')
    conv = nn.Conv2d(3, len(table.space), 3, padding=1)
    for net in (seg_model(len(table.space), 'test_byobnet'), conv):
        learn = Learner(dls, net, SegLoss())
        with learn.no_bar():
            probs, predictor = learn.get_preds()[0], Predictor.of(learn)
        rows = [i for i in range(len(table.val.real))]
        images = [table.val.real.image(i).resize((64, 32), Image.BILINEAR) for i in rows]
        found = predictor.probabilities(images, Views(flip=False)).cpu()
        assert torch.allclose(probs, found, atol=1e-3)
    predictor.copy_weights(conv)
    with learn.no_bar():
        assert torch.equal(learn.get_preds()[0], probs)


@pytest.mark.parametrize('how', ['bytes', 'array', 'tensor', 'TensorImage'])
def test_predict_uses_the_working_size_for_whatever_it_is_given(data, how):
    table = data[0]
    learn = seg_learner(seg_dls(Stream(table, n=4), crop=(16, 16), bs=2, size=(16, 32)), 'test_byobnet')
    a = np.array(table.image(0))
    x = dict(bytes=lambda: Path(table.df.image.iloc[0]).read_bytes(), array=lambda: a, tensor=lambda: torch.tensor(a),
             TensorImage=lambda: TensorImage(torch.tensor(a).permute(2, 0, 1)))[how]()
    with learn.no_bar():
        assert learn.predict(x)[1].shape == (16, 32)
        with pytest.raises(OSError, match='8-bit values'):
            learn.predict(a.astype(np.uint16)[..., 0])
