"Properties of the confusion matrix and its fastai metrics."
import pickle
from types import SimpleNamespace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from selftrain_nb.metrics import ClassIoU, ConfusionMatrix, PixelAccuracy, class_iou, mIoU, seg_metrics


@st.composite
def cases(draw):
    "(n, pred, targ): pred in 0..n-1, targ in 0..n-1 or 255, any shape and integer dtype"
    n = draw(st.integers(1, 255))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=6))
    ids = st.integers(0, min(n, 5) - 1) | st.integers(0, n - 1)
    pred, targ = (draw(hnp.arrays(np.int64, shape, elements=e)) for e in (ids, ids | st.just(255)))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
    return n, pred.astype(dtype), targ.astype(dtype)


def brute(pred, targ, n):
    "IoU of each class and accuracy, by the definition, with sets"
    seen = [i for i in np.ndindex(targ.shape) if targ[i] != 255]
    sets = [({i for i in seen if targ[i] == c}, {i for i in seen if pred[i] == c}) for c in range(n)]
    iou = [len(t & p)/len(t | p) if t | p else np.nan for t, p in sets]
    return iou, sum(pred[i] == targ[i] for i in seen)/len(seen) if seen else np.nan


@given(cases())
@settings(deadline=None, max_examples=200)
def test_equals_brute_force(case):
    n, pred, targ = case
    cm, (iou, acc) = ConfusionMatrix(n).update(pred, targ), brute(pred, targ, n)
    np.testing.assert_array_equal(cm.iou, iou)
    np.testing.assert_equal(cm.acc, acc)
    present = [v for v in iou if v == v]
    np.testing.assert_allclose(cm.miou, np.mean(present) if present else np.nan, rtol=1e-12)


@given(cases(), st.integers(1, 5))
@settings(deadline=None, max_examples=100)
def test_any_split_into_batches_gives_the_same_counts(case, k):
    n, pred, targ = case
    parts = [ConfusionMatrix(n).update(p, t) for p, t in zip(np.array_split(pred, k), np.array_split(targ, k))]
    whole = ConfusionMatrix(n).update(torch.from_numpy(pred), torch.from_numpy(targ))
    np.testing.assert_array_equal(sum(parts).matrix, whole.matrix)
    assert whole.matrix.sum() == (targ != 255).sum()


@pytest.mark.parametrize('pred,targ,says', [
    (3, 0, 'pred holds id 3'), (0, 3, 'targ holds id 3'), (0, 254, 'targ holds id 254'), (255, 0, 'pred holds id 255'),
    (-1, 0, 'from -1'), (0, -100, 'from -100'), (256, 0, 'outside 0..255'), (0.5, 0, 'integer class ids')])
def test_refuses_and_counts_nothing(pred, targ, says):
    cm = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=says): cm.update(np.array([0, pred]), np.array([0, targ]))
    assert cm.matrix.sum() == 0


def test_predictions_on_void_are_not_looked_at():
    assert ConfusionMatrix(3).update(np.array([0, 255, 77]), np.array([0, 255, 255])).matrix.sum() == 1


def test_empty_and_bad_sizes():
    assert np.isnan(ConfusionMatrix(2).update(np.zeros((0, 4), int), np.zeros((0, 4), int)).miou)
    for n in (0, 256):
        with pytest.raises(ValueError, match='classes'): ConfusionMatrix(n)
    with pytest.raises(ValueError, match='shape'): ConfusionMatrix(2).update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match='names'): class_iou(ConfusionMatrix(2), ['a'])


def _pass(metrics, batches):
    for m in metrics: m.reset()
    for p, t in batches:
        learn = SimpleNamespace(pred=p, yb=(t,))
        for m in metrics: m.accumulate(learn)
    return {m.name: m.value for m in metrics}


def _batches(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(b, 4, 6, 5, generator=g), torch.randint(0, 4, (b, 6, 5), generator=g)) for b in (3, 3, 1)]


def test_shared_metrics_count_a_batch_once_and_equal_lone_ones():
    batches, names = _batches(), list('abcd')
    family = seg_metrics(names, per_class=True)
    lone = [mIoU(), PixelAccuracy()] + [ClassIoU(c, names) for c in names]
    assert _pass(family, batches) == _pass(lone, batches)
    assert family[0].counter.cm.matrix.sum() == 7*30
    assert [m.name for m in family] == ['miou', 'acc'] + [f'iou_{c}' for c in names]


def test_shared_metrics_survive_pickling_and_dropping_the_first():
    family = pickle.loads(pickle.dumps(seg_metrics(4, per_class=True)))
    values = _pass(family, _batches())
    assert _pass(family[1:], _batches()) == {k: v for k, v in values.items() if k != 'miou'}


def _rank(rank, init, out):
    torch.distributed.init_process_group('gloo', init_method=init, rank=rank, world_size=2)
    values = _pass(seg_metrics(4), [b for b in _batches()[rank:rank + 1]])
    torch.save(values, f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_show_the_sum(tmp_path):
    torch.multiprocessing.spawn(_rank, (f'file://{tmp_path}/init', str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path/f'{r}.pt') for r in range(2)]
    assert ranks[0] == ranks[1] == _pass(seg_metrics(4), _batches()[:2])
