"""The headline table, results/selftrain.csv: teacher, control, student and full, in four settings, with several seeds

    python benchmarks/selftrain.py --settings scenes                   # needs no data
    python benchmarks/selftrain.py --data FOLDER                       # FOLDER has camvid/ and idd_lite/
    python benchmarks/selftrain.py --data FOLDER --size 240 --n 400 --epochs 10,10 --settings camvid_12 --seeds 0,1

Settings, seeds and arms are worked through in the order given. The table is written again after each arm. Stopped, the
same command goes on where it was; it trains what the table does not have yet. Several processes may share the work
(--processes, or the same command in several terminals). Options of the recipe, such as --size, give rows of their own.

Nothing is chosen on test images. IDD-lite has no public test labels: here its validation images are the test images,
and a tenth of its labelled training images, whole drives, is held out for validation.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import math, subprocess, sys, time, traceback
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd, torch
from fastai.callback.core import Callback
from fastcore.script import call_parse
from filelock import FileLock
from selftrain_nb.files import atomic_write, folder_lock, say
from selftrain_nb.public import camvid, idd_lite
from selftrain_nb.scenes import scenes
from selftrain_nb.selftrain import Options, Recipe, Run, result_rows, self_train
from selftrain_nb.table import SegTable

BASE = Recipe(n=1600, epochs=(6, 6), valid_every=3)  # 1 200 steps of teacher, student and control, 2 400 of full
ARMS = 'teacher', 'student', 'control', 'full'
SHOWN = 'teacher', 'control', 'student', 'full'  # order of the rows
HEAD = ('data labels arm seed split miou biou acc steps seconds device n_real n_pseudo recipe').split()


@dataclass(frozen=True)
class Setting:
    "Which labels are kept of what"
    data: str  # folder below --data; '' for scenes
    labels: float  # a number, or a share below 1
    by: str  # 'group': whole stretches of video, drives, streets; 'image': single frames
    size: tuple  # height and width of the images
    crop: tuple  # height and width of the crops, at that size


SETTINGS = dict(
    camvid_eighth=Setting('camvid', 1/8, 'group', (360, 480), (352, 480)),
    scenes=Setting('', 8, 'group', (96, 192), (96, 128)),
    camvid_12=Setting('camvid', 12, 'image', (360, 480), (352, 480)),
    idd_30=Setting('idd_lite', 30, 'group', (227, 320), (224, 320)))


def idd_table(path):
    "IDD-lite, whose validation images are the test images; other drives are held out for validation"
    t = idd_lite(path)
    return SegTable(t.df.assign(split=t.df.split.replace('val', 'test')), t.space, t.remaps).hold_out(.1, seed=0)


def few_labels(
    setting, # `Setting`
    data, # folder of the data sets
    seed, # draws the labels that are kept
) -> SegTable:
    "The table of a run"
    readers = dict(camvid=camvid, idd_lite=idd_table)
    whole = readers[setting.data](Path(data)/setting.data) if setting.data else scenes(n=256, n_val=64, n_test=128)
    return whole.keep_labels(setting.labels, by=setting.by, seed=seed)


def _numbers(text): return tuple(map(int, str(text).split(',')))

def recipe_of(setting, given, seed) -> Recipe:
    "The recipe of a setting, with what was given in the command; a smaller working size has smaller crops"
    given = dict(given)
    size = _numbers(given.pop('size')) if given.get('size') else ()
    factor = 1. if not size else min(1., size[0] / max(setting.size)) if len(size) == 1 else size[0] / setting.size[0]
    crop = setting.crop if factor == 1. else tuple(max(1, round(c * factor / 32)) * 32 for c in setting.crop)
    crop = _numbers(given.pop('crop')) if given.get('crop') else crop
    if 'epochs' in given: given['epochs'] = _numbers(given['epochs'])
    how = dict(size=size[0] if len(size) == 1 else size) if size else {}
    return replace(BASE, seed=seed, crop=crop, **how, **given).validate()


class OutOfTime(Exception): "The time that was given is over; everything done so far is kept"

class Deadline(Callback):
    "Stops a training after the epoch in which the time is over, when its checkpoint has been written"
    order, until = 90, math.inf

    def after_epoch(self):
        if time.time() > Deadline.until and self.epoch + 1 < self.n_epoch: raise OutOfTime('the time is over')


@dataclass
class Work:
    "What the command was asked for"
    data: str
    out: Path
    csv: Path
    arms: list
    given: dict  # of the recipe
    command: str  # for the last column, without settings and seeds
    options: Options


def _line(work, name, run, arm):
    "The rows of one trained arm"
    cells = dict(data=name, labels=len(run.table.train.real), arm=arm, seed=run.recipe.seed, recipe=run.recipe.short())
    command = f'{work.command} --settings {name} --seeds {run.recipe.seed}'
    return pd.DataFrame(result_rows(run.metrics(arm), **cells)).assign(command=command)


KEYS = ['data', 'arm', 'seed', 'split', 'recipe']

def read_table(csv):
    "The table as it is; empty if it is not there yet"
    return pd.read_csv(csv, dtype=dict(recipe=str)) if Path(csv).exists() else pd.DataFrame(columns=[*HEAD, 'command'])

def update_table(work, rows):
    "Put rows into the table, in place of those of the same arm"
    with FileLock(str(work.out/'.csv.lock')):
        df = pd.concat([d for d in (read_table(work.csv), rows) if len(d)], ignore_index=True)
        df = df.drop_duplicates(KEYS, keep='last')
        order = dict(data=[*SETTINGS], arm=SHOWN, split=('val', 'test'))
        df = df.sort_values(['data', 'recipe', 'arm', 'seed', 'split'], kind='stable',
                            key=lambda c: c.map({v: k for k, v in enumerate(order[c.name])}) if c.name in order else c)
        ious = [c for c in df if c.startswith('iou_')]
        with atomic_write(work.csv) as tmp: df[[*HEAD, *ious, 'command']].to_csv(tmp, index=False)

def is_done(work, name, arm, recipe):
    "Does the table have this arm?"
    df = read_table(work.csv)
    return ((df.data == name) & (df.arm == arm) & (df.seed == recipe.seed) & (df.recipe == recipe.short())).any()


def run_folder(work, name, recipe):
    "A folder for each setting, recipe and seed"
    how = ' '.join(f'{k}={v}' for k, v in work.given.items()) or 'full resolution'
    return work.out/name/how.replace('/', '_')/f'seed{recipe.seed}'

def do_job(work, name, seed):
    "All arms of one setting and seed; BlockingIOError when another process is at it"
    recipe = recipe_of(SETTINGS[name], work.given, seed)
    arms = [a for a in work.arms if not is_done(work, name, a, recipe)]
    if not arms: return
    path = run_folder(work, name, recipe)
    with folder_lock(path, '.job'):
        table = few_labels(SETTINGS[name], work.data, seed)
        for arm in arms:
            if time.time() > Deadline.until: raise OutOfTime('the time is over')
            run = self_train(table, path, recipe, [arm], cbs=[Deadline()], options=work.options)
            for a in run.done: update_table(work, _line(work, name, run, a))
            say(f'{name} seed {seed}: {arm} done')


def do_jobs(work, settings, seeds):
    "One job after the other; those of later settings leave the processor to earlier ones. How many failed"
    failed, nice = 0, os.nice(0) if hasattr(os, 'nice') else 0
    for rank, name in enumerate(settings):
        for seed in seeds:
            if nice < (want := min(19, 4 * rank)): nice = os.nice(want - nice)
            try: do_job(work, name, seed)
            except BlockingIOError: say(f'{name} seed {seed}: another process is at it')
            except OutOfTime: return failed
            except Exception:
                traceback.print_exc()
                failed += 1
    return failed


PART = 'SELFTRAIN_BENCHMARK_PART'  # environment variable of the processes that share the work

def share(work, n, minutes):
    "Do the same in `n` processes, whose output goes to files; how many had failures"
    logs = [work.out/f'process{k}.log' for k in range(n)]
    command = [sys.executable, *sys.argv, '--processes', '1']
    children = []
    for k, log in enumerate(logs):
        env = {**os.environ, 'PYTHONUNBUFFERED': '1', PART: '1'}
        children.append(subprocess.Popen(command, stdout=open(log, 'w'), stderr=subprocess.STDOUT, env=env))
    begin, told = time.time(), set()
    while any(c.poll() is None for c in children):
        time.sleep(1)
        done = {line for log in logs for line in log.read_text(errors='replace').splitlines() if line.endswith(' done')}
        for line in sorted(done - told): say(f'{time.time() - begin:5.0f} s  {line}')
        told |= done
        if minutes and time.time() > begin + 60 * minutes + 45: [c.terminate() for c in children]
    for c, log in zip(children, logs):
        if c.returncode > 0: say(f'{log}:\n' + log.read_text(errors='replace')[-3000:])
    return sum(c.returncode > 0 for c in children)


def summary(df) -> str:
    "Mean and standard deviation of the mean IoU of each arm, and the student against its control, seed by seed"
    lines, spread = [], lambda s: f'{s.mean():.2f} ± {s.std(ddof=1):.2f}' if len(s) > 1 else f'{s.mean():.2f}'
    for (data, recipe, split), g in df.groupby(['data', 'recipe', 'split'], sort=False):
        by = g.pivot_table(index='seed', columns='arm', values='miou')
        line = {a: spread(by[a].dropna()) for a in SHOWN if a in by}
        if {'student', 'control'} <= {*by}: line['student - control'] = spread((by.student - by.control).dropna())
        if {'student', 'teacher', 'full'} <= {*by}:
            gap = (by.student - by.teacher) / (by.full - by.teacher)
            line['gap closed, %'] = spread(100 * gap.dropna())
        lines.append(dict(data=data, split=split, seeds=len(by), **line))
    return pd.DataFrame(lines).fillna('').to_string(index=False) if lines else 'nothing yet'


def _check(settings, data, arms):
    "ValueError for what cannot be"
    for what, names, known in (('setting', settings, SETTINGS), ('arm', arms, ARMS)):
        bad = [n for n in names if n not in known]
        if bad: raise ValueError(f'no {what} {bad[0]!r}: choose of {", ".join(known)}')
    for folder in {SETTINGS[n].data for n in settings} - {''}:
        if not data: raise ValueError(f'--data is missing: the folder that has {folder}/ below it')
        if not (Path(data)/folder).is_dir(): raise ValueError(f'--data {data}: there is no {folder}/ below it')


@call_parse
def main(
    data:str='', # folder with camvid/ and idd_lite/ below it; not needed for scenes
    out:str='runs/selftrain', # folder of the runs
    csv:str='results/selftrain.csv', # the table
    settings:str=','.join(SETTINGS), # in order of worth
    seeds:str='0,1,2', # each draws the labels, the weights and the batches
    arms:str=','.join(SHOWN), # student needs its teacher, which is trained if it is not there
    size:str='', # working size of the images: long side, or height and width; their own if not given
    crop:str='', # height and width of the crops; in proportion to the working size if not given
    epochs:str='', # of the teacher, and of student and control
    n:int=0, # labelled samples in an epoch
    bs:int=0, # labelled samples in a batch
    bf16:bool=False, # train in bfloat16
    num_workers:int=0, # processes that read and crop, for each training
    processes:int=1, # runs that are trained side by side
    minutes:float=0., # stop after the epoch in which this time is over; 0: no limit
):
    "See above"
    settings, seeds, arms = settings.split(','), _numbers(seeds), [a for a in ARMS if a in arms.split(',')]
    _check(settings, data, arms)
    given = {k: v for k, v in dict(size=size, crop=crop, epochs=epochs, n=n, bs=bs, bf16=bf16).items() if v}
    stated = ' '.join(f'--{k}' if v is True else f'--{k} {v}' for k, v in given.items())
    command = ' '.join(filter(None, [f'python benchmarks/selftrain.py --csv results/{Path(csv).name}', stated,
                                     '--data FOLDER' if any(SETTINGS[s].data for s in settings) else '']))
    options = Options(num_workers=num_workers, valid_bs=8, readers=4, progress=False, check=False)
    work = Work(data, Path(out), Path(csv), arms, given, command, options)
    for folder in (work.out, work.csv.parent): folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if minutes: Deadline.until = time.time() + 60 * minutes
    failed = share(work, processes, minutes) if processes > 1 else do_jobs(work, settings, seeds)
    if not os.environ.get(PART): print(summary(read_table(work.csv)))
    sys.exit(bool(failed))
