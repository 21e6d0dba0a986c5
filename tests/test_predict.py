"Prediction: views and windows against brute force, files, damaged input, and what changes the output of a network."

import json, pickle, warnings
from pathlib import Path

import numpy as np, pytest, torch, torch.nn as nn, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image

from selftrain_nb.labels import LabelSpace, VOID
from selftrain_nb.metrics import ConfusionMatrix
from selftrain_nb.models import SegModel, save_tensors, seg_model
from selftrain_nb.outputs import AdjustedModel, EnsembleModel, TemperedModel, model_probabilities
from selftrain_nb.predict import Predictor, Views, labelled_batches, show_predictions, size_batches
from selftrain_nb.table import SegTable
from selftrain_nb.views import _starts, average, evaluating, predict_views, safe_log

SPACE = LabelSpace(['road', 'sky', 'car'])
ONE = Views(flip=False)
few = settings(max_examples=25, deadline=None)


# Small things that networks see


def picture(seed=0, h=20, w=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def tensor(*images):
    return torch.stack([torch.from_numpy(np.array(im)) for im in images]).permute(0, 3, 1, 2) / 255


def pointwise(n=3, seed=0):
    "A network that looks at single pixels"
    torch.manual_seed(seed)
    net = nn.Conv2d(3, n, 1)
    net.weight.data *= 10
    return net


def local(n=3, seed=0):
    "A network that looks at neighbours, too, and has a left and a right"
    torch.manual_seed(seed)
    return nn.Conv2d(3, n, 3, padding=1).eval()


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return Predictor(
        seg_model(3, 'test_byobnet'), SPACE, encoder='test_byobnet', arch='fpn', class_weights=[0.5, 1.0, 4.0]
    )


def same(a, b, images=(picture(),), views=Views()):
    assert torch.equal(a.probabilities(list(images), views), b.probabilities(list(images), views))


def data(folder, sizes=((20, 30),) * 4, **kwargs):
    "A table of random images and labels of these sizes"
    folder.mkdir(parents=True, exist_ok=True)
    rng, images, labels = np.random.default_rng(0), [], []
    for i, (h, w) in enumerate(sizes):
        images.append(folder / f'i{i}.png')
        labels.append(folder / f'l{i}.png')
        picture(i, h, w).save(images[-1])
        mask = rng.choice([0, 1, 2, VOID], (h, w)).astype(np.uint8)
        Image.fromarray(mask).save(labels[-1])
    return SegTable.make(images, labels, SPACE, split='val', **kwargs)


# Views


@few
@given(st.booleans(), st.lists(st.sampled_from([0.5, 0.8, 1.0, 1.5]), min_size=1, max_size=3), st.integers(0, 99))
def test_views_by_hand(flip, scales, seed):
    net, im = local(), picture(seed, 12, 17)
    x, total = tensor(im), []
    for s in scales:
        view = F.interpolate(x, (round(12 * s), round(17 * s)), mode='bilinear') if s != 1 else x
        seen = [net(view)] + ([net(view.flip(-1)).flip(-1)] if flip else [])
        total += [(F.interpolate(y, (12, 17), mode='bilinear') if s != 1 else y).softmax(1) for y in seen]
    by_hand = torch.stack(total).mean(0)
    found = predict_views(net, [im], None, Views(flip, tuple(scales)))
    assert torch.allclose(found, by_hand, atol=1e-6)


def test_mirroring_can_be_switched_off(tmp_path):
    "A network that must never see a mirror image, in every function that predicts"

    class Sided(nn.Module):
        def forward(self, x):
            assert x[..., 0].mean() < x[..., -1].mean(), 'a mirror image'
            return torch.cat([x[:, :2], 1 - x[:, :1]], 1)

    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 30)[None, :, None], (20, 1, 3)).astype(np.uint8))
    t = data(tmp_path)
    for f in t.df.image:
        ramp.save(f)
    p = Predictor(Sided(), SPACE)
    p.probabilities([ramp], ONE), p.predict(ramp, ONE), p.evaluate(t), p.evaluate(t, ONE), p.show(t, [0], ONE)
    with pytest.raises(AssertionError, match='mirror image'):
        p.predict(ramp)


