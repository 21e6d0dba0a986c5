"""What the tables of trained models share: settings, jobs that resume, processes that share them, rows, a summary

A table is a list of jobs for each setting and seed. A job is a change of the recipe and the arms to train with it. Each
job has a folder of its own below --out, and goes on there where it was stopped. The table is written again after each
arm. Several processes may share the work (--processes, or the same command in several terminals).
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import math, shutil, subprocess, sys, time, traceback
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import pandas as pd
from crops import measure as crop_times
from fastai.callback.core import Callback
from filelock import FileLock
from selftrain_nb.cli import find_mapping
from selftrain_nb.files import atomic_write, folder_lock, read_json, say, write_json
from selftrain_nb.public import camvid, idd_lite
from selftrain_nb.scenes import scenes
from selftrain_nb.selftrain import ARMS, Options, Recipe, Run, Trainer, result_rows, self_train
from selftrain_nb.table import SegTable
from selftrain_nb.transfer import TRANSFER_ARMS, transfer

SHOWN = 'teacher', 'teachers', 'control', 'student', 'online', 'full'  # order of the rows
HEAD = ('data labels change p schedule arm seed split miou miou_shared miou_new biou acc steps seconds speedup device '
        'n_real n_pseudo recipe').split()


@dataclass(frozen=True)
class Setting:
    "Which labels are kept of what, and the height and width of images and crops"
    data: str  # folder below --data; '' or 'city B' for scenes
    labels: float  # a number, or a share below 1; 0 for all
    by: str  # 'group': whole stretches of video, drives, streets; 'image': single frames
    crop: tuple  # of images of their own size
    small: tuple = ()  # with --small: (size of the images, size of the crops)
    source: str = ''  # of a transfer: the setting whose images and classes the network comes from


SMALL = dict(n=800, bs=4)  # with --small: half the samples in as many steps
CAMVID, IDD = ((352, 480), ((180, 240), (96, 128))), ((224, 320), ((128, 180), (96, 128)))
SETTINGS = dict(
    scenes=Setting('', 8, 'group', (96, 128)),
    camvid_eighth=Setting('camvid', 1/8, 'group', *CAMVID),
    camvid_12=Setting('camvid', 12, 'image', *CAMVID),
    idd_30=Setting('idd_lite', 30, 'group', *IDD),
    **{f'camvid_{n}': Setting('camvid', n, 'image', *CAMVID) for n in (6, 25, 50, 100)},
    camvid_all=Setting('camvid', 0, 'image', *CAMVID),
    idd_all=Setting('idd_lite', 0, 'image', *IDD),
    city_a=Setting('', 0, 'group', (96, 128)),
    city_b=Setting('city B', 0, 'group', (96, 128), source='city_a'),
    camvid_to_idd=Setting('idd_lite', 0, 'group', *IDD, source='camvid_all'),
    idd_to_camvid=Setting('camvid', 0, 'image', *CAMVID, source='idd_all'),
    idd_to_camvid_stretch=Setting('camvid', 0, 'group', *CAMVID, source='idd_all'))  # a stretch has 25 labels and more
DRAWN = {'': dict(n=256, n_val=64, n_test=128), 'city B': dict(n=256, n_val=64, n_test=128, city='B')}  # need no files


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
    if setting.data in DRAWN: whole = scenes(**DRAWN[setting.data])
    else: whole = readers[setting.data](Path(data)/setting.data)
    return whole.keep_labels(setting.labels, by=setting.by, seed=seed) if setting.labels else whole


@dataclass(frozen=True)
class Job:
    "A change of the recipe, and the arms that it is trained with"
    change: str = ''  # its name in the table
    fields: dict = field(default_factory=dict)  # of the recipe
    arms: tuple = ARMS
    teacher: str = ''  # folder of the job that is its teacher, or of an arm of it; it trains its own if not given
    longer: float = 1.  # times the epochs of the table, or of the command

    def recipe(self, work, setting, seed) -> Recipe:
        "What it trains with"
        r = recipe_of(work, setting, seed, **self.fields)
        return replace(r, epochs=tuple(round(e * self.longer) for e in r.epochs))

    @property
    def folder(self): return self.change or '-'  # in the folder of a setting and seed


@dataclass
class Work:
    "What the command was asked for"
    data: str
    out: Path
    csv: Path
    base: Recipe  # what the jobs change
    given: dict  # fields of the recipe that were given in the command
    command: str  # for the last column, without settings and seeds
    options: Options
    jobs: list  # those that were asked for
    known: list  # all jobs of the table, in its order


def numbers(text): return tuple(map(int, str(text).split(',')))

def recipe_of(work, setting, seed, **changes) -> Recipe:
    "The recipe of a setting, with what was given in the command"
    s, given = SETTINGS[setting], dict(work.given)
    how = dict(crop=s.crop, **dict(by=s.by) if s.source else {})
    if given.pop('small', False): how |= {**SMALL, **dict(zip(('size', 'crop'), s.small))}
    for k in ('size', 'crop', 'epochs'):
        if k in given: how[k] = numbers(given.pop(k))
    if len(how.get('size', ())) == 1: how['size'] = how['size'][0]
    return replace(work.base, **{**how, **given, **changes}, seed=seed).validate()


class OutOfTime(Exception): "The time that was given is over; everything done so far is kept"

class Deadline(Callback):
    "Stops a training after the epoch in which the time is over, when its checkpoint has been written"
    order, until = 90, math.inf

    def after_epoch(self):
        if time.time() > Deadline.until and self.epoch + 1 < self.n_epoch: raise OutOfTime('the time is over')


KEYS = ['data', 'change', 'arm', 'seed', 'split', 'recipe']

def read_table(csv):
    "The table as it is; empty if it is not there yet"
    df = pd.read_csv(csv, dtype=dict(recipe=str)) if Path(csv).exists() else pd.DataFrame(columns=KEYS)
    return df.assign(change=df.change.fillna('') if 'change' in df else '')

def update_table(work, rows):
    "Put rows into the table, in place of those of the same arm"
    with FileLock(str(work.csv.with_suffix('.lock'))):
        df = pd.concat([d for d in (read_table(work.csv), rows) if len(d)], ignore_index=True)
        df = df.drop_duplicates(KEYS, keep='last')
        known = dict(data=[*SETTINGS], change=[j.change for j in work.known], arm=dict.fromkeys(SHOWN + TRANSFER_ARMS),
                     split=('val', 'test'))
        df = df.sort_values(
            ['data', 'recipe', 'change', 'arm', 'seed', 'split'], kind='stable',
            key=lambda c: c.map({v: k for k, v in enumerate(known[c.name])}) if c.name in known else c)
        head = [c for c in HEAD if c in df and (c != 'change' or df.change.any())]
        with atomic_write(work.csv) as tmp:
            df[[*head, *[c for c in df if c.startswith('iou_')], 'command']].to_csv(tmp, index=False)


def with_teachers(work, job):
    "The names of the jobs that have to be done first, and its own"
    first = [j for j in work.known if j.folder == job.teacher.split('/')[0]]
    return [*(with_teachers(work, first[0]) if first else []), job.folder]

def do_job(work, name, seed, job):
    "All arms of one setting, seed and change that the table does not have; BlockingIOError when others are at it"
    recipe, base = job.recipe(work, name, seed), recipe_of(work, name, seed).short()
    df = read_table(work.csv)
    mine = df[(df.data == name) & (df.seed == seed) & (df.change == job.change) & (df.recipe == base)]
    arms = [a for a in _with_pair(job.arms, recipe) if a not in set(mine.arm)]
    if not SETTINGS[name].labels and not SETTINGS[name].source: arms = [a for a in arms if a not in UNLABELLED]
    how = ' '.join(f'{k}={v}' for k, v in work.given.items()) or 'full resolution'
    root = work.out/name/how/f'seed{seed}'
    if not arms: return
    _wait_for(root, job.teacher)
    with folder_lock(root/job.folder, '.job'):
        for arm in arms:
            if time.time() > Deadline.until: raise OutOfTime('the time is over')
            train = transfer_arm if SETTINGS[name].source else train_arm
            rows = train(work, name, root, recipe, job, arm).assign(data=name, change=job.change, recipe=base)
            rows = rows.assign(**columns(work, name, root.parent, recipe, job))
            which = ';'.join(with_teachers(work, job))
            which = f'--settings {name} --seeds {seed} --changes "{which}"'
            update_table(work, rows.assign(command=f'{work.command} {which}'))
            say(f'{name} seed {seed}: {job.change} {arm} done')


UNLABELLED = 'student', 'online', 'full'  # arms that need images without labels

def _with_pair(arms, recipe):
    "After the teacher, the networks that label together, where there are several"
    pair = ['teachers'] * (recipe.teachers > 1)
    return [k for a in arms for k in ([a, *pair] if a == 'teacher' else [a])]


def _wait_for(root, teacher):
    "BlockingIOError while another process trains a teacher; ValueError when nobody does"
    change, _, arm = teacher.partition('/')
    arm = arm or 'teacher'
    if not teacher or arm in Run(root/change).done: return
    with folder_lock(root/change, '.job'):
        if arm in Run(root/change).done: return
        raise ValueError(f'{root/change} has no finished {arm}: train {change!r} in this --out first (take its rows '
                         'out of the table where they come from another folder)')


def columns(work, name, folder, recipe, job):
    "Cells of the tables `centroids` and `crops`"
    found = {k: job.fields[k] for k in ('p', 'schedule') if k in job.fields}
    if 'schedule' in found: found['speedup'] = crop_speedups(work, name, folder, recipe)[found['schedule']]
    return found

def crop_speedups(work, name, folder, recipe):
    "{schedule: training time of constant crops / its own}, from short epochs of each size in turns, measured once"
    file = folder/'speedups.json'
    with FileLock(str(file) + '.lock'):
        if not file.exists():
            recipe = replace(recipe, schedule='constant', n=24 * recipe.bs)
            arm = recipe.arm('teacher', few_labels(SETTINGS[name], work.data, recipe.seed))
            found = crop_times(Trainer(recipe, work.options).learn(arm), recipe.epochs[0], rounds=3, validate=False)
            write_json(file, {k: round(found['constant'][0] / v, 2) for k, (v, _) in found.items()})
    return read_json(file)


def train_arm(work, name, root, recipe, job, arm):
    "Train one arm of self-training, as far as that is not done; its rows"
    table, teacher = few_labels(SETTINGS[name], work.data, recipe.seed), root/job.teacher if job.teacher else None
    train = partial(self_train, table, root/job.folder, recipe, teacher=teacher, cbs=[Deadline()], options=work.options)
    if arm == 'student' and teacher: share_labels(Run(teacher), train(arms=['teacher']), recipe)
    run = train(arms=['teacher' if arm == 'teachers' else arm])
    if arm == 'teachers': return pair_rows(run, recipe, table)
    return pd.DataFrame(result_rows(run.metrics(arm), labels=len(table.train.real), arm=arm, seed=recipe.seed))


MAKE_LABELS = 'teachers adjust scales flip window pseudo_labels precision sampler p tile'.split()  # fields

def share_labels(source, run, recipe):
    "What the same teachers labelled in the same way for another job is copied"
    made, own = source.path/'pseudo', run.path/'pseudo'
    if own.exists() or not made.exists() or 'student' not in source.done: return
    if all(getattr(source.recipe, k) == getattr(recipe, k) for k in MAKE_LABELS):
        part = own.with_name('pseudo.part')
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(made, part)
        part.rename(own)


def pair_rows(run, recipe, table):
    "What the networks that label reach together, with one network's steps, in the seconds of all"
    m, logs = run.metrics('teacher'), [pd.read_csv(f) for f in run.path.glob('teacher/*/history.csv')]
    m |= dict(splits=m['together'], seconds=round(m['seconds'] + sum(float(h.seconds.sum()) for h in logs), 1))
    return pd.DataFrame(result_rows(m, labels=len(table.train.real), arm='teachers', seed=recipe.seed))


def transfer_arm(work, name, root, recipe, job, arm):
    "The same for an arm of a transfer; the source's network is trained once for all jobs"
    setting = SETTINGS[name]
    source, target = (few_labels(s, work.data, recipe.seed) for s in (SETTINGS[setting.source], setting))
    known = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
    first = Recipe(**{**known, 'lr': recipe.source_lr, 'adjust': False, 'epochs': (recipe.source_epochs, 1)})
    run = self_train(source, root/'source', first, ['teacher'], cbs=[Deadline()], options=work.options)
    mapping = find_mapping('', source.space, target.space)
    found = transfer(run, target, mapping, root/job.folder, recipe, [arm], work.options).results
    return found[found.arm == arm]


def do_jobs(work, settings, seeds):
    "One job after the other; those that others are at, or that wait for a teacher, are tried again. How many failed"
    todo, failed = [(s, seed, job) for s in settings for job in work.jobs for seed in seeds], 0
    while todo:
        later = []
        for name, seed, job in todo:
            try: do_job(work, name, seed, job)
            except BlockingIOError: later.append((name, seed, job))
            except OutOfTime: return failed
            except Exception:
                traceback.print_exc()
                failed += 1
        if len(later) == len(todo): time.sleep(5)
        todo = later
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
    begin, told, ended = time.time(), set(), set()
    while any(c.poll() is None for c in children):
        time.sleep(1)
        done = {line for log in logs for line in log.read_text(errors='replace').splitlines() if line.endswith(' done')}
        for line in sorted(done - told): say(f'{time.time() - begin:5.0f} s  {line}')
        told |= done
        if minutes and time.time() > begin + 60 * minutes + 45:
            ended |= {c for c in children if c.poll() is None}
            for c in ended: c.terminate()
    failed = [(c, log) for c, log in zip(children, logs) if c.returncode and c not in ended]
    for c, log in failed: say(f'{log} (exit status {c.returncode}):\n' + log.read_text(errors='replace')[-3000:])
    return len(failed)


def spread(s): return '' if not len(s) else f'{s.mean():.1f} ± {s.std():.1f}' if len(s) > 1 else f'{s.mean():.1f}'

def summary(df) -> str:
    "Mean and standard deviation of each arm's mean IoU, and of its difference from the control, taken seed by seed"
    lines = []
    for (data, recipe, split), g in df.groupby(['data', 'recipe', 'split'], sort=False):
        by = g.pivot(index='seed', columns=['change', 'arm'], values='miou')
        for change, arm in g[['change', 'arm']].drop_duplicates().itertuples(index=False):
            own = (change, change.removeprefix('online, '), change.partition(', ')[0]) * (arm != 'control')
            control = next((by[c, 'control'] for c in (*own, 'base', '') if (c, 'control') in by), None)
            diff = '' if control is None else spread((by[change, arm] - control).dropna())
            lines.append(dict(data=data, split=split, change=change, arm=arm, seeds=by[change, arm].count(),
                              miou=spread(by[change, arm].dropna()), against_control=diff))
    return pd.DataFrame(lines).to_string(index=False) if lines else 'nothing yet'
