"CutMix and ClassMix: images, masks and confidences stay together, streams stay apart, and a stop changes nothing."

import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Callback, DataLoaders, Learner, nn
from selftrain_nb.augment import *
from selftrain_nb.labels import *
from selftrain_nb.mixing import *
from selftrain_nb.reading import *
from selftrain_nb.streams import *
from selftrain_nb.table import *

N = 5


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    "Two streams whose images are painted with their own mask"
    p, rng = tmp_path_factory.mktemp('mix'), np.random.default_rng(0)
    names = []
    for i in range(10):
        m = np.kron(rng.integers(0, N, (4, 6)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(m).save(p / f'{i}.mask.png')
        Image.fromarray(np.repeat(m[..., None], 3, -1)).save(p / f'{i}.png')
        Image.fromarray(255 - m).save(p / f'{i}.conf.png')
        names.append(p / f'{i}')
    space = LabelSpace([f'c{i}' for i in range(N)])

    def table(names, **kw):
        return SegTable.make([f'{n}.png' for n in names], [f'{n}.mask.png' for n in names], space, **kw)

    real = table(names[:4], split=['train'] * 3 + ['val'])
    pseudo = table(names[4:], kind='pseudo', conf=[f'{n}.conf.png' for n in names[4:]])
    plain = Augment(scale=(1, 1), flip=0.0)
    return seg_dls(
        Stream(real, n=12, augment=plain), Stream(pseudo, augment=plain, labels='weighted'), crop=(32, 48), bs=(2, 6)
    )


def ignoring(pred, mask, *more):
    return nn.functional.cross_entropy(pred, mask.long(), ignore_index=VOID)


def train(dls, cbs, epochs=1, start=0):
    from fastai.vision.all import Callback

    seen = []

    class Look(Callback):
        order = 90

        def before_batch(self):
            seen.append([t.clone() for t in (*self.xb, *self.yb)]) if self.training else None

    torch.manual_seed(0)
    dls.train.epoch = start
    learn = Learner(dls, nn.Conv2d(3, N, 1), loss_func=ignoring, cbs=[*cbs, Look()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, start_epoch=start)
    return seen


@pytest.mark.parametrize('mix', [CutMix(p=1.0), ClassMix(p=1.0)], ids=['CutMix', 'ClassMix'])
def test_everything_moves_together(dls, mix):
    "Painted images: image, mask and confidence say the same at every pixel, before and after"
    plain, mixed = train(dls, []), train(dls, [mix])
    changed = 0
    for a, b in zip(plain, mixed):
        x, mask, conf, stream = b
        ids = (x[:, 0] * 255).round().long().as_subclass(torch.Tensor)
        mask, conf = mask.as_subclass(torch.Tensor), conf.as_subclass(torch.Tensor).long()
        assert (ids == mask).all()
        assert (conf[stream == 1] == 255 - mask[stream == 1]).all() and (conf[stream == 0] == 255).all()
        assert [type(t) for t in a] == [type(t) for t in b] and [t.dtype for t in a] == [t.dtype for t in b]
        assert torch.equal(a[0][stream == 0], b[0][stream == 0])  # the first stream stays as it is
        changed += (a[1] != b[1]).flatten(1).any(1).sum().item()
    assert changed >= 20  # of 36; a partner can be the same image


def test_an_interrupted_training_mixes_the_same(dls):
    whole, rest = train(dls, [CutMix(), ClassMix()], epochs=3), train(dls, [CutMix(), ClassMix()], epochs=3, start=2)
    assert len(whole) == 3 * len(rest)
    for a, b in zip(whole[-len(rest) :], rest):
        assert all(torch.equal(s, t) for s, t in zip(a, b))


def test_epochs_and_batches_differ(dls):
    seen = train(dls, [CutMix(p=1.0)], epochs=2)
    assert len({hash(b[0].numpy().tobytes()) for b in seen}) == len(seen)


def test_validation_is_not_mixed():
    data = [(torch.full((3, 8, 8), i / 8), torch.full((8, 8), i)) for i in range(4)]
    dls, seen = DataLoaders(*[torch.utils.data.DataLoader(data, batch_size=4)] * 2), []

    class Look(Callback):
        order, run_train = 90, False

        def before_batch(self):
            seen.append(self.yb[0].clone())

    learn = Learner(dls, nn.Conv2d(3, 8, 1), loss_func=ignoring, cbs=[CutMix(p=1.0), Look()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert len(seen) == 1 and torch.equal(seen[0].cpu(), torch.stack([y for _, y in data]))


@pytest.mark.parametrize('streams, mixed', [(None, [1]), (0, [0]), ('pseudo', [1]), ([0, 'pseudo'], [0, 1])])
def test_which_streams(dls, streams, mixed):
    plain, found = train(dls, []), train(dls, [CutMix(p=1.0, streams=streams)])
    assert {int(k) for a, b in zip(plain, found) for k in a[3][(a[1] != b[1]).flatten(1).any(1)]} == {*mixed}


def test_any_learner_with_images_and_masks():
    "No streams, no seed: a plain DataLoader of tensors is one stream"
    data = [(torch.full((3, 8, 8), i / 8), torch.full((8, 8), i)) for i in range(4)]
    dls = DataLoaders(*[torch.utils.data.DataLoader(data, batch_size=4)] * 2)
    x, y = train_plain(dls, CutMix(p=1.0))
    assert (x[:, 0] * 8 == y).all() and len(y[0].unique()) == 2


def train_plain(dls, mix):
    learn = Learner(dls, nn.Conv2d(3, 8, 1), loss_func=ignoring, cbs=mix)
    learn.xb, learn.yb = [(t,) for t in next(iter(dls.train))]
    learn.epoch = learn.iter = 0
    mix.before_fit()
    mix.before_batch()
    return *learn.xb, *learn.yb


def test_soft_labels_and_classes():
    batch = (
        torch.rand(4, 3, 8, 8),
        torch.arange(4)[:, None, None].expand(4, 8, 8),
        TensorSoft(torch.rand(4, 3, 8, 8).mul(255).byte()),
        TensorStream(torch.zeros(4, dtype=torch.long)),
        TensorClasses(torch.tensor([[1, 0], [1, 1], [1, 1], [1, 1]]).bool()),
    )
    partner, area = torch.tensor([1, 0, 3, 2]), torch.zeros(4, 8, 8, dtype=torch.bool)
    area[:2, :, :3] = True
    x, y, soft, stream, classes = paste(batch, partner, area)
    assert torch.equal(soft[0, :, :, :3], batch[2][1, :, :, :3]) and torch.equal(
        soft[0, :, :, 3:], batch[2][0, :, :, 3:]
    )
    assert classes.tolist() == [
        [True, False],
        [True, False],
        [True, True],
        [True, True],
    ]  # of what was mixed: both have to know it
    assert type(soft) is TensorSoft and type(classes) is TensorClasses and torch.equal(stream, batch[3])


def test_void_is_not_pasted_by_class():
    mask = torch.full((2, 4, 4), VOID)
    assert not class_area(mask, np.random.default_rng(0)).any()  # nothing but void
    mask[:, 0] = 3
    assert class_area(mask, np.random.default_rng(0)).sum() == 8


@pytest.mark.parametrize(
    'wrong, named',
    [
        (lambda: CutMix(p=2), 'p=2'),
        (lambda: CutMix(area=(0, 0.5)), 'area='),
        (lambda: CutMix(area=(0.5, 1.5)), 'area='),
        (lambda: ClassMix(p=-1), 'p=-1'),
    ],
)
def test_wrong_values_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        wrong()


@pytest.mark.parametrize('streams', ['unlabelled', 2, [-1]])
def test_streams_that_are_not_there(dls, streams):
    with pytest.raises(ValueError, match=r'0 \(real\), 1 \(pseudo\)'):
        train(dls, [CutMix(streams=streams)])


def test_a_batch_of_something_else():
    dls = DataLoaders(*[torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 1)] * 4, batch_size=2)] * 2)
    with pytest.raises(
        ValueError, match=r'ClassMix mixes images \(B, 3, H, W\) and masks \(B, H, W\) of class ids, not Tensor'
    ):
        train_plain(dls, ClassMix())


def test_identity_tells_settings_apart():
    assert CutMix(0.5).identity != CutMix(0.6).identity != ClassMix(0.6).identity


@pytest.mark.parametrize('kind', [CutMix, ClassMix])
def test_parts_across_streams(dls, kind):
    "Images fit their masks, the first stream stays as it is, and the second one gets parts of it"
    plain, mixed = train(dls, []), train(dls, [kind(1.0, across=True)])
    first, from_first = [b[0][:2].as_subclass(torch.Tensor) for b in plain], 0
    for (x, y, *_), (x2, y2, *_), own in zip(plain, mixed, first):
        assert torch.equal((x2[:, 0] * 255).round().long(), y2.as_subclass(torch.Tensor).long())
        assert torch.equal(x2[:2], own)
        for k in range(2, 8):
            changed = (y2[k] != y[k]).as_subclass(torch.Tensor)
            from_first += any((y2[k][changed] == y[j][changed]).all() and changed.any() for j in (0, 1))
    assert from_first > 3
    same = train(dls, [kind(1.0)])
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(mixed, same))