@few
@given(st.integers(1, 200), st.integers(1, 100), st.floats(0, 0.9))
def test_windows_cover_and_overlap(n, w, overlap):
    starts, w = _starts(n, w, overlap), min(n, w)
    assert starts[0] == 0 and starts[-1] + w == n
    for a, b in zip(starts, starts[1:]):
        assert a < b and a + w - b >= int(w * overlap) - 1


@few
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), st.floats(0, 0.8))
def test_windows_of_a_pointwise_network_change_nothing(h, w, wh, ww, overlap):
    "Also for windows that are larger than the image, and of one pixel"
    net, im = pointwise(), picture(h * 41 + w, h, w)
    found = predict_views(net, [im], None, Views(False, window=(wh, ww), overlap=overlap))
    assert torch.allclose(found, net(tensor(im)).softmax(1), atol=1e-5)


def test_saturated_networks_stay_finite():
    net = pointwise()
    net.weight.data *= 1e6
    for v in (Views(), Views(scales=(0.5,), window=(8, 8))):
        assert predict_views(net, [picture()], None, v).isfinite().all()


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(scales=()), 'scales'),
        (dict(scales=(0,)), 'scales'),
        (dict(scales=(-1, 1)), 'scales'),
        (dict(scales=(float('nan'),)), 'scales'),
        (dict(window=0), 'window'),
        (dict(window=(8, -1)), 'window'),
        (dict(overlap=1), 'overlap'),
        (dict(overlap=-0.1), 'overlap'),
    ],
)
def test_views_out_of_range(bad, says):
    with pytest.raises(ValueError, match=f'^{says}='):
        Views(**bad)


def test_spellings_of_views():
    assert Views(True, [1], None) == Views() and hash(Views(window=[8, 8])) == hash(Views(window=8))
    assert json.loads(json.dumps(Views(window=8).to_dict())) == Views(window=(8, 8)).to_dict()


# Sizes


class Strict(nn.Module):
    "A network that demands multiples, as a vision transformer does"

    def __init__(self, m):
        super().__init__()
        self.m, self.head = m, nn.Conv2d(3, 3, 1)

    def forward(self, x):
        assert x.shape[-2] % self.m == 0 and x.shape[-1] % self.m == 0
        return F.interpolate(self.head(F.avg_pool2d(x, self.m)), scale_factor=self.m)


@few
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([14, 16, 32]), st.sampled_from([None, 40, (30, 50)]))
def test_any_size_with_any_multiple(h, w, m, size):
    p = Predictor(SegModel(Strict(m), multiple=m), SPACE, size)
    for v in (Views(scales=(1, 0.6)), Views(window=(20, 25))):
        assert p.probabilities([picture(0, h, w)], v).shape == (1, 3, h, w)


@pytest.mark.parametrize('hw', [(1, 1), (3, 50), (32, 32), (33, 47)])
def test_small_and_odd_images(network, hw):
    p = network.probabilities([picture(0, *hw)])
    assert p.shape == (1, 3, *hw) and torch.allclose(p.sum(1), torch.ones(1, *hw), atol=1e-5)


@pytest.mark.parametrize('window', [None, (32, 40)])
def test_a_vision_transformer(window, tmp_path):
    torch.manual_seed(0)
    p = Predictor(seg_model(3, 'test_vit', 'dpt'), SPACE, encoder='test_vit', arch='dpt')
    assert p.probabilities([picture(0, 33, 50)], Views(window=window)).shape == (1, 3, 33, 50)
    p.save(tmp_path / 'vit.safetensors')
    same(p, Predictor.load(tmp_path / 'vit.safetensors', 'cpu'))


def test_images_of_two_sizes_are_not_mixed(network):
    with pytest.raises(ValueError, match='one size'):
        network.probabilities([picture(), picture(0, 21, 30)])
    with pytest.raises(ValueError, match='one size'):
        network.probabilities([])


# Which images


