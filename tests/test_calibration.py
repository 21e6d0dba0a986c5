"Calibration: the temperature, reliability and thresholds against brute force."

import json
from pathlib import Path

import numpy as np, pytest, torch, torch.nn as nn
from hypothesis import given, settings, strategies as st
from PIL import Image

from selftrain_nb.calibration import Calibration, calibrate, ece, pixel_sample, reliability
from selftrain_nb.labels import LabelSpace, VOID
from selftrain_nb.predict import Predictor, Views
from selftrain_nb.table import SegTable

SPACE = LabelSpace([*'abc'])


def picture(seed, h=24, w=36):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3, padding=1)
    net.weight.data *= 4
    return Predictor(net, SPACE)


@pytest.fixture
def table(tmp_path, predictor):
    "Labels that agree with the predictor more often than not, and a void border"
    images, labels = [tmp_path / f'i{i}.png' for i in range(5)], [tmp_path / f'l{i}.png' for i in range(5)]
    for i in range(5):
        rng, im = np.random.default_rng(i), picture(i, *(24, 36) if i != 2 else (15, 20))
        im.save(images[i])
        mask = predictor.predict(im)
        mask = np.where(rng.random(mask.shape) < 0.3, rng.integers(0, 3, mask.shape), mask)
        mask[0] = VOID
        Image.fromarray(mask.astype(np.uint8)).save(labels[i])
    return SegTable.make(images, labels, SPACE, split='val')


def random_pixels(seed, n=400, ties=False):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 2
    if ties:
        logits = logits.round()
    return torch.tensor(logits).float().log_softmax(1), torch.tensor(rng.integers(0, 3, n))


# Temperature


@pytest.mark.parametrize('t', [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_is_found(t):
    torch.manual_seed(0)
    logits = torch.randn(20_000, 5) * 2
    truth = torch.multinomial(logits.softmax(1), 1)[:, 0]
    cal = Calibration((logits * t).log_softmax(1), truth, LabelSpace([*'abcde']))
    assert cal.temperature == pytest.approx(t, rel=0.05)
    assert cal.error() < 0.02 and cal.error() <= cal.error(1.0) + 1e-6


def test_a_given_temperature_is_kept():
    cal = Calibration(*random_pixels(0), SPACE, temperature=3.0)
    conf, label, ok = cal.confident()
    assert cal.temperature == 3.0 and (conf < cal.confident(1.0)[0]).all() and (label == cal.confident(1.0)[1]).all()
    assert (ok == (label == cal.truth.numpy())).all()


@pytest.mark.parametrize('views', [Views(), Views(flip=False), Views(scales=(1, 0.5), window=16)])
def test_the_temperature_is_applied_as_it_was_fitted(predictor, table, views):
    "To the average over the same views: calibrated once, nothing is left to do"
    cal = calibrate(predictor, table, views)
    again = calibrate(predictor.tempered(cal.temperature), table, views)
    assert again.temperature == pytest.approx(1, abs=0.01)
    assert again.error(1.0) == pytest.approx(cal.error(), abs=1e-3)


# Pixels


def test_pixels_by_hand(predictor, table):
    logp, truth = pixel_sample(predictor, table, n=10**6)
    by_hand = [
        (predictor.probabilities([table.image(i)])[0].flatten(1).T, torch.tensor(table.mask(i).ravel()).long())
        for i in (0, 1, 3, 4, 2)
    ]
    p, t = (torch.cat(x) for x in zip(*by_hand))  # images of equal size come together
    assert torch.equal(truth, t[t != VOID]) and torch.allclose(logp, p[t != VOID].log(), atol=1e-4)


def test_the_draw_is_the_same_for_any_batch_size(predictor, table):
    a, b = pixel_sample(predictor, table, n=50, bs=1), pixel_sample(predictor, table, n=50, bs=8)
    assert len(a[1]) == 250 and torch.allclose(a[0], b[0], atol=1e-5) and torch.equal(a[1], b[1])


def test_what_cannot_be_read_is_left_out(predictor, table):
    good = pixel_sample(predictor, table[[0, 2, 4]], n=10**6)
    Path(table.df.image[1]).write_bytes(b'')
    Path(table.df.label[3]).write_bytes(b'')
    with pytest.warns(UserWarning, match='2 of 5 images .*(i1|l3).png'):
        found = pixel_sample(predictor, table, n=10**6)
    assert torch.equal(found[1], good[1]) and torch.allclose(found[0], good[0], atol=1e-5)
    with pytest.raises(OSError, match='(i1|l3).png'):
        calibrate(predictor, table, strict=True)


def test_nothing_to_calibrate_with(predictor, table):
    with pytest.raises(ValueError, match='no readable image with a label'):
        calibrate(predictor, table[:0])
    with pytest.raises(ValueError, match='no readable image with a truth'):
        calibrate(predictor, table, col='truth')
    for f in table.df.label:
        Image.fromarray(np.full(np.asarray(Image.open(f)).shape, VOID, np.uint8)).save(f)
    with pytest.raises(ValueError, match='all are void'):
        calibrate(predictor, table)


def test_other_classes_and_what_is_a_predictor(predictor, table, tmp_path):
    other = SegTable(table.df, LabelSpace([*'xyz']), table.remaps)
    with pytest.raises(ValueError, match='the network predicts'):
        calibrate(predictor, other)
    two = calibrate([predictor, predictor], table)
    assert two.temperature == pytest.approx(calibrate(predictor, table).temperature, rel=1e-3) and two.space == SPACE


# Reliability


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_ece_by_hand(pixels, bins):
    conf, ok = zip(*pixels)
    by_hand = 0
    for k in range(bins):
        mine = [(c, o) for c, o in pixels if min(int(c * bins), bins - 1) == k]
        if mine:
            by_hand += abs(sum(c for c, _ in mine) - sum(o for _, o in mine)) / len(pixels)
    assert ece(conf, ok, bins) == pytest.approx(by_hand, abs=1e-9)
    assert reliability(conf, ok, bins).share.sum() == pytest.approx(1)


def test_pictures():
    cal = Calibration(*random_pixels(0), SPACE)
    assert len(cal.show()) == 2 and 'ECE' in repr(cal) and '400 pixels' in repr(cal)


# Thresholds


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 0.3, 0.6, 0.9, 1.0]), st.booleans())
def test_thresholds_keep_their_promise(seed, precision, ties):
    "Also where many pixels have the same confidence: they are kept or dropped together"
    cal = Calibration(*random_pixels(seed, ties=ties), SPACE, 1.0)
    conf, label, ok = cal.confident()
    for c, t in enumerate(cal.thresholds(precision, least=10)):
        of, hit = conf[label == c], ok[label == c]
        good = [v for v in of if (of >= v).sum() >= 10 and hit[of >= v].mean() >= precision]
        assert t == (min(good) if good else 1.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, (0.2, 0.9, 1.01)]))
