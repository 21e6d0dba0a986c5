"A stop at any moment (SIGKILL) and the same call again: nothing lost, nothing labelled twice, bit for bit what an uninterrupted run gives."
import itertools, json, os, signal, sys
from types import SimpleNamespace

import numpy as np, pytest

import children
from children import assert_same, contents
from selftrain_nb.labels import SegTable
from selftrain_nb.scenes import scenes

TINY = dict(encoder='test_byobnet', epochs=(2, 2), n=4, bs=2, crop=(32, 32), progress=True)  # bars, too, have to go on


# What the children do

def label(home, dest, images='few'):
    from selftrain_nb.selftrain import load_predictor, pseudo_label
    pseudo_label(load_predictor(home/'run/teacher/weights.safetensors'), home/images/'images', dest, bs=3, progress=False)

def label_many(home, dest): label(home, dest, 'many')

def train(home, out, **kwargs):
    from selftrain_nb.selftrain import self_train
    self_train(SegTable.load(home/'table.csv'), out, **TINY, **kwargs)

def stopping(n, job, home, out):
    "Do `job`, but die right before the `n`-th time that a file is put in its place, or appended to, or removed, below `out`"
    count = itertools.count(1)
    def hook(event, args):
        if event not in ('open', 'os.rename', 'os.remove'): return
        target = str(args[1] if event == 'os.rename' else args[0])
        if not target.startswith(str(out)) or '.tmp' in target or event == 'open' and 'a' not in str(args[1]): return
        if next(count) == n: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    job(home, out)


# What they are compared with

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A table, an uninterrupted run, an uninterrupted folder of labels by its teacher, and how long they took"
    home = tmp_path_factory.mktemp('home')
    small = dict(n_test=0, size=(32, 64))
    scenes(n=8, n_val=2, path=home/'few', **small).keep_labels(4).save(home/'table.csv')
    scenes(n=40, n_val=0, path=home/'many', **small)
    seconds = SimpleNamespace(train=children.run(train, home, home/'run'), many=children.run(label_many, home, home/'many labels'))
    children.run(label, home, home/'few labels')
    return SimpleNamespace(path=home, seconds=seconds)

def check_manifest(dest):
    "Every image has one line, and every line two files"
    names = [json.loads(l)['name'] for l in (dest/'manifest.jsonl').read_text('utf-8').splitlines()]
    assert len(set(names)) == len(names)
    for kind in ('labels', 'conf'): assert {k.removeprefix(f'{kind}/') for k in contents(dest) if k.startswith(kind)} == set(names)

def kill_at_random_moments(job, reference, out, home, seconds, kills):
    rng = np.random.default_rng(len(out.name))
    hits = sum(children.kill(rng.uniform(0, 1.6 * seconds / kills), job, home.path, out) for _ in range(kills))
    assert hits >= kills // 3, 'most kills came too late to show anything'
    children.run(job, home.path, out)
    assert_same(out, reference)


# The tests

def test_the_same_run_twice_is_the_same(home, tmp_path):
    children.run(train, home.path, tmp_path/'run')
    assert_same(tmp_path/'run', home.path/'run')

def test_labelling_killed_at_random_moments(home, tmp_path):
    kill_at_random_moments(label_many, home.path/'many labels', tmp_path/'labels', home, home.seconds.many, kills=8)
    check_manifest(tmp_path/'labels')

def test_training_killed_at_random_moments(home, tmp_path):
    kill_at_random_moments(train, home.path/'run', tmp_path/'run', home, home.seconds.train, kills=6)
    check_manifest(tmp_path/'run/pseudo')

@pytest.mark.parametrize('job,reference', [(label, 'few labels'), (train, 'run')])
def test_killed_after_every_single_write(job, reference, home, tmp_path):
    "Each child dies after one new file; after a child that found no new one to make, the next may write one file more. So every state that a folder can be in is met"
    out, n = tmp_path/'out', 2
    for stops in itertools.count():
        before = contents(out).keys()
        if not children.killed_by_itself(stopping, n, job, home.path, out): break
        n = 2 if contents(out).keys() - before else n + 1
        assert n < 20, 'no new file in so many writes'
    assert stops > .8 * len(contents(home.path/reference))
    assert_same(out, home.path/reference)
