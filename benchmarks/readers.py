"""Opening a table of 25 000 frames in the layout of Cityscapes, against fastai's `get_image_files`

    python benchmarks/readers.py [--quick] [--json FILE]

`get_image_files` lists the images and the labels, and pairs none of them. The files are empty: a reader that opened one
would fail.
"""
import tempfile
from pathlib import Path

from common import in_turns, show
from fastai.data.transforms import get_image_files
from fastcore.script import call_parse
from selftrain_nb.public import cityscapes

KINDS = 'labelIds', 'instanceIds', 'color'


def make(root, n, cities=50):
    "Empty frames, labels and their companions; every tenth is for validation"
    for k in range(n):
        name = f'{"train" if k % 10 else "val"}/city{k % cities:02}/city{k % cities:02}_{k:06}_000019'
        labels = [f'gtFine/{name}_gtFine_{kind}.png' for kind in KINDS]
        for f in [f'leftImg8bit/{name}_leftImg8bit.png', *labels, f'gtFine/{name}_gtFine_polygons.json']:
            (root/f).parent.mkdir(parents=True, exist_ok=True)
            (root/f).touch()
    return root


@call_parse
def main(
    n:int=25_000, # frames
    quick:bool=False, # within a minute: a tenth of the frames
    json:str='', # file for the figures
):
    "See above"
    n = n // 10 if quick else n
    with tempfile.TemporaryDirectory() as d:
        root = make(Path(d), n)
        assert len(cityscapes(root).labelled) == n
        found = in_turns(dict(ours=lambda: cityscapes(root), baseline=lambda: get_image_files(root)))
        show({f'table of {n} labelled frames, s': (found['ours'], found['baseline'])}, json)