def test_all_forms_of_an_image(network, tmp_path):
    im = picture()
    im.save(tmp_path / 'a.png')
    ids = network.predict(im)
    assert ids.dtype == np.uint8 and ids.shape == (20, 30)
    for form in (tmp_path / 'a.png', str(tmp_path / 'a.png'), np.array(im)):
        assert (network.predict(form) == ids).all()
    grey = im.convert('L')
    assert (network.predict(grey) == network.predict(grey.convert('RGB'))).all()


def test_a_list_keeps_its_order(network, tmp_path):
    images = [picture(i, *hw) for i, hw in enumerate([(20, 30), (9, 40), (20, 30), (9, 40), (5, 5), (20, 30)])]
    for bs in (1, 2, 8):
        for im, ids in zip(images, network.predict(images, bs=bs)):
            assert (ids == network.predict(im)).all()
    assert network.predict([]) == []


def test_a_file_is_upright(network, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 20, 30).save(tmp_path / 'turned.png', exif=exif)
    assert network.predict(tmp_path / 'turned.png').shape == (30, 20)


def test_one_scale_for_deep_images(tmp_path):
    "12 bits: the value of white comes from the training, or from the table"
    a = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    Image.fromarray(a).save(tmp_path / 'a.png')
    eight = Image.fromarray(np.round(a * (255 / 4095)).astype(np.uint8)).convert('RGB')
    net = pointwise()
    ids = Predictor(net, SPACE).predict(eight)
    assert (Predictor(net, SPACE, white=4095).predict(tmp_path / 'a.png') == ids).all()
    t = SegTable.make([tmp_path / 'a.png'], [None], SPACE)
    assert (Predictor(net, SPACE).predict(t)[0] == ids).all()
    dark = Predictor(net, SPACE, white=65535).predict(t)[0]
    assert (dark == Predictor(net, SPACE).predict(Image.fromarray(np.round(a * (255 / 65535)).astype(np.uint8)))).all()
    with pytest.raises(ValueError, match='mode I;16'):
        Predictor(net, SPACE).predict(Image.open(tmp_path / 'a.png'))


def test_missing_and_damaged_files_are_named(network, tmp_path):
    (tmp_path / 'torn.png').write_bytes(b'\x89PNG\r\n')
    for name in ('torn.png', 'none.png'):
        with pytest.raises(OSError, match=name):
            network.predict([picture(), tmp_path / name])


# The network is left as it was


def test_modes_and_statistics_are_kept():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3))
    net.train()
    net[3].eval()  # frozen, as fastai's BnFreeze does
    before = {k: v.clone() for k, v in net.state_dict().items()}
    a, b = (Predictor(net, SPACE).probabilities([picture()]) for _ in range(2))
    assert torch.equal(a, b), 'dropout was on'
    assert [m.training for m in net] == [True, True, True, False] and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(KeyError):
        with evaluating(net):
            raise KeyError
    assert net.training and not net[3].training


def test_no_gradients(network):
    assert not network.adjusted().probabilities([picture()]).requires_grad


def test_broken_weights_predict_nothing():
    net = pointwise()
    net.bias.data[1] = float('nan')
    for p in (
        Predictor(net, SPACE),
        Predictor(net, SPACE).tempered(2.0),
        Predictor.ensemble([Predictor(net, SPACE)] * 2),
    ):
        with pytest.raises(FloatingPointError, match='not finite'):
            p.predict(picture())


# Evaluation


def brute_force(net, t, rows):
    cm = ConfusionMatrix(3)
    for i in rows:
        cm.update(net(tensor(t.image(i))).argmax(1)[0].numpy(), t.mask(i))
    return cm.matrix


def test_evaluate_by_hand(tmp_path):
    t, net = data(tmp_path, [(20, 30), (9, 12), (20, 30), (31, 7), (9, 12)]), local()
    for bs in (1, 2, 8):
        assert (Predictor(net, SPACE).evaluate(t, bs=bs).cm.matrix == brute_force(net, t, range(5))).all()


