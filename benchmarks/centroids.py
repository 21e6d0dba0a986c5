"""Class centroids against scipy, the whole way from PNG files, while labelling, and memory

    python benchmarks/centroids.py --data path/to/camvid          # or scenes, which is the default
"""
import os; os.environ.setdefault('OMP_NUM_THREADS', '1')
import subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
from fastcore.script import call_parse, store_true
from PIL import Image
from scipy import ndimage

from common import *


def scipy_centroids(mask, tile, n_classes):
    "Centre of mass of each class in each tile with scipy, the way of the public code of class-uniform sampling"
    out = []
    for top in range(0, mask.shape[0], tile):
        for left in range(0, mask.shape[1], tile):
            patch = mask[top:top+tile, left:left+tile]
            for c in range(n_classes):
                if c in patch: y, x = ndimage.center_of_mass((patch == c).astype(int)); out.append((c, top + y, left + x))
    return out


def from_files(folder, masks, space, n_classes):
    "Seconds a map from PNG file to saved index"
    for i, m in enumerate(masks): write_mask(folder/f'{i}.png', m)
    files = [folder/f'{i}.png' for i in range(len(masks))]
    table, n = SegTable.make(files, files, space), [0]
    def ours(_): n[0] += 1; CentroidIndex.build(table, 1024, folder/f'{n[0]}.npz', n_workers=1, warn=False)
    def plain(_): np.savez(folder/'plain.npz', **{str(i): np.array(scipy_centroids(np.asarray(Image.open(f)), 1024, n_classes)) for i, f in enumerate(files)})
    decode = best(lambda f: np.asarray(Image.open(f)), files)
    return best(ours, [0]) / len(files), best(plain, [0], 1) / len(files), decode


def while_labelling(folder, n):
    "Seconds an image spent on centroids, and on labelling without them"
    import selftrain_nb.pseudo as pseudo
    table, rows = rows_of('scenes', n)
    (folder/'im').mkdir()
    for k, i in enumerate(rows): table.image(i).resize(SIZE, Image.BICUBIC).save(folder/f'im/{k}.jpg')
    few = scenes(n=8, n_val=4, n_test=4)
    learn = seg_learner(mixed_dls(few, n=80, bs=8, crop=(96, 128)))
    with learn.no_bar(): learn.fit_one_cycle(3)
    spent, index, add = [0.], pseudo.index_mask, pseudo.Journal.add
    def timed(f):
        def g(*a):
            begin = time.perf_counter(); out = f(*a); spent[0] += time.perf_counter() - begin
            return out
        return g
    pseudo.index_mask, pseudo.Journal.add = timed(index), timed(add)
    begin = time.perf_counter(); pseudo_label(learn, folder/'im', folder/'labels', bs=2, progress=False)
    total = time.perf_counter() - begin
    pseudo.index_mask, pseudo.Journal.add = index, add
    return spent[0] / len(rows), (total - spent[0]) / len(rows)


def memory(n):
    "Peak memory in MiB of a process that indexes `n` maps (Linux)"
    code = f"""
import numpy as np, tempfile
from pathlib import Path
from selftrain_nb.labels import *; from selftrain_nb.centroids import *
with tempfile.TemporaryDirectory() as d:
    rng = np.random.default_rng(0)
    for i in range(100): write_mask(f'{{d}}/{{i}}.png', np.kron(rng.integers(0, 11, (16, 32)), np.ones((16, 16))))
    files = [f'{{d}}/{{i % 100}}.png' for i in range({n})]
    CentroidIndex.build(SegTable.make(files, files, LabelSpace([str(i) for i in range(11)])), path=f'{{d}}/i.npz', n_workers=2, progress=False)
    print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) / 1024)"""
    return float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])


@call_parse
def main(
    data:str='scenes', # 'scenes', or the folder of a data set
    quick:store_true=False, # Fewer maps
    json:str='', # Write the results here
):
    masks, C = large_labels(data, 4 if quick else 12)
    space, results = LabelSpace([f'c{i}' for i in range(C)]), {}
    for kind, ms in (('', masks), (' noisy', [noisy(m, C, seed=i) for i, m in enumerate(masks)])):
        for tile in (1024, 256):
            ours, plain = (best(lambda m: f(m, tile, C), ms, r) for f, r in ((class_centroids, 5), (scipy_centroids, 1)))
            results[f'ms a map, tile {tile}{kind}'] = 1e3 * ours, 1e3 * plain
    with tempfile.TemporaryDirectory() as d:
        ours, plain, decode = from_files(Path(d), masks, space, C)
        results['ms a map, PNG to saved index, tile 1024'] = 1e3 * ours, 1e3 * plain
        print(f'of which decoding: {1e3 * decode:.1f} ms')
    with tempfile.TemporaryDirectory() as d:
        spent, alone = while_labelling(Path(d), 2 if quick else 8)
        print(f'while labelling: {1e3 * spent:.1f} ms an image on centroids, {1e3 * alone:.0f} ms on the rest: {spent / alone:.1%}')
        results['ms an image, labelling with and without'] = 1e3 * (alone + spent), 1e3 * alone
    few, many = (memory(n) for n in (100, 1000 if quick else 10_000))
    results[f'MiB at the peak, {"1 000" if quick else "10 000"} maps and 100'] = many, few
    show(results, json)
