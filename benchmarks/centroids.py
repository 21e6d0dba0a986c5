"""Class centroids against scipy: of label maps, from PNG files to a saved index, while labelling; and memory

    python benchmarks/centroids.py [--data FOLDER of a data set] [--quick] [--json FILE]
"""
import subprocess, sys, tempfile
from pathlib import Path

from common import SIZE, each, in_turns, large_labels, noisy, rows_of, show
import numpy as np
from fastcore.script import call_parse
from PIL import Image
from scipy import ndimage
from selftrain_nb.centroids import CentroidIndex, CentroidSampler, class_centroids
from selftrain_nb.labels import LabelSpace, write_mask
from selftrain_nb.models import seg_model
from selftrain_nb.predictor import Predictor
from selftrain_nb.pseudo import LabelJob, pseudo_label
from selftrain_nb.table import SegTable


def scipy_centroids(mask, tile, n_classes):
    "Centre of mass of each class in each tile with scipy, the way of the public code of class-uniform sampling"
    out = []
    for top in range(0, mask.shape[0], tile):
        for left in range(0, mask.shape[1], tile):
            patch = mask[top:top+tile, left:left+tile]
            for c in range(n_classes):
                if c not in patch: continue
                y, x = ndimage.center_of_mass((patch == c).astype(int))
                out.append((c, top + y, left + x))
    return out


def from_arrays(masks, n_classes):
    "{metric: (ms a map, with scipy)}"
    results, kinds = {}, {'': masks, ' noisy': [noisy(m, n_classes, seed=i) for i, m in enumerate(masks)]}
    for kind, maps in kinds.items():
        for tile in (1024, 256):
            ours = in_turns(dict(t=each(lambda m: class_centroids(m, tile, n_classes), maps)), 5)['t']
            plain = in_turns(dict(t=each(lambda m: scipy_centroids(m, tile, n_classes), maps)), 1)['t']
            results[f'ms a map, tile {tile}{kind}'] = 1e3 * ours / len(maps), 1e3 * plain / len(maps)
    return results


def from_files(folder, masks, space):
    "{metric: (ms a map from PNG file to saved index, with scipy)}; the baseline of the second is decoding alone"
    for i, m in enumerate(masks): write_mask(folder/f'{i}.png', m)
    files = [folder/f'{i}.png' for i in range(len(masks))]
    table, n = SegTable.make(files, files, space), [0]
    def decode(f): return np.asarray(Image.open(f))
    def ours():
        n[0] += 1
        CentroidIndex.build(table, 1024, path=folder/f'{n[0]}.npz', progress=False)
    def plain():
        found = {str(i): np.array(scipy_centroids(decode(f), 1024, len(space))) for i, f in enumerate(files)}
        np.savez(folder/'plain.npz', **found)
    t = {k: 1e3 * v / len(files) for k, v in in_turns(dict(ours=ours, plain=plain, decode=each(decode, files))).items()}
    return {'ms a map, PNG to saved index, tile 1024': (t['ours'], t['plain']),
            'the same (baseline: decoding alone)': (t['ours'], t['decode'])}


def while_labelling(folder, n, size):
    "{metric: (s an image labelled with an index written on the way, without)}; images of `size` (width, height)"
    table, rows = rows_of('scenes', n)
    (folder/'im').mkdir()
    for k, i in enumerate(rows): table.image(i).resize(size, Image.BICUBIC).save(folder/f'im/{k}.jpg')
    teacher, k = Predictor(seg_model(len(table.space)), table.space, encoder='tf_efficientnet_lite0', arch='fpn'), [0]
    def label(sampler):
        k[0] += 1
        pseudo_label(teacher, folder/'im', folder/f'{k[0]}', job=LabelJob(bs=2, progress=False, centroids=sampler))
    t = in_turns(dict(ours=lambda: label(CentroidSampler()), alone=lambda: label(None)), 2)
    return {'s an image, labelling with an index (baseline: without)': (t['ours'] / len(rows), t['alone'] / len(rows))}


MEMORY = """
import sys, tempfile
import numpy as np
from selftrain_nb.labels import *
from selftrain_nb.table import *
from selftrain_nb.centroids import *
n = int(sys.argv[1])
with tempfile.TemporaryDirectory() as d:
    rng = np.random.default_rng(0)
    for i in range(100): write_mask(f'{d}/{i}.png', np.kron(rng.integers(0, 11, (16, 32)), np.ones((16, 16), int)))
    files = [f'{d}/{i % 100}.png' for i in range(n)]
    table = SegTable.make(files, files, LabelSpace([str(i) for i in range(11)]))
    CentroidIndex.build(table, path=f'{d}/index.npz', progress=False)
    print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) / 1024)
"""


def memory(n):
    "Peak memory in MiB of a process that indexes `n` maps (Linux)"
    out = subprocess.run([sys.executable, '-c', MEMORY, str(n)], capture_output=True, text=True, check=True).stdout
    return float(out.split()[-1])


@call_parse
def main(
    data:str='scenes', # 'scenes', or the folder of a data set
    quick:bool=False, # within a minute: fewer maps
    json:str='', # file for the figures
):
    "See above"
    masks, n = large_labels(data, 2 if quick else 12)
    results = from_arrays(masks, n)
    with tempfile.TemporaryDirectory() as d:
        results.update(from_files(Path(d), masks, LabelSpace([f'c{i}' for i in range(n)])))
    with tempfile.TemporaryDirectory() as d:
        results.update(while_labelling(Path(d), *((2, (512, 256)) if quick else (8, SIZE))))
    many = 1000 if quick else 10_000
    results[f'MiB at the peak, {many} maps (baseline: 100)'] = memory(many), memory(100)
    show(results, json)