@pytest.mark.parametrize('broken', ['i1', 'l1', 'l1 with unknown ids', 'l1 of another size', 'l1 as text'])
def test_what_cannot_be_read_is_left_out(tmp_path, broken):
    "It is counted and named, and no other image takes its place"
    t, net = data(tmp_path), local()
    path = tmp_path / f'{broken[:2]}.png'
    if 'unknown' in broken:
        Image.fromarray(np.full((20, 30), 77, np.uint8)).save(path)
    elif 'size' in broken:
        Image.fromarray(np.zeros((20, 31), np.uint8)).save(path)
    else:
        path.write_bytes(b'hello' if 'text' in broken else b'')
    with pytest.warns(UserWarning, match=f'1 of 4 images .*{path.name}'):
        scores = Predictor(net, SPACE).evaluate(t, bs=2)
    assert (scores.cm.matrix == brute_force(net, t, [0, 2, 3])).all()
    with pytest.raises((OSError, ValueError), match=path.name):
        Predictor(net, SPACE).evaluate(t, strict=True)


def test_nothing_left_to_evaluate(tmp_path, network):
    t = data(tmp_path)
    for f in t.df.image:
        Path(f).write_bytes(b'')
    with pytest.raises(ValueError, match='no readable image with a label in 4 rows.*i0.png'):
        network.evaluate(t)
    with pytest.raises(ValueError, match='no readable image with a truth'):
        network.evaluate(t, col='truth')
    with pytest.raises(ValueError, match='no readable image'):
        network.evaluate(t[:0])


def test_rows_without_a_label_are_passed_over(tmp_path):
    t, net = data(tmp_path), local()
    t.df.loc[1, ['label', 'kind']] = '', 'none'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert (Predictor(net, SPACE).evaluate(t).cm.matrix == brute_force(net, t, [0, 2, 3])).all()
    assert [[r for r, _, _ in b] for b in labelled_batches(t, 2)] == [[0, 2], [3]]


def test_hidden_labels(tmp_path, network):
    t = data(tmp_path)
    hidden = SegTable(t.df.assign(truth=t.df.label, label='', kind='none'), t.space, t.remaps)
    assert (network.evaluate(hidden, col='truth').cm.matrix == network.evaluate(t).cm.matrix).all()


def test_a_table_of_other_classes(tmp_path, network):
    t = data(tmp_path)
    with pytest.raises(ValueError, match='Predictor.remapped'):
        network.evaluate(SegTable(t.df, LabelSpace([*'abc']), t.remaps))


def test_batches_of_equal_size(tmp_path):
    t = data(tmp_path, [(20, 30), (9, 12), (20, 30), (20, 30), (9, 12)])
    assert size_batches(t, 2) == [[0, 2], [3], [1, 4]]
    Path(t.df.image[2]).write_bytes(b'')
    assert size_batches(t, 2) == [[0, 3], [1, 4], [2]]


def test_pictures(tmp_path, network):
    t = data(tmp_path)
    t.df.loc[1, ['label', 'kind']] = '', 'none'
    assert show_predictions(dict(a=network, b=network), t, [0, 1]).shape == (2, 4)
    assert network.show(t[2:], [1]).shape == (1, 3)


# What changes the output


class Fixed(nn.Module):
    "The same probabilities for every pixel"

    def __init__(self, p):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=torch.float32))

    def forward(self, x):
        return self.p.log()[None, :, None, None].expand(len(x), -1, *x.shape[-2:])


def says(p):
    return p.probabilities([picture(0, 2, 3)])[0, :, 0, 0].tolist()


@few
@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
    st.floats(0, 2),
)
def test_logit_adjustment_by_hand(p, w, tau):
    made = Predictor(Fixed(np.divide(p, sum(p)).tolist()), SPACE, class_weights=w)
    by_hand = np.array(p) / np.array(w) ** tau
    assert says(made.adjusted(tau)) == pytest.approx(by_hand / by_hand.sum(), rel=1e-3)
    once, rest = made.adjusted(), made.adjusted(tau).adjusted()
    assert says(rest) == pytest.approx(says(once), rel=1e-3) and says(once.adjusted()) == pytest.approx(
        says(once), rel=1e-5
    )


