"What the benchmarks share: labels of 1024x2048, best-of timing, and a table of ratios"
import json, time
from pathlib import Path

import numpy as np, pandas as pd
from PIL import Image

from selftrain_nb.all import *
from selftrain_nb.cli import open_data

SIZE = 2048, 1024  # PIL: width, height
SETTINGS = dict(  # those of results/scenes_selftrain.csv and results/camvid_quarter.csv; and one that takes half of the time of the latter, where many runs are compared
    scenes=dict(keep=32, fit=dict(crop=(96, 128), scale=(.75, 2.), n=480, epochs=(25, 15))),
    camvid=dict(keep=.25, fit=dict(crop=(128, 176), size=240, n=480, epochs=(25, 15))),
    camvid_small=dict(keep=.25, fit=dict(crop=(96, 128), size=180, scale=(.75, 2.), n=480, epochs=(25, 15), bf16=True)))


def rows_of(data, n):
    "`n` training rows of scenes, or of the data set in folder `data`, spread over it"
    table = (open_data(data) if data != 'scenes' else scenes(n=64, n_val=4, n_test=4)).train.real
    return table, [*range(0, len(table), max(1, len(table) // n))][:n]


def large_labels(data, n):
    "Label maps enlarged to 1024x2048, and the number of classes"
    table, rows = rows_of(data, n)
    return [np.asarray(Image.fromarray(table.mask(i)).resize(SIZE, Image.NEAREST)) for i in rows], len(table.space)


def update_table(csv, parts, order, keys=('row', 'seed', 'split'), first=None):
    "Write the rows of `parts` beside those that the table has already, which they replace; `order`: columns to sort by, and the order of their values"
    old = pd.read_csv(csv) if Path(csv).exists() else None
    df = pd.concat([p for p in (first, old, *parts) if p is not None], ignore_index=True)
    head = ['data'] if old is None else list(old)
    df = df[[c for c in dict.fromkeys([*head, *df]) if c != 'command'] + ['command']]
    for c, values in order.items(): df[c] = pd.Categorical(df[c].fillna(''), values)
    df = df.drop_duplicates([*keys], keep='last').sort_values([*keys])
    with atomic_write(csv) as tmp: df.to_csv(tmp, index=False)


def noisy(mask, n_classes, share=.01, seed=0):
    "Single pixels of a random class"
    rng = np.random.default_rng(seed)
    out, hit = mask.copy(), rng.random(mask.shape) < share
    out[hit] = rng.integers(0, n_classes, hit.sum())
    return out


def best(f, items, repeats=3):
    "Seconds an item: the best of some passes over the items"
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for i in items: f(i)
        times.append((time.perf_counter() - begin) / len(items))
    return min(times)


def show(results, file=None):
    "Print {metric: (value, baseline)} with ratios, and write them as JSON"
    print(f'{"":46s}{"ours":>12s}{"baseline":>12s}{"ratio":>9s}')
    for k, (v, b) in results.items(): print(f'{k:46s}{v:12.4g}{b:12.4g}{b / v:9.1f}')
    if file: Path(file).write_text(json.dumps({k: dict(value=v, baseline=b, ratio=b / v) for k, (v, b) in results.items()}, indent=1))
