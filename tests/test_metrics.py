"Properties of the confusion matrix, boundary IoU, scores and their fastai metrics."

import json, pickle
from types import SimpleNamespace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from fastai.torch_core import TensorMask

from selftrain_nb.metrics import (
    BoundaryIoU,
    ClassIoU,
    ConfusionMatrix,
    PixelAccuracy,
    Scores,
    _pairs,
    _window,
    class_iou,
    mIoU,
    seg_metrics,
)

VOID = 255


@st.composite
def cases(draw, dims=(1, 3), most=254, side=6):
    "(n, pred, targ): pred in 0..n-1, targ in 0..n-1 or void, any shape and integer dtype"
    n = draw(st.integers(1, most))
    shape = draw(hnp.array_shapes(min_dims=dims[0], max_dims=dims[1], max_side=side))
    ids = st.integers(0, min(n, 4) - 1) | st.integers(0, n - 1)
    pred, targ = (draw(hnp.arrays(np.int64, shape, elements=e)) for e in (ids, ids | st.just(VOID)))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
    return n, pred.astype(dtype), targ.astype(dtype)


def sets(of, where, n):
    return [{i for i in where if of[i] == c} for c in range(n)]


def mean(iou):
    known = [v for v in iou if v == v]
    return np.mean(known) if known else np.nan


def brute(pred, targ, n):
    "IoU of each class of the truth and accuracy, by the definition, with sets of pixels"
    seen = [i for i in np.ndindex(targ.shape) if targ[i] != VOID]
    iou = [len(t & p) / len(t | p) if t else np.nan for t, p in zip(sets(targ, seen, n), sets(pred, seen, n))]
    return iou, sum(pred[i] == targ[i] for i in seen) / len(seen) if seen else np.nan


@given(cases())
@settings(deadline=None, max_examples=150)
def test_equals_brute_force(case):
    n, pred, targ = case
    cm, (iou, acc) = ConfusionMatrix(n).update(pred, targ), brute(pred, targ, n)
    np.testing.assert_array_equal(cm.iou, iou)
    np.testing.assert_equal(cm.acc, acc)
    np.testing.assert_allclose(cm.miou, mean(iou), rtol=1e-12)


def brute_boundary(pred, targ, n, d):
    """Boundary IoU by its definition: pixels of a mask within d (in a square) of a pixel of another class, or of
    the outside"""
    (H, W), inside = targ.shape, [i for i in np.ndindex(targ.shape) if targ[i] != VOID]

    def near(ids, y, x):
        window = [(a, b) for a in range(y - d, y + d + 1) for b in range(x - d, x + d + 1)]
        if any(not (0 <= a < H and 0 <= b < W) for a, b in window):
            return True
        return any(targ[i] != VOID and ids[i] != ids[y, x] for i in window)

    t, p = (sets(ids, [i for i in inside if near(ids, *i)], n) for ids in (targ, pred))
    return [len(a & b) / len(a | b) if a else np.nan for a, b in zip(t, p)]


@given(cases(dims=(2, 2), most=6, side=9), st.integers(1, 2))
@settings(deadline=None, max_examples=80)
def test_boundary_equals_brute_force(case, d):
    n, pred, targ = case
    pred = np.where(targ == VOID, 200, pred)  # predictions on void are not looked at
    got = BoundaryIoU(n, width=d / np.hypot(*targ.shape)).update(pred, targ)
    iou = brute_boundary(pred, targ, n, d)
    np.testing.assert_allclose(got.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(got.miou, mean(iou), rtol=1e-12)


@given(cases(dims=(2, 2), most=6, side=9))
@settings(deadline=None, max_examples=60)
def test_a_perfect_prediction_scores_one_and_a_wrong_one_less(case):
    n, pred, targ = case
    perfect = Scores(n).update(np.where(targ == VOID, 0, targ), targ)
    for value in (perfect.miou, perfect.biou, perfect.acc):
        assert value == 1 or np.isnan(value)
    wrong = Scores(n).update(pred, targ)
    assert not wrong.acc > 1 and (wrong.acc == 1 or np.isnan(wrong.acc) or wrong.miou < 1)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(1, 15))
@settings(deadline=None, max_examples=80)
def test_the_window_filters_equal_those_of_scipy(x, d):
    from scipy.ndimage import maximum_filter, minimum_filter

    for op, other in ((np.minimum, minimum_filter), (np.maximum, maximum_filter)):
        np.testing.assert_array_equal(_window(op, x, d), other(x, 2 * d + 1, mode='nearest'))


