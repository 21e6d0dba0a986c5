"Odd data, as new users bring it: what is expected of each kind, where no other test says it."

import json, os

import numpy as np
import pytest
from PIL import Image

from selftrain_nb import cli
from selftrain_nb.check import check_table
from selftrain_nb.datasets import seg_folder
from selftrain_nb.labels import Remap, read_mask
from selftrain_nb.selftrain import Run
from test_cli import SMALL
from test_selftrain import QUICK, folder, halves, photo, train


def test_a_mixture_of_pseudo_labels_of_a_folder_keeps_the_splits_of_the_table(tmp_path):
    "Added to the table, a folder of images brings no test or validation image into training"
    data = folder(tmp_path / 'data', test=(5,))
    t = seg_folder(data)
    with pytest.warns(UserWarning, match='two splits'):
        both = t + seg_folder(data, t.space, images='images', labels='none', splits={})
    assert {os.path.basename(p) for p in both.train.df.image} == {'1.png', '2.png', '3.png', '4.png', '6.png'}


def test_no_flip_reaches_training_and_labels(tmp_path):
    data = folder(tmp_path / 'data')
    cli.run(['--data', str(data), '--out', str(tmp_path / 'run'), *SMALL, '--arms', 'teacher,student', '--no-flip'])
    run = Run(tmp_path / 'run/seed0')
    assert not run.recipe.flip and not json.loads((run.path / 'pseudo/store.json').read_text())['flip']
    cli.label([str(run.path), str(data / 'images'), str(tmp_path / 'out'), '--no-flip', '--no-progress'])
    assert not json.loads((tmp_path / 'out/store.json').read_text())['flip']


def test_names_that_are_not_utf8_from_end_to_end(tmp_path):
    data = folder(tmp_path / 'data')
    with open(os.fsencode(str(data / 'images')) + b'/caf\xe9.png', 'wb') as f:
        photo(9).save(f, 'PNG')
    run = train(data, tmp_path / 'run')
    assert run.metrics('student')['n_pseudo'] == 4 and train(data, run.path).done == run.done


def test_two_paths_of_one_image_are_in_one_split(tmp_path):
    data = folder(tmp_path / 'data')
    (data / 'images/again.png').symlink_to(data / 'images/0.png')
    c = check_table(seg_folder(data))
    assert len(c.table.train) == 6 and 'two splits' in c.warnings[0]


# With patches/00_labels.patch and patches/07_check.patch


def test_black_and_white_files_as_binary_masks(tmp_path):
    Image.fromarray(halves().astype(bool)).save(tmp_path / 'a.png')
    for remap in (Remap.binary(), Remap.identity(2), Remap(colours={(0, 0, 0): 0, (255, 255, 255): 1})):
        assert (read_mask(tmp_path / 'a.png', remap) == halves()).all()


def test_validation_labels_that_are_all_void(tmp_path):
    data = folder(tmp_path / 'data', mask=lambda i: halves() if i else np.full((32, 48), 255, np.uint8))
    with pytest.raises(ValueError, match='validation labels are void'):
        train(data, tmp_path / 'out', QUICK, ['teacher'])
    assert not (tmp_path / 'out').exists()


def test_copies_in_two_splits_are_named(tmp_path):
    data = folder(tmp_path / 'data')
    (data / 'images/copy.png').write_bytes((data / 'images/0.png').read_bytes())
    assert 'copies of images for validation' in check_table(seg_folder(data)).warnings[-1]


def test_the_advice_fits_one_label(tmp_path):
    c = check_table(seg_folder(folder(tmp_path / 'data', labelled=1, val=())))
    assert 'Label more images' in c.errors[0] and 'hold_out' not in c.errors[0]
