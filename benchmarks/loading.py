"""Random crops of large images with scale jitter, in one worker process, against fastai's resize-then-crop

    python benchmarks/loading.py [--data FOLDER of a data set] [--quick] [--json FILE]
"""
import tempfile
from dataclasses import replace
from pathlib import Path

from common import SIZE, each, in_turns, rows_of, show
import numpy as np
from fastai.vision.all import DataBlock, ImageBlock, ItemTransform, MaskBlock, RandomCrop
from fastcore.script import call_parse
from PIL import Image
from selftrain_nb.augment import strong, weak
from selftrain_nb.labels import Remap, read_image, read_mask
from selftrain_nb.streams import Stream, seg_dls
from selftrain_nb.table import SegTable

PLAIN = replace(weak, flip=0.)  # what the baseline does: scale jitter and crop


class ScaleWhole(ItemTransform):
    "Resize image and mask as a whole by a factor from 0.5 to 2; RandomCrop follows"
    order, split_idx = 0, 0
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def encodes(self, x):
        s = np.exp(self.rng.uniform(*np.log((.5, 2))))
        size = [round(d * s) for d in x[0].size]
        return tuple(type(i)(i.resize(size, r)) for i, r in zip(x, (Image.BILINEAR, Image.NEAREST)))


def make(folder, data, n, ext):
    "Images of 1024x2048 with the grain of a camera, and their labels"
    table, rows = rows_of(data, n)
    rng, files, how = np.random.default_rng(0), [], dict(quality=92) if ext == 'jpg' else {}
    for k, i in enumerate(rows):
        im = np.asarray(table.image(i).resize(SIZE, Image.BICUBIC)).astype(int)
        im = im + np.round(rng.normal(0, 4, (*SIZE[::-1], 1))).astype(int)
        Image.fromarray(im.clip(0, 255).astype(np.uint8)).save(folder/f'{k}.{ext}', **how)
        Image.fromarray(table.mask(i)).resize(SIZE, Image.NEAREST).save(folder/f'{k}_label.png')
        files.append((folder/f'{k}.{ext}', folder/f'{k}_label.png'))
    return files, table.space


def fastai_dl(files, crop, bs, n):
    "The baseline"
    image, label = (lambda i, k=k: files[i % len(files)][k] for k in (0, 1))
    block = DataBlock((ImageBlock, MaskBlock), get_x=image, get_y=label, splitter=lambda x: ([*range(n)], [n]),
                      item_tfms=[ScaleWhole(), RandomCrop(crop)])
    return block.dataloaders(range(n + 1), bs=bs, num_workers=1).train


def our_dl(files, space, crop, bs, n, **how):
    "Ours"
    table = SegTable.make(*zip(*files), space)
    valid = SegTable.make(*zip(files[0]), space, split='val')
    stream = Stream(table, n=n, **{'augment': PLAIN, **how})
    return seg_dls(stream, crop=crop, bs=bs, num_workers=1, valid=valid).train


def parts(files, crop):
    "Where the time of a crop goes, ms"
    rng, some = np.random.default_rng(0), range(len(files))
    images, masks = [read_image(f) for f, _ in files], [Image.open(m) for _, m in files]
    work = {'decode image': each(lambda f: read_image(f[0]), files),
            'decode label': each(lambda f: read_mask(f[1], Remap.identity(255)), files),
            'crop and resize': each(lambda k: PLAIN(images[k], masks[k], rng, (crop, crop)), some),
            'crop and strong augmentation': each(lambda k: strong(images[k], masks[k], rng, (crop, crop)), some)}
    return {k: round(1e3 * t / len(files), 1) for k, t in in_turns(work).items()}


@call_parse
def main(
    data:str='scenes', # 'scenes', or the folder of a data set
    quick:bool=False, # within a minute: JPEG only, one size, fewer crops
    json:str='', # file for the figures
):
    "See above"
    n, results = 24 if quick else 64, {}
    for ext in ('jpg',) if quick else ('jpg', 'png'):
        with tempfile.TemporaryDirectory() as d:
            files, space = make(Path(d), data, 8, ext)
            for crop in (512,) if quick else (512, 768):
                arms = dict(random={}, centroid=dict(sampler='centroid'), strong=dict(augment=strong))
                dls = {k: our_dl(files, space, crop, 8, n, **how) for k, how in arms.items()}
                dls['fastai'] = fastai_dl(files, crop, 8, n)
                found = in_turns({k: lambda dl=dl: [*dl] for k, dl in dls.items()}, 2)
                for k in arms: results[f'ms a crop, {ext}, {crop}, {k}'] = 1e3 * found[k] / n, 1e3 * found['fastai'] / n
                print(ext, crop, parts(files, crop), flush=True)
    show(results, json)
