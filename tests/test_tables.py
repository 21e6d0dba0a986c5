"The tables of trained models: rows, order, summary, jobs that wait, fail and go on."

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
import grid, tables
from grid import Job, Work
from selftrain_nb.files import folder_lock
from selftrain_nb.selftrain import Options, Recipe, Run

JOBS = [
    Job('base', arms=('teacher', 'control', 'student')),
    Job('from scratch', dict(pretrained=False), ('control', 'student')),
    Job('no EMA', dict(ema=0.0), ('student',), 'base'),
]


def work(path, jobs=JOBS, **given):
    path.mkdir(exist_ok=True)
    return Work('', path / 'runs', path / 'table.csv', Recipe(), given, 'python x.py', Options(), list(jobs), JOBS)


@pytest.fixture
def trained(monkeypatch):
    "Arms that are trained, by a function that does nothing but give rows"
    calls = []

    def train(work, name, root, recipe, job, arm):
        (root / job.change / arm).mkdir(parents=True, exist_ok=True)
        (root / job.change / arm / 'metrics.json').write_text('{}')
        calls.append((job.change, arm, recipe.seed))
        score = dict(teacher=40, teachers=45, control=50, student=60)[arm]
        score += recipe.seed - 40 * (job.change == 'from scratch')
        return pd.DataFrame([dict(labels=8, arm=arm, seed=recipe.seed, split=s, miou=score) for s in ('val', 'test')])

    monkeypatch.setattr(grid, 'train_arm', train)
    return calls



def test_each_arm_is_trained_once(tmp_path, trained):
    w = work(tmp_path)
    assert grid.do_jobs(w, ['scenes'], [0, 1]) == 0
    assert len(trained) == len(set(trained)) == 14
    assert grid.do_jobs(w, ['scenes'], [0, 1, 2]) == 0
    assert len(trained) == 21
    df = grid.read_table(w.csv)
    assert len(df) == 42 and not df.duplicated(grid.KEYS).any()
    assert set(df.command) >= {'python x.py --settings scenes --seeds 1 --changes "base;no EMA"'}
    assert set(df.recipe) == {grid.recipe_of(w, 'scenes', 0).short()}


def test_order_and_control_do_not_depend_on_what_was_asked_for(tmp_path, trained):
    "The control of a change is its own, or that of base; also when few changes were asked for at first"
    first = work(tmp_path / 'a')
    assert grid.do_jobs(first, ['scenes'], [0]) == 0
    for jobs in (JOBS[:1], JOBS[1:]):
        assert grid.do_jobs(work(tmp_path / 'b', jobs), ['scenes'], [0]) == 0
    tables_ = [(tmp_path / k / 'table.csv').read_text() for k in 'ab']
    assert tables_[0] == tables_[1]
    found = grid.summary(grid.read_table(first.csv)).splitlines()
    diffs = {tuple(line.split()[1:-3]): float(line.split()[-1]) for line in found[1:]}
    assert diffs['val', 'no', 'EMA', 'student'] == 10
    assert diffs['val', 'from', 'scratch', 'student'] == 10
    assert diffs['test', 'base', 'teacher'] == -10


def test_each_arm_has_its_control():
    "A control is compared with that of the recipe as it is, an online student with that of its start"
    scores = dict(base=dict(control=50, student=51), twice=dict(control=53), start=dict(control=40, student=42))
    scores['online, start'] = dict(online=45)
    df = pd.DataFrame([
        dict(data='scenes', recipe='x', split='test', seed=0, change=c, arm=a, miou=m)
        for c, arms in scores.items()
        for a, m in arms.items()
    ])
    diffs = [float(line.split()[-1]) for line in grid.summary(df).splitlines()[1:]]
    assert diffs == [0, 1, 3, -10, 2, 5]


def test_longer_is_relative_to_what_was_given(tmp_path):
    job = Job('twice', longer=2)
    assert job.recipe(work(tmp_path), 'scenes', 0).epochs == tuple(2 * e for e in Recipe().epochs)
    assert job.recipe(work(tmp_path, epochs='3,5'), 'scenes', 0).epochs == (6, 10)


def test_p_schedule_and_speedup_have_columns(tmp_path, trained):
    "The time of a schedule is measured once for each setting, in turns with that of constant crops"
    jobs = [Job(s, dict(schedule=s), ('teacher',)) for s in ('constant', 'coarse2fine')]
    w = work(tmp_path, jobs + [Job('p=0.5', dict(sampler='centroid', p=0.5), ('teacher',))], epochs='3,3', bs=1)
    w.base = Recipe(encoder='test_byobnet', pretrained=False, teachers=1)
    w.order = [j.change for j in w.jobs]
    assert grid.do_jobs(w, ['scenes'], [0, 1]) == 0
    df = grid.read_table(w.csv).set_index('change')
    assert set(df.speedup['constant']) == {1} and df.speedup['coarse2fine'].nunique() == 1
    assert (df.speedup['coarse2fine'] > 0).all() and set(df.p['p=0.5']) == {0.5}
    assert set(df.schedule.dropna()) == {'constant', 'coarse2fine'} and df.p.notna().sum() == 4


def test_recipes_are_not_mixed(tmp_path, trained):
    grid.do_jobs(work(tmp_path, JOBS[:1]), ['scenes'], [0])
    grid.do_jobs(work(tmp_path, JOBS[:1], bs=2), ['scenes'], [0])
    lines = grid.summary(grid.read_table(tmp_path / 'table.csv')).splitlines()
    assert len(lines) == 1 + 2 * 8