def test_boundary_agrees_with_the_erosion_of_the_authors_code():
    from scipy.ndimage import binary_erosion

    rng = np.random.default_rng(0)
    targ, pred = (rng.integers(0, 3, (12, 16)).repeat(5, 0).repeat(5, 1) for _ in range(2))
    d = max(1, round(0.02 * np.hypot(*targ.shape)))

    def boundary(mask):  # mask_to_boundary of the boundary-iou-api: pad with zeros, erode d times with a 3x3 square
        padded = np.pad(mask, 1)
        return mask & ~binary_erosion(padded, np.ones((3, 3)), iterations=d)[1:-1, 1:-1]

    for c, iou in enumerate(BoundaryIoU(3).update(pred, targ).iou):
        t, p = boundary(targ == c), boundary(pred == c)
        assert iou == (t & p).sum() / (t | p).sum()


def test_the_classes_of_a_mean_are_those_of_the_truth():
    "Shared case 38: a class that is only predicted does not enter the mean; its victims pay"
    truth = np.repeat([0, 0, 1, 1], 8)
    one, two = (ConfusionMatrix(3).update(np.r_[truth[:-1], c], truth) for c in (0, 2))
    assert one.acc == two.acc and np.isnan(two.iou[2])
    np.testing.assert_allclose(two.iou[:2], [1, 15 / 16])
    assert two.miou == np.mean([1, 15 / 16]) and one.miou == np.mean([16 / 17, 15 / 16])
    flat = truth.reshape(4, 8)
    stray = flat.copy()
    stray[3, 4] = 2
    scores = Scores(3).update(stray, flat)
    assert np.isnan(scores.boundary.iou[2]) and scores.boundary.iou[1] < 1
    assert scores.to_dict()['iou']['2'] is None


@given(cases(), st.integers(1, 5))
@settings(deadline=None, max_examples=80)
def test_any_split_into_batches_gives_the_same_counts(case, k):
    n, pred, targ = case
    parts = [ConfusionMatrix(n).update(p, t) for p, t in zip(np.array_split(pred, k), np.array_split(targ, k))]
    whole = ConfusionMatrix(n).update(torch.from_numpy(pred), torch.from_numpy(targ))
    np.testing.assert_array_equal(sum(parts).matrix, whole.matrix)
    assert whole.matrix.sum() == (targ != VOID).sum()


@given(cases(dims=(3, 3), most=6, side=7))
@settings(deadline=None, max_examples=40)
def test_scores_of_images_add_up_to_those_of_the_batch(case):
    n, pred, targ = case
    whole, parts = Scores(n).update(pred, targ), sum(Scores(n).update(p, t) for p, t in zip(pred, targ))
    assert parts.to_dict() == whole.to_dict() == json.loads(json.dumps(whole.to_dict()))


@pytest.mark.parametrize('make', [ConfusionMatrix, BoundaryIoU, Scores])
@pytest.mark.parametrize(
    'pred,targ,says',
    [
        (3, 0, 'pred holds id 3'),
        (0, 3, 'targ holds id 3'),
        (0, 254, 'targ holds id 254'),
        (255, 0, 'pred holds id 255'),
        (-1, 0, 'from -1'),
        (0, -100, 'from -100'),
        (256, 0, 'outside 0..255'),
        (0.5, 0, 'integer class ids'),
    ],
)
def test_refuses_and_counts_nothing(make, pred, targ, says):
    counts = make(3)
    with pytest.raises(ValueError, match=says):
        counts.update(np.array([[0, pred]]), np.array([[0, targ]]))
    assert np.isnan(counts.miou)


def test_predictions_on_void_are_not_looked_at():
    assert ConfusionMatrix(3).update(np.array([0, 255, 77]), np.array([0, 255, 255])).matrix.sum() == 1
    assert BoundaryIoU(3).update(np.array([[0, 255, 77]]), np.array([[0, 255, 255]])).miou == 1


def test_empty_and_bad_sizes():
    empty = np.zeros((0, 4), int)
    assert np.isnan(ConfusionMatrix(2).update(empty, empty).miou)
    for make in (ConfusionMatrix, BoundaryIoU, Scores):
        for n in (0, 255):
            with pytest.raises(ValueError, match='classes'):
                make(n)
        with pytest.raises(ValueError, match='shape'):
            make(2).update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match='names'):
        class_iou(ConfusionMatrix(2), ['a'])
    with pytest.raises(ValueError, match='another width'):
        BoundaryIoU(2) + BoundaryIoU(2, 0.01)


