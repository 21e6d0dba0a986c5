"""The tables of trained models in results/: one command a table, which resumes, and adds what is missing

    python benchmarks/tables.py selftrain --settings scenes               # needs no data
    python benchmarks/tables.py selftrain --data FOLDER                   # FOLDER has camvid/ and idd_lite/
    python benchmarks/tables.py ingredients --data FOLDER --small         # small images, for CPUs
    python benchmarks/tables.py labels --data FOLDER --small --seeds 0,1 --processes 2

Nothing is chosen on test images. IDD-lite has no public test labels: here its validation images are the test images,
and a tenth of its labelled training images, whole drives, is held out for validation.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import sys, time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fastcore.script import call_parse
from grid import DRAWN, PART, SETTINGS, Deadline, Job, Work, do_jobs, numbers, read_table, share, summary
from selftrain_nb.crops import PRESETS
from selftrain_nb.selftrain import ARMS, Options, Recipe
from selftrain_nb.transfer import TRANSFER_ARMS, TransferRecipe

BASE = Recipe(n=1600, epochs=(6, 6), valid_every=3)  # 1 200 steps; 2 400 of full
THREE = 'teacher', 'control', 'student'


def change(name, arms=('student',), teacher='base', **fields): return Job(name, fields, arms, teacher)

WEAK = dict(strong_teacher=False, teachers=1)  # a teacher of one stream with weak views
SHORTER = Job('constant, two thirds of the steps', WEAK, ('teacher',), longer=2/3)  # as fast as schedules
TWICE = Job('twice the steps', arms=('control', 'student'), teacher='-', longer=2)  # with the same labels

CHANGES = [  # the recipe with one ingredient left out or changed
    Job('base', arms=THREE),
    change('from scratch', THREE, '', pretrained=False),
    change('no strong augmentation', strong=False),
    change('no CutMix', cutmix=0.),
    change('ClassMix for CutMix', cutmix=0., classmix=.5),
    change('no EMA', ema=0.),
    change('threshold 0.7', min_conf=.7),
    change('threshold 0.95', min_conf=.95),
    change('threshold by class', precision=.8),
    change('soft labels', pseudo_labels='soft'),
    change('ratio 1:3', ('control', 'student'), ratio=3.),
    change('start from the teacher', ('control', 'student'), student_init='teacher'),
    change('weak teacher', ('teacher', 'student'), '', **WEAK),
    change('start from a weak teacher', ('control', 'student'), 'weak teacher', student_init='teacher', **WEAK),
    change('one teacher', teachers=1),
    change('one teacher, logit adjustment', teachers=1, adjust=True),
    change('two rounds', teacher='base/student', teachers=1),  # as `rounds=2`, bit for bit, gained or not
    change('three rounds', teacher='two rounds/student', teachers=1),
    change('larger teacher', ('teacher', 'student'), '', encoder='tf_efficientnet_lite2',
           student_encoder='tf_efficientnet_lite0'),
    change('batch norm of weak views', norm='weak'),
    change('online', ('online',)),
    change('online, start from a weak teacher', ('online',), 'weak teacher', student_init='teacher', **WEAK),
    change('online, no threshold', ('online',), online_conf=0.)]


def centroids(p, more='', **fields):
    "A share `p` of the crops around centroids"
    return Job(f'p={p:g}{more}', dict(sampler='centroid', p=p, **WEAK, **fields), ('teacher',))

def moved(n, more='', arms=('student',), **fields):
    "A transfer to `n` labels"
    return Job(f'{n} labels{more}', dict(target_labels=n, **fields), arms)


@dataclass
class Table:
    "What a table is made of"
    jobs: list
    settings: str  # in order of worth
    base: Recipe = BASE  # what the jobs change


TABLES = dict(
    selftrain=Table([Job(arms=ARMS), Job('weak teacher', WEAK, ('teacher', 'student')), TWICE],
                    'camvid_eighth,scenes,camvid_12,idd_30'),
    ingredients=Table(CHANGES, 'idd_30'),
    labels=Table([Job(arms=THREE)], ','.join(f'camvid_{n}' for n in (6, 12, 25, 50, 100, 'all'))),
    centroids=Table([*[centroids(p) for p in (0., .25, .5, 1.)],
                     *[centroids(p, ', no class weights', weight_power=0.) for p in (0., .5)]], 'camvid_50,scenes'),
    crops=Table([*[Job(s, dict(schedule=s, **WEAK), ('teacher',)) for s in PRESETS], SHORTER], 'camvid_50,scenes'),
    transfer=Table([*[moved(n, '', TRANSFER_ARMS) for n in (10, 30, 100)],
                    *[moved(n, ', no replay', ('control', 'student'), replay=False) for n in (10, 30)],
                    *[moved(n, ', logit adjustment', adjust=True) for n in (10, 30)]],
                   'city_b,camvid_to_idd,idd_to_camvid',
                   TransferRecipe(n=1600, epochs=(6, 6), source_epochs=6, valid_every=3)))


def needed(settings):
    "Folders of data that some settings read"
    both = [s for n in settings for s in (n, SETTINGS[n].source) if s]
    return sorted({SETTINGS[s].data for s in both} - {*DRAWN})

def _check(table, settings, data, changes, arms=()):
    "ValueError for what cannot be"
    jobs = {j.change: j for j in TABLES[table].jobs} if table in TABLES else {}
    asked = dict(table=([table], TABLES), setting=(settings, SETTINGS), change=(changes, jobs),
                 arm=(arms, {*ARMS, *TRANSFER_ARMS}))
    for what, (names, known) in asked.items():
        bad = [n for n in names if n not in known]
        if bad: raise ValueError(f'no {what} {bad[0]!r}: choose of {", ".join(known)}')
    moves = [n for n in settings if bool(SETTINGS[n].source) != (table == 'transfer')]
    if moves: raise ValueError(f'the setting {moves[0]} is {"not " * (table == "transfer")}that of a transfer')
    for folder in needed(settings):
        if not data: raise ValueError(f'--data is missing: the folder that has {folder}/ below it')
        if not (Path(data)/folder).is_dir(): raise ValueError(f'--data {data}: there is no {folder}/ below it')


def _jobs(table, changes, arms):
    "The jobs of a table, or those that were asked for"
    jobs = [j for j in TABLES[table].jobs if not changes or j.change in changes]
    return [replace(j, arms=[a for a in j.arms if not arms or a in arms]) for j in jobs]


@call_parse
def main(
    table:str, # selftrain, ingredients, labels, centroids, crops or transfer
    data:str='', # folder with camvid/ and idd_lite/ below it; not needed for scenes
    out:str='', # folder of the runs; runs/TABLE if not given
    csv:str='', # the table; results/TABLE.csv if not given
    settings:str='', # in order of worth; the table's own if not given
    seeds:str='0,1,2', # each draws the labels, the weights and the batches
    changes:str='', # some of the table's changes, with `;` between them; `-` (`base` in ingredients): as it is
    arms:str='', # some of its arms
    small:bool=False, # small images and crops, for CPUs
    size:str='', # working size of the images: long side, or height and width
    crop:str='', # height and width of the crops
    epochs:str='', # of the teacher, and of student and control
    n:int=0, # labelled samples in an epoch
    bs:int=0, # labelled samples in a batch
    bf16:bool=False, # train in bfloat16
    num_workers:int=0, # processes that read and crop, for each training
    processes:int=1, # runs that are trained side by side
    minutes:float=0., # stop after the epoch (arm of a transfer) in which it is over, --processes after 45 s; 0: never
):
    "See above"
    changes = [c.removeprefix('-') for c in changes.split(';') if c]  # `-` is the job without a name
    arms = [a for a in arms.split(',') if a]
    settings = settings or (TABLES[table].settings if table in TABLES else '')
    _check(table, settings.split(','), data, changes, arms)
    given = dict(small=small, size=size, crop=crop, epochs=epochs, n=n, bs=bs, bf16=bf16)
    given = {k: v for k, v in given.items() if v}
    stated = ' '.join(f'--{k}' if v is True else f'--{k} {v}' for k, v in given.items())
    folder = '--data FOLDER' if needed(settings.split(',')) else ''
    into = f'--csv results/{Path(csv).name}' if csv else ''
    command = ' '.join(filter(None, [f'python benchmarks/tables.py {table}', into, stated, folder]))
    options = Options(num_workers=num_workers, valid_bs=8, readers=4 if num_workers else 1, progress=False, check=False)
    out, csv, base = Path(out or f'runs/{table}'), Path(csv or f'results/{table}.csv'), TABLES[table].base
    work = Work(data, out, csv, base, given, command, options, _jobs(table, changes, arms), TABLES[table].jobs)
    for path in (work.out, work.csv.parent): path.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if minutes: Deadline.until = time.time() + 60 * minutes
    failed = share(work, processes, minutes) if processes > 1 else do_jobs(work, settings.split(','), numbers(seeds))
    if not os.environ.get(PART): print(summary(read_table(work.csv)))
    sys.exit(bool(failed))