def test_two_teachers_and_their_labels(tmp_path, monkeypatch):
    "The pair has rows of its own; jobs that label alike share labels, others do not"
    monkeypatch.setitem(grid.DRAWN, '', dict(n=16, n_val=2, n_test=2))
    fields = dict(a=dict(ema=0.0), b=dict(pseudo_labels='soft'))
    jobs = [Job(k, f, ('student',), 'base') for k, f in fields.items()]
    w = work(tmp_path, [Job('base', arms=('teacher', 'student')), *jobs])
    w.base = Recipe(encoder='test_byobnet', pretrained=False, n=4, bs=2, epochs=(1, 1), crop=(64, 64))
    w.options, w.known = Options(num_workers=0, progress=False, check=False), w.jobs
    assert grid.do_jobs(w, ['scenes'], [0]) == 0
    df = grid.read_table(w.csv).query('split == "test"').set_index(['change', 'arm'])
    assert list(df.index) == [('base', 'teacher'), ('base', 'teachers'), *[(k, 'student') for k in ('base', 'a', 'b')]]
    assert df.seconds['base', 'teachers'] >= df.seconds['base', 'teacher']
    assert df.miou['base', 'teachers'] != df.miou['base', 'teacher']
    root = w.out / 'scenes' / 'full resolution' / 'seed0'
    files = {k: sorted((root / k / 'pseudo' / 'labels').iterdir()) for k in ('base', 'a', 'b')}
    made = {k: [(f.name, f.stat().st_mtime_ns) for f in fs] for k, fs in files.items()}
    assert made['a'] == made['base'] != made['b'] and len(made['b']) == 8


def test_a_job_waits_for_its_teacher(tmp_path, trained):
    "Another process trains it; nobody does; it is there"
    w = work(tmp_path, JOBS[2:])
    recipe = grid.recipe_of(w, 'scenes', 0)
    root = w.out / 'scenes' / 'full resolution' / 'seed0'
    with folder_lock(root / 'base', '.job'):
        with pytest.raises(BlockingIOError):
            grid.do_job(w, 'scenes', 0, JOBS[2])
    with pytest.raises(ValueError, match='no finished teacher'):
        grid.do_job(w, 'scenes', 0, JOBS[2])
    assert grid.do_jobs(w, ['scenes'], [0]) == 1 and not trained
    grid.train_arm(w, 'scenes', root, recipe, JOBS[0], 'teacher')
    grid.do_job(w, 'scenes', 0, JOBS[2])
    assert trained[-1] == ('no EMA', 'student', 0) and Run(root / 'base').done == ['teacher']


def test_the_time_that_is_given(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(grid.Deadline, 'until', 0)
    assert grid.do_jobs(work(tmp_path), ['scenes'], [0]) == 0 and not trained


@pytest.mark.parametrize('name', tables.TABLES)
def test_every_table_can_begin(name, tmp_path):
    "Each job of each table has a recipe for each of its settings, small or not, and its teacher comes before it"
    table = tables.TABLES[name]
    changes = [j.change for j in table.jobs]
    folders = [j.folder for j in table.jobs]
    assert len(set(changes)) == len(changes)
    for k, job in enumerate(table.jobs):
        assert not job.teacher or job.teacher.split('/')[0] in folders[:k]
        for setting in table.settings.split(','):
            for given in ({}, dict(small=True)):
                w = Work('', tmp_path, tmp_path / 'x.csv', table.base, given, '', Options(), [], [])
                recipe = job.recipe(w, setting, 3)
                assert recipe.seed == 3 and recipe.short() != 'default'


def test_processes_that_are_killed_count_as_failed(tmp_path, monkeypatch, capsys):
    code = 'import os; os.kill(os.getpid(), 9)'
    monkeypatch.setattr(sys, 'argv', ['-c', code])
    w = Work('', tmp_path, tmp_path / 'x.csv', Recipe(), {}, '', Options(), [], [])
    assert grid.share(w, 2, 0) == 2
    assert 'exit status -9' in capsys.readouterr().out


def test_the_command_of_a_later_round_has_those_before_it():
    w = Work('', Path(), Path(), Recipe(), {}, '', Options(), [], tables.CHANGES)
    jobs = {j.change: j for j in tables.CHANGES}
    assert grid.with_teachers(w, jobs['three rounds']) == ['base', 'two rounds', 'three rounds']
    assert grid.with_teachers(w, jobs['base']) == ['base']


@pytest.mark.parametrize(
    'args, text',
    [
        (('nothing', ['scenes'], '', []), "no table 'nothing'"),
        (('labels', ['moon'], '', []), "no setting 'moon'"),
        (('ingredients', ['scenes'], '', ['sugar']), "no change 'sugar'"),
        (('labels', ['camvid_12'], '', []), 'camvid/ below it'),
        (('transfer', ['idd_to_camvid'], '.', []), 'there is no camvid/'),
        (('labels', ['camvid_12'], '', [], ['teachers']), "no arm 'teachers'"),
        (('selftrain', ['city_b'], '', []), 'city_b is that of a transfer'),
        (('transfer', ['scenes'], '', []), 'scenes is not that of a transfer'),
    ],
)
def test_what_cannot_be_is_said_first(args, text):
    with pytest.raises(ValueError, match=text):
        tables._check(*args)