def test_a_matrix_of_many_classes_is_drawn_in_a_figure_of_bounded_size():
    import matplotlib.pyplot as plt

    cm = ConfusionMatrix(254).update(np.arange(254), np.arange(254))
    ax = cm.show()
    assert max(ax.figure.get_size_inches()) < 50
    few = ConfusionMatrix(254).update(np.array([3, 9, 9]), np.array([3, 9, 200])).show([f'c{i}' for i in range(254)])
    assert [t.get_text() for t in few.get_yticklabels()] == ['c3', 'c9', 'c200']
    plt.close('all')


def _pass(metrics, batches, before=()):
    for m in metrics:
        m.reset()
    for p, t in batches:
        learn = SimpleNamespace(pred=p, yb=(*before, t))
        for m in metrics:
            m.accumulate(learn)
    return {m.name: m.value for m in metrics}


def _batches(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(b, 4, 6, 5, generator=g), torch.randint(0, 4, (b, 6, 5), generator=g)) for b in (3, 3, 1)]


def test_shared_metrics_count_a_batch_once_and_equal_lone_ones():
    batches, names = _batches(), list('abcd')
    family = seg_metrics(names, per_class=True)
    lone = [mIoU(), PixelAccuracy()] + [ClassIoU(c, names) for c in names]
    assert _pass(family, batches) == _pass(lone, batches)
    assert family[0].shared.cm.matrix.sum() == 7 * 30
    assert [m.name for m in family] == ['miou', 'acc'] + [f'iou_{c}' for c in names]


def test_the_mask_is_found_by_its_type():
    batches = _batches()
    typed = [(p, TensorMask(t)) for p, t in batches]
    assert _pass(seg_metrics(4), typed, before=(torch.zeros(3, dtype=torch.long),)) == _pass(seg_metrics(4), batches)


def test_shared_metrics_survive_pickling_and_dropping_the_first():
    family = pickle.loads(pickle.dumps(seg_metrics(4, per_class=True)))
    values = _pass(family, _batches())
    assert _pass(family[1:], _batches()) == {k: v for k, v in values.items() if k != 'miou'}


def test_in_a_learner_the_column_equals_everything_predicted_at_once():
    from fastai.learner import Learner
    from fastai.data.core import DataLoader, DataLoaders
    from fastai.losses import CrossEntropyLossFlat

    torch.manual_seed(0)
    ys = torch.randint(0, 3, (8, 16, 16))
    xs = torch.nn.functional.one_hot(ys, 3).permute(0, 3, 1, 2) + 0.4 * torch.randn(8, 3, 16, 16)
    ys[:, :2] = VOID
    dl = DataLoader(list(zip(xs, ys)), bs=3)
    learn = Learner(
        DataLoaders(dl, dl),
        torch.nn.Conv2d(3, 3, 1),
        metrics=seg_metrics(3, True),
        loss_func=CrossEntropyLossFlat(axis=1, ignore_index=VOID),
    )
    with learn.no_logging():
        learn.fit(3, lr=0.1)
    cm = ConfusionMatrix(3).update(learn.model(xs).argmax(1), ys)
    np.testing.assert_allclose(learn.recorder.values[-1][2:], [cm.miou, cm.acc, *cm.iou], rtol=1e-12)


def _rank(rank, init, out):
    torch.distributed.init_process_group('gloo', init_method=init, rank=rank, world_size=2)
    values = _pass(seg_metrics(4), _batches()[:2] if rank else _batches()[2:])  # not as many batches
    torch.save(values, f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_show_the_sum(tmp_path):
    torch.multiprocessing.spawn(_rank, (f'file://{tmp_path}/init', str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f'{r}.pt') for r in range(2)]
    assert ranks[0] == ranks[1] == _pass(seg_metrics(4), _batches())


@given(cases(dims=(2, 2)))
@settings(deadline=None, max_examples=30)
def test_the_count_used_on_a_gpu_equals_the_one_on_a_cpu(case):
    _, pred, targ = case
    pred, targ = pred.astype(np.uint8), targ.astype(np.uint8)
    np.testing.assert_array_equal(_pairs(torch.from_numpy(pred), torch.from_numpy(targ)), _pairs(pred, targ))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_counting_on_a_gpu_gives_the_same_matrix():
    for p, t in _batches():
        cpu, gpu = ConfusionMatrix(4).update(p.argmax(1), t), ConfusionMatrix(4).update(p.cuda().argmax(1), t.cuda())
        np.testing.assert_array_equal(cpu.matrix, gpu.matrix)