class To:
    "As much of a `Mapping` as a predictor needs"

    def __init__(self, target, to, source=SPACE):
        self.source, self.target, self.lut = source, target, np.full(256, VOID, np.uint8)
        self.lut[: len(to)] = to


def test_other_classes_by_hand():
    p = Predictor(Fixed([0.5, 0.3, 0.2]), SPACE)
    ab = LabelSpace([*'ab'])
    assert says(p.remapped(To(ab, [1, 0, 1]))) == pytest.approx([0.3, 0.7], rel=1e-4)
    assert says(p.remapped(To(ab, [1, 1, 1]))) == pytest.approx([0, 1], abs=1e-6)


def test_a_pixel_that_is_void_in_the_target_is_not_confident():
    "Sure of a class without a counterpart must not become sure of another one"
    p = Predictor(Fixed([0.01, 0.98, 0.01]), SPACE).remapped(To(LabelSpace([*'abc']), [0, VOID, 1]))
    assert says(p) == pytest.approx([0.01 + 0.98 / 3, 0.01 + 0.98 / 3, 0.98 / 3], rel=1e-3)


def test_a_mapping_from_other_classes(network):
    with pytest.raises(ValueError, match='the mapping is from'):
        network.remapped(To(SPACE, [0, 1, 2], LabelSpace([*'abc'])))
    with pytest.raises(ValueError, match='are not known'):
        network.remapped(To(SPACE, [0, 1, 2])).adjusted()


@pytest.mark.parametrize('t', [0, -1, float('nan'), float('inf')])
def test_temperatures_out_of_range(network, t):
    with pytest.raises(ValueError, match='temperature='):
        network.tempered(t)


def test_changes_come_after_the_average():
    "A temperature fitted to averaged probabilities must be applied to averaged probabilities"
    p, views, im = Predictor(local(), SPACE), Views(scales=(1, 0.5)), picture()
    mean = p.probabilities([im], views)
    by_hand = mean ** (1 / 2.5) / (mean ** (1 / 2.5)).sum(1, keepdim=True)
    assert torch.allclose(p.tempered(2.5).probabilities([im], views), by_hand, atol=1e-5)
    both = Predictor.ensemble([p, Predictor(local(seed=1), SPACE)])
    mean = both.probabilities([im], views)
    by_hand = mean**0.5 / (mean**0.5).sum(1, keepdim=True)
    assert torch.allclose(both.tempered(2.0).probabilities([im], views), by_hand, atol=1e-5)


def test_modules_as_networks_for_one_view():
    net, x = local(), tensor(picture())
    stack = TemperedModel(AdjustedModel(net, [0.0, 1.0, 2.0]), 3.0)
    assert torch.allclose(stack(x).softmax(1), model_probabilities(stack, [picture()], None, ONE), atol=1e-5)
    both = EnsembleModel([net, local(seed=1)])
    assert torch.allclose(both(x).exp(), model_probabilities(both, [picture()], None, ONE), atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members(network):
    a, b = Predictor(local(), SPACE, size=(10, 15)), network.tempered(3.0)
    im = picture()
    by_hand = (a.probabilities([im]) + b.probabilities([im])) / 2
    assert torch.allclose(Predictor.of([a, b]).probabilities([im]), by_hand, atol=1e-6)
    assert Predictor.of([a]) is a


def test_what_is_no_ensemble(network):
    other = Predictor(local(), LabelSpace([*'abc']))
    with pytest.raises(ValueError, match='the same classes'):
        Predictor.of([network, other])
    with pytest.raises(ValueError, match='the same white level'):
        Predictor.of([network, Predictor(local(), SPACE, white=4095)])
    with pytest.raises(ValueError, match='at least one'):
        Predictor.of([])
    for x in (None, 3, local()):
        with pytest.raises(TypeError, match='Predictor, a Learner, a file'):
            Predictor.of(x)


def test_the_mean_of_nothing_changes_no_member():
    ts = [torch.zeros(2), torch.ones(2)]
    assert torch.equal(average(t.clone() for t in ts), torch.full((2,), 0.5))
    assert safe_log(torch.tensor([0.0, 1.0])).isfinite().all()


# Files

CHANGES = dict(
    adjusted=lambda p: p.adjusted(0.5),
    tempered=lambda p: p.tempered(1.7),
    remapped=lambda p: p.remapped(
        To(LabelSpace([f'x{len(p.space)}', *p.space.names]), range(1, len(p.space) + 1), p.space)
    ),
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from(['tempered', 'remapped', 'adjusted']), max_size=3), st.sampled_from([None, 24, (16, 40)])
)
def test_a_file_gives_the_same_predictor(tmp_path_factory, network, changes, size):
    path = tmp_path_factory.mktemp('f') / 'p.safetensors'
    p = Predictor(network.model, SPACE, size, 'test_byobnet', 'fpn', network.class_weights, 4095)
    for c in sorted(changes):
        p = CHANGES[c](p)
    p.save(path)
    q = Predictor.load(path, 'cpu')
    same(p, q)
    assert p.hash == q.hash and p.space.names == q.space.names and repr(p) == repr(q)
    assert (q.size, q.white, q.encoder, q.arch) == (size, 4095, 'test_byobnet', 'fpn')
    if p.class_weights is not None:
        assert torch.equal(p.class_weights, q.class_weights)


