"""Random crops of large images with scale jitter: images a second of one worker, against fastai's resize-then-crop

    python benchmarks/loading.py --data path/to/camvid
"""
import os; os.environ.setdefault('OMP_NUM_THREADS', '1')
import tempfile, time
from pathlib import Path

import numpy as np, torch
from fastcore.script import call_parse, store_true
from fastai.vision.all import DataBlock, ImageBlock, ItemTransform, MaskBlock, RandomCrop, RandomSplitter
from PIL import Image

from common import *


class ScaleWhole(ItemTransform):
    "Resize image and mask as a whole by a factor from 0.5 to 2; RandomCrop follows"
    order, split_idx = 0, 0
    def __init__(self): super().__init__(); self.rng = np.random.default_rng(0)
    def encodes(self, x):
        s = np.exp(self.rng.uniform(*np.log((.5, 2))))
        size = [round(d * s) for d in x[0].size]
        return tuple(type(i)(i.resize(size, r)) for i, r in zip(x, (Image.BILINEAR, Image.NEAREST)))


def make(folder, data, n, ext):
    "Images of 1024x2048 with a camera's grain, and their labels"
    table, rows = rows_of(data, n)
    rng, files = np.random.default_rng(0), []
    for k, i in enumerate(rows):
        im = np.asarray(table.image(i).resize(SIZE, Image.BICUBIC)).astype(int) + np.round(rng.normal(0, 4, (*SIZE[::-1], 1))).astype(int)
        Image.fromarray(im.clip(0, 255).astype(np.uint8)).save(folder/f'{k}.{ext}', **(dict(quality=92) if ext == 'jpg' else {}))
        Image.fromarray(table.mask(i)).resize(SIZE, Image.NEAREST).save(folder/f"{k}_label.png")
        files.append((folder/f'{k}.{ext}', folder/f'{k}_label.png'))
    return files, table.space


def fastai_dl(files, crop, bs, n):
    image, label = (lambda i, k=k: files[i % len(files)][k] for k in (0, 1))
    block = DataBlock((ImageBlock, MaskBlock), get_x=image, get_y=label, splitter=lambda x: ([*range(n)], [n]), item_tfms=[ScaleWhole(), RandomCrop(crop)])
    return block.dataloaders(range(n + 1), bs=bs, num_workers=1).train


def our_dl(files, space, crop, bs, n, **how):
    images, labels = zip(*files)
    table = SegTable.make(images, labels, space) + SegTable.make(images[:1], labels[:1], space, split='val')
    return mixed_dls(table, n=n, crop=crop, bs=bs, num_workers=1, colour=0, blur=0, flip=0, **how).train


def rate(dl, n, repeats=2):
    "Crops a second, the start of the worker included"
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in dl: pass
        times.append(time.perf_counter() - begin)
    return n / min(times)


def parts(files, crop):
    "Where the time of a crop goes, ms"
    rng, out = np.random.default_rng(0), {}
    images, masks = [read_image(f) for f, _ in files], [Image.open(m) for _, m in files]
    out['decode image'] = best(lambda f: read_image(f[0]), files)
    out['decode label'] = best(lambda f: read_mask(f[1], Remap.identity(255)), files)
    out['crop and resize'] = best(lambda k: augment(images[k], masks[k], rng, (crop, crop), colour=0, blur=0), range(len(files)))
    out['colour jitter and blur'] = best(lambda k: augment(images[k], masks[k], rng, (crop, crop)), range(len(files))) - out['crop and resize']
    return {k: round(1e3 * v, 1) for k, v in out.items()}


@call_parse
def main(
    data:str='scenes', # 'scenes', or the folder of a data set
    quick:store_true=False, # Fewer crops
    json:str='', # Write the results here
):
    torch.set_num_threads(1)
    n, results = 24 if quick else 64, {}
    for ext in ('jpg', 'png'):
        with tempfile.TemporaryDirectory() as d:
            files, space = make(Path(d), data, 8, ext)
            for crop in (512, 768):
                theirs = rate(fastai_dl(files, crop, 8, n), n)
                for how in ({}, dict(sampler='centroid')):
                    ours = rate(our_dl(files, space, crop, 8, n, **how), n)
                    results[f'ms a crop, {ext}, {crop}{", by centroid" if how else ""}'] = 1e3 / ours, 1e3 / theirs
                print(ext, crop, parts(files, crop), flush=True)
    show(results, json)
