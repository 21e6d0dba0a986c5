"""Opening a table of 25 000 frames in Cityscapes' layout, against fastai's `get_image_files`, which lists the same files and pairs none of them

    python benchmarks/readers.py

The files are empty, so a reader that opened one would fail.
"""
import tempfile, time
from pathlib import Path

from fastcore.script import call_parse
from fastai.data.transforms import get_image_files

from common import show
from selftrain_nb.all import *

KINDS = 'labelIds', 'instanceIds', 'color'


def make(root, n, cities=50):
    "Empty frames, labels and their companions; every tenth is for validation"
    for k in range(n):
        name = f'{"train" if k % 10 else "val"}/city{k % cities:02}/city{k % cities:02}_{k:06}_000019'
        files = [f'leftImg8bit/{name}_leftImg8bit.png', *(f'gtFine/{name}_gtFine_{kind}.png' for kind in KINDS), f'gtFine/{name}_gtFine_polygons.json']
        for f in files:
            (root/f).parent.mkdir(parents=True, exist_ok=True)
            (root/f).touch()
    return root


def seconds(f, repeats=3):
    "The best of some calls"
    times = []
    for _ in range(repeats):
        begin = time.perf_counter(); f(); times.append(time.perf_counter() - begin)
    return min(times)


@call_parse
def main(
    n:int=25_000, # Frames
    json:str='', # File for the result
):
    with tempfile.TemporaryDirectory() as d:
        root = make(Path(d), n)
        assert len(cityscapes(root).labelled) == n
        show({f'table of {n} labelled frames, seconds': (seconds(lambda: cityscapes(root)), seconds(lambda: get_image_files(root)))}, json)