def test_nothing_is_lost_with_unusual_networks(tmp_path):
    torch.manual_seed(0)
    p = Predictor(
        seg_model(3, 'test_byobnet', 'unet', light=False, bf16=True),
        SPACE,
        encoder='test_byobnet',
        arch='unet',
        model_kwargs=dict(light=False),
    )
    p.save(tmp_path / 'p.safetensors')
    q = Predictor.load(tmp_path / 'p.safetensors', 'cpu')
    assert q.model.bf16 and q.model_kwargs == dict(light=False)
    same(p, q)


def test_the_normalisation_is_that_of_the_file(tmp_path):
    "Not ImageNet's for all, and not what the encoder has in another version of timm"
    torch.manual_seed(0)
    net = seg_model(3, 'test_byobnet')
    other = SegModel(net.net, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    Predictor(other, SPACE, encoder='test_byobnet', arch='fpn').save(tmp_path / 'p.safetensors')
    q = Predictor.load(tmp_path / 'p.safetensors', 'cpu')
    assert q.model.mean.flatten().tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    ) and q.model.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    x = tensor(picture(0, 32, 64))
    assert torch.allclose(q.model.eval()(x), net.net.eval()((x - other.mean) / other.std), atol=1e-5)


def test_a_network_of_ones_own(tmp_path):
    p = Predictor(SegModel(local(), multiple=1), SPACE).tempered(2.0)
    p.save(tmp_path / 'p.safetensors')
    with pytest.raises(ValueError, match=r'p.safetensors.*network of your own.*model='):
        Predictor.load(tmp_path / 'p.safetensors')
    for own in (local(seed=5), SegModel(local(seed=6))):
        q = Predictor.load(tmp_path / 'p.safetensors', 'cpu', model=own)
        same(p, q)
        assert p.hash == q.hash
    with pytest.raises(ValueError, match='p.safetensors'):
        Predictor.load(tmp_path / 'p.safetensors', model=pointwise())


def test_an_ensemble_has_no_file(tmp_path, network):
    for p in (Predictor.ensemble([network, network]), Predictor.ensemble([network, network]).tempered(2.0)):
        with pytest.raises(ValueError, match='save each'):
            p.save(tmp_path / 'p.safetensors')
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.999))
def test_torn_files(tmp_path_factory, network, share):
    path = tmp_path_factory.mktemp('f') / 'torn.safetensors'
    network.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match='torn.safetensors'):
        Predictor.load(path)