def test_kept_by_hand(seed, min_conf):
    cal = Calibration(*random_pixels(seed), SPACE)
    conf, label, ok = cal.confident()
    need = np.broadcast_to(min_conf, 3)
    keep, found = conf >= need[label], cal.kept(min_conf)
    assert list(found.index) == ['a', 'b', 'c', 'all']
    for c, name in enumerate('abc'):
        at = label == c
        assert found.kept[name] == pytest.approx(keep[at].mean()) and found.min_conf[name] == need[c]
        if (keep & at).any():
            assert found.precision[name] == pytest.approx(ok[keep & at].mean())
        else:
            assert np.isnan(found.precision[name])
    assert found.kept['all'] == pytest.approx(keep.mean())


@pytest.mark.parametrize('precision', [-0.1, 1.1, 90, float('nan')])
def test_a_precision_is_a_share(precision):
    with pytest.raises(ValueError, match='precision='):
        Calibration(*random_pixels(0), SPACE, 1.0).thresholds(precision)


def test_a_class_that_is_never_predicted():
    logp = torch.tensor([[0.7, 0.2, 0.1]] * 100).log()
    cal = Calibration(logp, torch.zeros(100).long(), SPACE, 1.0)
    assert cal.thresholds(0.9).tolist() == pytest.approx([0.7, 1.01, 1.01])
    assert cal.kept(cal.thresholds(0.9)).kept['all'] == 1


def test_as_json():
    cal = Calibration(*random_pixels(0), SPACE)
    d = json.loads(json.dumps(cal.to_dict(0.6, least=10)))
    assert d['temperature'] == cal.temperature and list(d['thresholds']) == [*'abc'] and d['pixels'] == 400
    assert [*d['thresholds'].values()] == pytest.approx(cal.thresholds(0.6, least=10).tolist(), abs=1e-4)
    assert 'thresholds' not in cal.to_dict()
