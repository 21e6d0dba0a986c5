"What the benchmarks share: data, timings taken in turns, and a table of ratios"
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')  # before numpy and torch: figures are for one core
import json, time
from pathlib import Path

import numpy as np, torch
from PIL import Image

from selftrain_nb.cli import open_data
from selftrain_nb.scenes import scenes

SIZE = 2048, 1024  # width and height of a frame of Cityscapes, as PIL gives them
torch.set_num_threads(1)


def rows_of(
    data, # 'scenes', or the folder of a data set
    n, # rows
):
    "A table of labelled training images, and the numbers of `n` rows spread over it"
    table = scenes(n=64, n_val=4, n_test=4) if data == 'scenes' else open_data(data)
    table = table.train.real
    return table, [*range(0, len(table), max(1, len(table) // n))][:n]


def large_labels(data, n):
    "Label maps enlarged to 1024x2048, and the number of classes"
    table, rows = rows_of(data, n)
    maps = [Image.fromarray(table.mask(i)).resize(SIZE, Image.NEAREST) for i in rows]
    return [np.asarray(m) for m in maps], len(table.space)


def noisy(mask, n_classes, share=.01, seed=0):
    "A label map with single pixels of a random class"
    rng = np.random.default_rng(seed)
    hit, out = rng.random(mask.shape) < share, mask.copy()
    out[hit] = rng.integers(0, n_classes, hit.sum())
    return out


def seconds(f, *args):
    "How long one call takes"
    begin = time.perf_counter()
    f(*args)
    return time.perf_counter() - begin


def in_turns(
    work, # {name: function without arguments}
    rounds=3, # each function is called once a round
) -> dict: # {name: seconds}
    "The best time of each function; they take turns, so that whatever else the machine does, it does to all"
    times = {k: [] for k in work}
    for _ in range(rounds):
        for k, f in work.items(): times[k].append(seconds(f))
    return {k: min(t) for k, t in times.items()}


def each(
    f, # function of one item
    items,
):
    "A function without arguments that calls `f` with each item"
    def run():
        for i in items: f(i)
    return run


def show(
    results, # {metric: (value, baseline)}; a lower value is better
    file=None, # JSON file
):
    "Print value, baseline and ratio: how many times less than the baseline the value is"
    print(f'{"":58s}{"ours":>12s}{"baseline":>12s}{"ratio":>8s}')
    for k, (v, b) in results.items(): print(f'{k:58s}{v:12.4g}{b:12.4g}{b / v:8.2f}')
    found = {k: dict(value=float(v), baseline=float(b), ratio=float(b / v)) for k, (v, b) in results.items()}
    if file: Path(file).write_text(json.dumps(found, indent=1) + '\n')