def test_foreign_files(tmp_path, network):
    network.save(tmp_path / 'p.safetensors')
    good = network.describe()

    def load(match, state=None, **notes):
        save_tensors(tmp_path / 'x.safetensors', network.network.state_dict() if state is None else state, **notes)
        with pytest.raises(ValueError, match=f'x.safetensors.*{match}'):
            Predictor.load(tmp_path / 'x.safetensors')

    load('not a file of Predictor.save')
    load('not a file of Predictor.save', predictor='hello')
    load('not a file of Predictor.save', predictor=dict(good, format='selftrain_nb.Predictor 2'))
    load('damaged', predictor={k: v for k, v in good.items() if k != 'space'})
    load('damaged', predictor=dict(good, outputs=[['Evil', {}]]))
    load('damaged', predictor=dict(good, network=None))
    load('damaged', predictor=dict(good, network=dict(good['network'], kwargs=dict(pretrained=True))))
    load('', predictor=dict(good, network=dict(good['network'], classes=4)))
    load('', predictor=dict(good, network=dict(good['network'], encoder='no_such_net')))
    load('', predictor=dict(good, space=dict(good['space'], colours=[[0, 0, 0]])))
    load('', state=dict(x=torch.ones(1)), predictor=good)
    with pytest.raises(FileNotFoundError, match='no.safetensors'):
        Predictor.load(tmp_path / 'no.safetensors')
    with pytest.raises(OSError, match=tmp_path.name):
        Predictor.load(tmp_path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    for name, write in (
        ('a.pkl', lambda f: f.write_bytes(pickle.dumps(Bomb(tmp_path / 'gone off')))),
        ('b.pth', lambda f: torch.save(Bomb(tmp_path / 'gone off'), f)),
    ):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            Predictor.load(tmp_path / name)
    assert not (tmp_path / 'gone off').exists()


def test_a_path_is_a_predictor(tmp_path, network):
    network.save(tmp_path / 'p.safetensors')
    assert (
        Predictor.of(tmp_path / 'p.safetensors').hash
        == Predictor.of(str(tmp_path / 'p.safetensors')).hash
        == network.hash
    )
    assert Predictor.of(network) is network


# Names and weights


def test_the_hash_tells_predictors_apart():
    def make(seed=0, space=SPACE, mean=(0.5,) * 3, multiple=4, **kw):
        return Predictor(SegModel(local(seed=seed), mean, multiple=multiple), space, **kw)

    p = make()
    others = [
        make(seed=1),
        make(mean=(0.5, 0.5, 0.4)),
        make(multiple=8),
        make(space=LabelSpace([*'abc'])),
        p.tempered(2.0),
        p.tempered(3.0),
        make(class_weights=[1, 2, 3]).adjusted(),
        p.remapped(To(SPACE, [0, 2, 1])),
        p.remapped(To(SPACE, [0, 1, 2])),
        Predictor.ensemble([p, p]),
        Predictor.ensemble([p, make(size=16)]),
    ]
    names = [x.hash for x in [p, *others]]
    assert len(set(names)) == len(names) and all(len(n) == 12 and int(n, 16) >= 0 for n in names)
    assert p.hash == make().hash == make(encoder='x').hash


def test_one_changed_weight_changes_the_hash(network):
    before, w = network.hash, next(iter(network.model.parameters()))
    with torch.no_grad():
        w[0, 0, 0, 0] += 1e-3
    assert network.hash != before
    with torch.no_grad():
        w[0, 0, 0, 0] -= 1e-3


def test_copies_and_untrained_networks(network):
    space = LabelSpace([*'abcd'])
    torch.manual_seed(1)
    new = network.tempered(2.0).untrained(space)
    assert new.space == space and new.class_weights is None and new.probabilities([picture()]).shape[1] == 4
    torch.manual_seed(1)
    assert network.untrained(space).hash == new.hash, 'random weights come from the generator of torch'
    with pytest.raises(ValueError, match='another network'):
        network.copy_weights(new.model)
    fresh = network.untrained()
    assert network.adjusted().copy_weights(fresh.model) is fresh.model and fresh.hash == network.hash
    with torch.no_grad():
        next(fresh.model.parameters()).add_(1)
    assert fresh.hash != network.hash, 'a copy shares nothing'


def test_what_is_no_network():
    with pytest.raises(TypeError, match='must be an nn.Module'):
        Predictor('resnet18', SPACE)


# Learners


def test_a_plain_fastai_learner(tmp_path):
    "Its classes and its normalisation come from its DataLoaders"
    from fastai.vision.all import DataBlock, ImageBlock, Learner, MaskBlock, Normalize, Resize

    t = data(tmp_path)
    for f in t.df.label:
        Image.fromarray(np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8)).save(f)
    block = DataBlock(
        (ImageBlock, MaskBlock(SPACE.names)),
        get_x=lambda i: t.df.image[i],
        get_y=lambda i: t.df.label[i],
        batch_tfms=Normalize.from_stats((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), cuda=False),
    )
    dls = block.dataloaders(range(4), bs=2, num_workers=0, device='cpu')
    learn = Learner(dls, local(), loss_func=nn.CrossEntropyLoss())
    p = Predictor.of(learn)
    small = block.new(item_tfms=Resize((10, 16))).dataloaders(range(4), bs=2, num_workers=0, device='cpu')
    assert Predictor.of(Learner(small, local(), loss_func=nn.CrossEntropyLoss())).size == (10, 16)
    assert p.space.names == SPACE.names and p.size is None and p.class_weights is None
    with learn.no_bar():
        logits = learn.get_preds(dl=dls.test_dl(list(range(4))), act=lambda x: x)[0]
    seen = torch.cat([p.probabilities([t.image(i)], ONE) for i in range(4)])
    assert torch.allclose(seen, logits.as_subclass(torch.Tensor).softmax(1), atol=1e-5)


