"""How close labelling comes to the network alone, and what a store of 100 000 images costs to open and to change

    python benchmarks/labelling.py [--quick] [--json FILE]

Labelling: images of 96x192, batches of 8, mirror images averaged; the network alone on the same batches, in memory; and the loop that people write, one image at a time.
The store: 100 000 made-up rows. Memory: the peak of processes that label 1 000 and more tiny images.
"""
import json as js, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np, torch
from fastcore.script import call_parse, store_true
from PIL import Image

from common import best, show
from selftrain_nb.all import *


def plain_loop(learn, table, dest):
    "Read, predict, write, one after the other"
    dest.mkdir()
    for i in range(len(table)):
        conf, label = predict_full(learn, [table.image(i)])[0].max(0)
        Image.fromarray(label.byte().numpy()).save(dest/f'{i}.png')
        Image.fromarray((conf * 255).byte().numpy()).save(dest/f'{i}c.png')


def labelling(learn, table, folder):
    "Seconds an image: ours, the network alone, the plain loop; in turns, the best of three"
    batches = [[table.image(i) for i in range(k, k + 8)] for k in range(0, len(table), 8)]
    def alone(): [predict_full(learn, b, flip=False) + predict_full(learn, b, flip=False) for b in batches]
    def ours(): pseudo_label(learn, table, folder/'ours', progress=False)
    def plain(): plain_loop(learn, table, folder/'plain')
    times = {f: [] for f in (ours, alone, plain)}
    for _ in range(3):
        for f in times:
            for d in ('ours', 'plain'): shutil.rmtree(folder/d, ignore_errors=True)
            begin = time.perf_counter(); f(); times[f].append((time.perf_counter() - begin) / len(table))
    return [min(t) for t in times.values()]


def made_up_store(folder, n, classes=19):
    "A store of `n` images that are not there"
    rng, space = np.random.default_rng(0), LabelSpace([f'class {k}' for k in range(classes)])
    names = [f'drive {k % 50:02d}/{k:06d}.png' for k in range(n)]
    table = SegTable.make([f'/images/{k}' for k in names], [f'{folder}/labels/{k}.png' for k in names], space, kind='pseudo', conf=[f'{folder}/conf/{k}.png' for k in names], name='pseudo')
    table.save(folder/'table.csv')
    (folder/'store.json').write_text(js.dumps(dict(space=space.to_dict(), tta='flip')))
    text = [f'{k}.png'.encode() for k in names]
    np.savez(folder/'stats.npz', names=np.frombuffer(b''.join(text), np.uint8), ends=np.cumsum([0, *map(len, text)]), size=np.ones((n, 2), np.int32), conf=rng.random(n, np.float32), agree=rng.random(n, np.float32),
             counts=np.ones((n, classes), np.int32), hist=np.ones((n, 16), np.int32), class_hist=rng.integers(0, 1000, (classes, 256)))


TINY = """
import resource, sys, torch
from selftrain_nb.all import *
torch.set_num_threads(1)
learn = load_predictor(sys.argv[1])
pseudo_label(learn, sys.argv[2], sys.argv[3], bs=64, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

def peak(weights, folder, n):
    "MiB at the peak of a process that labels `n` tiny images"
    images = folder/f'{n}'; images.mkdir()
    for k in range(n): Image.fromarray(np.full((8, 8, 3), k % 256, np.uint8)).save(images/f'{k}.png')
    out = subprocess.run([sys.executable, '-c', TINY, weights, images, folder/f'{n} labels'], check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


@call_parse
def main(
    quick:store_true=False, # Within a minute
    json:str='', # File for the figures
):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        d, few, many = Path(d), 200 if quick else 1000, 1000 if quick else 100_000
        save_weights(seg_model(3, 'test_byobnet'), d/'w.safetensors', encoder='test_byobnet', arch='fpn', space=LabelSpace([*'abc']).to_dict(), size=None)
        memory = peak(d/'w.safetensors', d, many), peak(d/'w.safetensors', d, few)  # first: on Linux a child's peak is at least what its parent held
        table = scenes(n=16 if quick else 256, n_val=2, n_test=0, path=d/'scenes').train
        learn = seg_learner(mixed_dls(table, n=8))
        ours, alone, plain = labelling(learn, table, d)
        results = {'labelling, s an image (baseline: network alone)': (ours, alone), 'labelling, s an image (baseline: plain loop)': (ours, plain)}
        for n in (1000, 10_000 if quick else 100_000):
            (d/f's{n}').mkdir(); made_up_store(d/f's{n}', n)
        small, large = [PseudoStore.open(d/f's{n}') for n in (1000, 10_000 if quick else 100_000)]
        opening = [best(lambda s: PseudoStore.open(s.path), [s] * 10) for s in (large, small)]
        begin = time.perf_counter(); large.table; reading = time.perf_counter() - begin
        small.table
        changing = [best(lambda s: s.select(np.linspace(.5, .9, 19)), [s] * 10) for s in (large, small)]
        results[f'open a store of {len(large)}, s (baseline: 1000)'] = opening
        results['its table, s, once (baseline: opening)'] = reading, opening[0]
        results[f'change its thresholds, s (baseline: 1000)'] = changing
        results[f'memory, MiB, {many} images (baseline: {few})'] = memory
    show(results, json)
