"""How close labelling comes to the network alone, what readers and writers are worth, and what a large store costs

    python benchmarks/labelling.py [--quick] [--json FILE]

Labelling: images of 192x384 in batches of 8, image and mirror image averaged. Baselines: the network alone on the same
batches, in memory; the loop that people write, one image at a time; our labelling with one reader and one writer.
The store: up to 100 000 made-up rows. Memory: the peak of processes that label many tiny images.
"""
import shutil, subprocess, sys, tempfile
from pathlib import Path

from common import each, in_turns, seconds, show
import numpy as np
from fastcore.script import call_parse
from PIL import Image
from selftrain_nb.files import write_json
from selftrain_nb.labels import LabelSpace
from selftrain_nb.models import seg_model
from selftrain_nb.predictor import Predictor
from selftrain_nb.pseudo import LabelJob, PseudoStore, pseudo_label
from selftrain_nb.scenes import scenes
from selftrain_nb.store import pseudo_table
from selftrain_nb.table import SegTable
from selftrain_nb.views import Views

BOTH, ONE = Views(), Views(flip=False)


def untrained(space, encoder='tf_efficientnet_lite0'):
    "A predictor; what it predicts does not matter here"
    return Predictor(seg_model(len(space), encoder), space, encoder=encoder, arch='fpn')


def plain_loop(teacher, table, dest):
    "Read, predict, write, one image after the other"
    dest.mkdir()
    for i in range(len(table)):
        conf, label = teacher.probabilities([table.image(i)], BOTH)[0].max(0)
        Image.fromarray(label.byte().numpy()).save(dest/f'{i}.png')
        Image.fromarray((conf * 255).byte().numpy()).save(dest/f'{i}c.png')


def labelling(teacher, table, folder, rounds):
    "{way: seconds an image}, in turns"
    batches = [[table.image(i) for i in range(k, min(k + 8, len(table)))] for k in range(0, len(table), 8)]
    def ours(**how):
        shutil.rmtree(folder/'ours', ignore_errors=True)
        pseudo_label(teacher, table, folder/'ours', job=LabelJob(progress=False, **how))
    def plain():
        shutil.rmtree(folder/'plain', ignore_errors=True)
        plain_loop(teacher, table, folder/'plain')
    work = dict(ours=ours, single=lambda: ours(readers=1, writers=1), four=lambda: ours(readers=4, writers=4),
                alone=each(lambda b: teacher.probabilities(b, BOTH), batches), plain=plain)
    return {k: t / len(table) for k, t in in_turns(work, rounds).items()}


def made_up_store(folder, n, classes=19):
    "A store of `n` images that are not there"
    folder.mkdir(parents=True)
    rng, space = np.random.default_rng(0), LabelSpace([f'class {k}' for k in range(classes)])
    names = [f'drive {k % 50:02d}/{k:06d}.png' for k in range(n)]
    table = SegTable.make([f'/images/{k}' for k in names], [None] * n, space)
    table.white = None  # there is no file to look at
    pseudo_table(table, names, folder).save(folder/'table.csv')
    write_json(folder/'store.json', dict(space=space.to_dict()))
    text = [k.encode() for k in names]
    columns = dict(size=np.ones((n, 2), np.int32), conf=rng.random(n, np.float32), agree=rng.random(n, np.float32),
                   counts=np.ones((n, classes), np.int32), hist=np.ones((n, 16), np.int32))
    np.savez(folder/'stats.npz', names=np.frombuffer(b''.join(text), np.uint8), ends=np.cumsum([0, *map(len, text)]),
             class_hist=rng.integers(0, 1000, (classes, 256)), **columns)
    return PseudoStore.open(folder)


def stores(folder, n, few=1000):
    "{metric: (a store of `n` images, one of `few`)}"
    large, small = (made_up_store(folder/f'{k}', k) for k in (n, few))
    both = dict(n=large, few=small)
    t = in_turns({f'open {k}': each(lambda s: PseudoStore.open(s.path), [s] * 10) for k, s in both.items()})
    table = seconds(lambda: large.table), seconds(lambda: small.table)
    t |= in_turns({k: each(lambda s: s.select(np.linspace(.5, .9, 19)), [s] * 10) for k, s in both.items()})
    return {f'open a store of {n}, s (baseline: {few})': (t['open n'] / 10, t['open few'] / 10),
            f'its table, s, once (baseline: {few})': table,
            f'choose other thresholds, s (baseline: {few})': (t['n'] / 10, t['few'] / 10)}


TINY = """
import resource, sys, torch
from selftrain_nb.pseudo import *
torch.set_num_threads(1)
pseudo_label(sys.argv[1], sys.argv[2], sys.argv[3], job=LabelJob(bs=64, progress=False))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(weights, folder, n):
    "MiB at the peak of a process that labels `n` tiny images"
    images = folder/f'{n}'
    images.mkdir()
    for k in range(n): Image.fromarray(np.full((8, 8, 3), k % 256, np.uint8)).save(images/f'{k}.png')
    command = [sys.executable, '-c', TINY, weights, images, folder/f'{n} labels']
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@call_parse
def main(
    quick:bool=False, # within a minute
    json:str='', # file for the figures
):
    "See above"
    with tempfile.TemporaryDirectory() as d:
        d, few, many = Path(d), 100 if quick else 1000, 400 if quick else 20_000
        untrained(LabelSpace([*'abc']), 'test_byobnet').save(d/'w.safetensors')
        # first: on Linux a child's peak is at least what its parent held
        memory = peak(d/'w.safetensors', d, many), peak(d/'w.safetensors', d, few)
        table = scenes(n=8 if quick else 64, n_val=2, n_test=0, size=(192, 384), path=d/'scenes').train
        t = labelling(untrained(table.space), table, d, 2 if quick else 3)
        results = {'labelling, s an image (baseline: network alone)': (t['ours'], t['alone']),
                   'labelling, s an image (baseline: plain loop)': (t['ours'], t['plain']),
                   'labelling, s an image (baseline: 1 reader, 1 writer)': (t['ours'], t['single']),
                   '4 readers, 4 writers (baseline: 1 reader, 1 writer)': (t['four'], t['single'])}
        results.update(stores(d/'stores', 10_000 if quick else 100_000))
        results[f'memory, MiB, {many} images (baseline: {few})'] = memory
    show(results, json)