def test_our_own_learner(tmp_path):
    from selftrain_nb.streams import Stream, seg_dls
    from selftrain_nb.training import seg_learner

    t = data(tmp_path)
    t.df.loc[[0, 1], 'split'] = 'train'
    dls = seg_dls(Stream(t, n=2), crop=(20, 30), bs=2, device='cpu')
    p = Predictor.of(seg_learner(dls, 'test_byobnet'))
    assert (p.encoder, p.arch, p.size, p.white, p.space) == ('test_byobnet', 'fpn', None, None, SPACE)
    assert len(p.class_weights) == 3 and (p.class_weights != 1).any()
    plain = Predictor.of(seg_learner(dls, 'test_byobnet', weight_power=0))
    assert says(plain.adjusted()) == pytest.approx(says(plain), rel=1e-4), 'trained without weights: nothing to adjust'
    p.save(tmp_path / 'p.safetensors')
    same(p, Predictor.load(tmp_path / 'p.safetensors', 'cpu'))
    own = Predictor.of(seg_learner(dls, local()))
    assert own.encoder == '' and own.predict(t.image(0)).shape == (20, 30)
    learn = seg_learner(dls, 'test_byobnet')
    with learn.no_bar(), learn.no_logging():
        probs, _ = learn.get_preds(ds_idx=1)
    seen = torch.cat([Predictor.of(learn).probabilities([t.image(i)], ONE) for i in (2, 3)])
    assert torch.allclose(seen, probs.as_subclass(torch.Tensor), atol=1e-5), 'as fastai predicts'


def test_a_learner_without_names_of_its_classes():
    from fastai.vision.all import DataLoaders, Learner

    dl = torch.utils.data.DataLoader([(torch.zeros(3, 4, 4), torch.zeros(4, 4))])
    with pytest.raises(ValueError, match=r'use Predictor\(model, space\)'):
        Predictor.of(Learner(DataLoaders(dl, dl), local(), nn.CrossEntropyLoss()))


# Half precision


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_half_precision_on_a_gpu(network):
    here, there = network.probabilities([picture()]), Predictor.of(network).untrained().to('cuda')
    network.copy_weights(there.model)
    assert torch.allclose(there.probabilities([picture()]).cpu(), here, atol=0.02)
    net = pointwise().cuda()
    net.weight.data *= 1e6  # overflows in half precision
    assert torch.allclose(predict_views(net, [picture()]).cpu(), predict_views(net.cpu(), [picture()]), atol=1e-3)
