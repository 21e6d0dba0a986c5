"The commands as a newcomer types them: what they find, what they say, and how they end."
import re, shutil, subprocess, sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from selftrain_nb import cli
from selftrain_nb.datasets import seg_folder
from selftrain_nb.selftrain import Options, Recipe, Run
from selftrain_nb.transfer import Transfer, TransferRecipe
from test_selftrain import folder, halves, photo

SMALL = '--encoder test_byobnet --pretrained false --n 4 --bs 2 --crop 32,48 --epochs 1,1 --no-progress'.split()


class Said:
    "What a command printed, and its exit status"
    def __init__(self, capsys, command, *args):
        self.status = 0
        try: getattr(cli, command)([str(a) for a in args])
        except SystemExit as e: self.status = e.code
        self.out, self.err = capsys.readouterr()

    @property
    def error(self):
        "The one line of an error"
        assert self.status in (1, 2) and 'Traceback' not in self.err, (self.status, self.err)
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def say(capsys): return lambda command, *args: Said(capsys, command, *args)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished run of the command"
    home = tmp_path_factory.mktemp('cli')
    data = folder(home/'data', test=(1,))
    cli.run(['--data', str(data), '--out', str(home/'runs'), '--csv', str(home/'all.csv'), *SMALL])
    return data, home


# What a run says and writes

def test_no_folder_of_this_machine_in_the_command(monkeypatch):
    typed = ['selftrain-run', '--data=/data/me/street', '--unlabelled', '/data/me/more', '--keep=8', 'near/by']
    monkeypatch.setattr(sys, 'argv', typed)
    assert cli._command('near/by') == 'selftrain-run --data=street --unlabelled more --keep=8 by'
    typed = ['selftrain-run', '--data', '.', '--splits', 'train=/data/me/a.txt,val=b.txt', '--images=/data/a,/data/b']
    monkeypatch.setattr(sys, 'argv', typed)
    assert cli._command('.') == f'selftrain-run --data {Path.cwd().name} --splits train=a.txt,val=b.txt --images=a,b'


def test_a_plain_folder_with_the_name_of_a_data_set(tmp_path, say):
    data = folder(tmp_path/'my-idd')
    said = say('check', data, '--picture', tmp_path/'x.png')
    assert 'read as idd because of its name' in said.error and '--reader seg_folder' in said.error
    assert say('check', data, '--picture', tmp_path/'x.png', '--reader', 'seg_folder').status == 0
    said = say('check', data, '--picture', tmp_path/'x.png', '--val', .5)
    assert f'--val is given: {data} is read as a plain folder, and not as idd' in said.out + said.err
    said = say('transfer', '--source', data, '--target', 'scenes', '--out', tmp_path/'out')
    assert 'rename it' in said.error


def test_the_side_that_is_missing_is_named(say):
    assert '--target is missing' in say('transfer', '--source', 'scenes').error
    assert '--source is missing' in say('transfer', '--target', 'scenes').error


def test_later_rounds_are_in_the_table(tmp_path, say, monkeypatch):
    import selftrain_nb.rounds as loop
    monkeypatch.setattr(loop, '_gained', lambda run: 'student' in run.done)
    data, csv = folder(tmp_path/'data', test=(1,)), tmp_path/'all.csv'
    said = say('run', '--data', data, '--out', tmp_path/'runs', '--csv', csv, '--rounds', 2, '--teachers', 1, *SMALL)
    df = pd.read_csv(csv).query('split == "test"')
    rounds = [[k, a] for k in (1, 2) for a in ('teacher', 'student', 'control')]
    assert said.status == 0 and df[['round', 'arm']].values.tolist() == rounds
    assert len(re.findall(r'^ *(?:val|test) +[12] +student', said.out, re.M)) == 4
    known, _ = cli._source(tmp_path/'runs'/'seed0')  # the first round, whose teacher learned from human labels alone
    assert known.path == tmp_path/'runs'/'seed0'

def test_a_run_tells_what_it_found_and_does(tmp_path, say):
    data = folder(tmp_path/'data', test=(1,))
    said = say('run', '--data', data, '--out', tmp_path/'runs', *SMALL)
    assert said.status == 0
    assert '2 labelled, 3 unlabelled, 1 val, 1 test images; 2 classes' in said.out
    told = 'teacher 2 of 2', 'teacher: 1 epoch,', 'student: 1 epoch,', 'control: the same training as the teacher'
    at = [said.out.index(text) for text in told]
    assert at == sorted(at)
    report, = re.findall('report: (.*)', said.out)
    assert Path(report).exists()


def test_results_of_all_seeds_go_to_one_file(done):
    data, home = done
    df = pd.read_csv(home/'all.csv')
    assert df.arm.unique().tolist() == ['teacher', 'student', 'control'] and set(df.split) == {'val', 'test'}
    wanted = 'data labels arm seed split miou biou acc steps seconds device n_real n_pseudo recipe iou_bg iou_fg'
    assert {*wanted.split(), 'command'} <= set(df.columns) and str(home) not in df.to_csv()


def test_a_log_file_gets_lines(tmp_path):
    "Output to a file: an epoch is a line, and there are no bars"
    data = folder(tmp_path/'data')
    log = tmp_path/'log.txt'
    args = [a for a in SMALL if a != '--no-progress']
    with open(log, 'w') as f:
        words = ['--data', str(data), '--out', str(tmp_path/'runs'), *args]
        code = f'from selftrain_nb.cli import run; run({words!r})'
        subprocess.run([sys.executable, '-c', code], stdout=f, stderr=subprocess.STDOUT, timeout=900, check=True)
    text = log.read_text()
    assert '\r' not in text and '█' not in text and len(text) < 20_000
    assert len(re.findall(r'^epoch 1/1 .*train_loss', text, flags=re.M)) == 3


# Errors: one line that names the option, and nothing claimed

@pytest.mark.parametrize('args,message', [
    ('--epochs 10', 'epochs=(10,)'), ('--epochs a,b', '--epochs'), ('--epochs 1,1,1', 'epochs='),
    ('--scale 1', 'scale='), ('--scale 0,1', 'scale='), ('--scale 2,0.5', 'scale='), ('--ratio -1', 'ratio=-1'),
    ('--ratio nan', 'ratio=nan'),
    ('--num-workers -1', 'num_workers=-1'), ('--crop 32,32,32', 'crop='), ('--crop 0', 'crop=0'), ('--bs 0', 'bs=0'),
    ('--n -5', 'n=-5'), ('--size 0', 'size=0'), ('--keep 50%', "'50%' is not a number"), ('--keep -1', '--keep'),
    ('--seeds 0,x', '--seeds'), ('--seeds 99999999999999999999', '--seeds'), ('--seeds -1', '--seeds'),
    ('--lr fast', '--lr'), ('--reader citiscapes', '--reader'), ('--arms pupil', 'pupil'),
    ('--nonsense 1', '--nonsense'),
    ('--csv /', '--csv'), ('--void road --reader camvid', '--void'), ('--encoder resnet1000', 'resnet1000'),
    ('--epoch 1,1', 'did you mean --epochs')])
def test_a_wrong_option_is_named_and_claims_nothing(done, tmp_path, say, args, message):
    args = args.split()
    at = SMALL.index(args[0]) if args[0] in SMALL else None
    small = SMALL if at is None else SMALL[:at] + SMALL[at+2:]
    said = say('run', '--data', done[0], '--out', tmp_path/'out', *small, *args)
    assert message in said.error and not (tmp_path/'out').exists()


@pytest.mark.parametrize('args,message', [
    ('--window 32', '--window'), ('--shard 1', 'shard'), ('--scales 0', '--scales'), ('--shard 4,2', 'shard'),
    ('--bs 0', 'bs')])
def test_so_for_labelling(done, tmp_path, say, args, message):
    data, home = done
    said = say('label', home/'runs', data/'images', tmp_path/'out', *args.split())
    assert message in said.error and not (tmp_path/'out').exists()


def test_which_setting_differs(done, say):
    data, home = done
    said = say('run', '--data', data, '--out', home/'runs', *SMALL, '--lr', '0.001')
    assert 'lr is 0.004 there and 0.001 here' in said.error and not re.search('[0-9a-f]{12}', said.error)


def test_bad_data_is_told_before_training(tmp_path, say):
    bad = {'binary': (dict(mask=lambda i: halves() * 255), 'binary'),
           'void': (dict(mask=lambda i: np.full((32, 48), 255, np.uint8)), 'void'),
           'one': (dict(codes='crack\n', mask=lambda i: halves() * 0), 'class')}
    for name, (how, message) in bad.items():
        said = say('run', '--data', folder(tmp_path/name, **how), '--out', tmp_path/f'{name}_out', *SMALL)
        assert message in said.error and not (tmp_path/f'{name}_out').exists()


def test_what_the_message_says_leads_on(tmp_path, say):
    data = folder(tmp_path/'d', mask=lambda i: halves() * 255)
    words = '--remap', 'binary', '--arms', 'teacher'
    assert say('run', '--data', data, '--out', tmp_path/'out', *SMALL, *words).status == 0


# Folders as people have them

def test_no_list_of_validation_images(tmp_path, say):
    data = folder(tmp_path/'d', n=9, labelled=6, val=())
    said = say('run', '--data', data, '--out', tmp_path/'out', *SMALL, '--arms', 'teacher')
    assert said.status == 0 and 'held out for validation' in said.out.replace('\n', ' ')
    assert len(Run(tmp_path/'out/seed0').table.val.real) == 1
    said = say('run', '--data', data, '--out', tmp_path/'half', *SMALL, '--arms', 'teacher', '--val', '0.5')
    assert len(Run(tmp_path/'half/seed0').table.val.real) == 3


@pytest.mark.parametrize('name', ['masks', 'annotations', 'gt'])
def test_other_names_of_folders(tmp_path, say, name):
    data = folder(tmp_path/'d')
    (data/'labels').rename(data/name)
    said = say('check', data, '--picture', tmp_path/'p.png')
    assert said.status == 0 and '3 labelled, 3 unlabelled, 1 val' in said.out


def test_folders_void_and_groups_as_options(tmp_path, say):
    data = folder(tmp_path/'d', n=8, labelled=6, val=(), codes='bg\nfg\nsky\n')
    (data/'images').rename(data/'photos_of_mine')
    (data/'labels').rename(data/'drawn')
    words = '--images photos_of_mine --labels drawn --void sky --group 1 --val 0.2'.split()
    said = say('check', data, *words, '--picture', tmp_path/'p.png')
    assert said.status == 0 and '2 classes' in said.out and (tmp_path/'p.png').stat().st_size > 2000


def test_a_colour_table_from_a_file(tmp_path, say):
    colours = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)
    data = folder(tmp_path/'d', mask=lambda i: colours[halves()])
    (data/'codes.txt').unlink()
    (data/'class_dict.csv').write_text('name,r,g,b\nbg,0,0,0\nfg,128,0,0\n')
    said = say('check', data, '--picture', tmp_path/'p.png')
    assert said.status == 0 and 'fg' in said.out and '50.0' in said.out


def test_check_names_every_bad_file(tmp_path, say):
    data = folder(tmp_path/'d')
    for f in ('images/2.png', 'labels/3.png'): (data/f).write_bytes(b'no')
    said = say('check', data, '--picture', tmp_path/'p.png')
    assert '2.png' in said.out and '3.png' in said.out


# Warnings and other data

def test_warnings_are_one_line(tmp_path, say):
    data = folder(tmp_path/'d')
    Image.fromarray(halves()).save(data/'labels/nobody.png')
    said = say('check', data, '--picture', tmp_path/'p.png')
    assert said.status == 0 and 'warning: ' in said.err and '.py' not in said.err


def test_a_transfer_from_a_run(done, tmp_path, say):
    data, home = done
    other = folder(tmp_path/'other', codes='bg\nfg\nnew\n', mask=lambda i: halves() + 1)
    (tmp_path/'map.json').write_text('{"pairs": {"bg": "fg", "fg": "new"}, "new": ["bg"]}')
    words = ['--source', home/'runs', '--target', other, '--mapping', tmp_path/'map.json', '--no-replay',
             '--arms', 'source,finetune', '--out', tmp_path/'moved', '--csv', tmp_path/'moved.csv']
    small = [a for a in SMALL if a not in ('--encoder', 'test_byobnet')]       # that of the source is taken over
    said = say('transfer', *words, *small)
    assert said.status == 0 and 'the network is that of the source: test_byobnet' in said.out
    assert pd.read_csv(tmp_path/'moved.csv').arm.unique().tolist() == ['source', 'finetune']
    assert 'no such folder' in say('transfer', '--source', tmp_path/'none', '--target', other, *small).error


def test_a_target_is_read_as_its_options_say(done, tmp_path, say):
    data, home = done
    other = folder(tmp_path/'voc_aerial', labelled=7)          # the name of a data set in it; no unlabelled image
    (other/'val.txt').unlink()
    (other/'labels').rename(other/'truth_of_mine')
    words = ['--source', home/'runs', '--target', other, '--out', tmp_path/'moved']
    small = [a for a in SMALL if a not in ('--encoder', 'test_byobnet')]
    assert 'voc_aerial: PASCAL VOC' in say('transfer', *words, *small).error
    how = ['--reader', 'seg_folder', '--labels', 'truth_of_mine', '--val', '0.4', '--arms', 'finetune, joint']
    said = say('transfer', *words, *how, *small)
    t = Transfer(tmp_path/'moved/seed0')
    assert said.status == 0 and t.done == ['joint', 'finetune'][::-1] and len(t.table.val.real) == 3
    said = say('transfer', *words, *how[:-2], '--out', tmp_path/'all', *small)
    assert 'the arm student and its control need unlabelled images' in said.out and 'the arm full needs' in said.out
    assert 'no pseudo labels' in (tmp_path/'all/seed0/report.html').read_text()


# Labels

def test_a_network_that_is_no_student_has_to_be_named(done, tmp_path, say):
    data, home = done
    (tmp_path/'t/joint').mkdir(parents=True)
    shutil.copy(home/'runs/seed0/student/predictor.safetensors', tmp_path/'t/joint')
    assert 'name one of' in (e := say('label', tmp_path/'t', data/'images', tmp_path/'out').error) and 'joint' in e
    assert say('label', tmp_path/'t/joint/predictor.safetensors', data/'images', tmp_path/'out').status == 0


def test_labels_of_other_images_are_told_of(done, tmp_path, say):
    data, home = done
    for name in 'ab':
        (tmp_path/name).mkdir()
        photo(1).save(tmp_path/name/f'{name}.png')
    assert 'stay as files' not in say('label', home/'runs', tmp_path/'a', tmp_path/'out').out
    said = say('label', home/'runs', tmp_path/'b', tmp_path/'out')
    assert '1 labels of others stay as files: a.png' in said.out and (tmp_path/'out/labels/a.png').exists()


@pytest.mark.parametrize('where', ['.', '../data', ''])
def test_labels_in_the_root_of_a_data_set_are_no_images(done, tmp_path, say, monkeypatch, where):
    data, home = done
    monkeypatch.chdir(data)
    said = say('label', home/'runs', where or data, tmp_path/'out')
    assert '7 images labelled' in said.out and 'labels is taken for labels, and left out' in said.err


def test_unreadable_images_of_another_folder_are_not_told_of(done, tmp_path, say):
    data, home = done
    for name in 'ab':
        (tmp_path/name).mkdir()
        photo(1).save(tmp_path/name/f'{name}.png')
    (tmp_path/'a/bad.png').write_bytes(b'')
    assert 'bad.png' in say('label', home/'runs', tmp_path/'a', tmp_path/'out').err
    said = say('label', home/'runs', tmp_path/'b', tmp_path/'out')
    assert said.status == 0 and 'bad.png' not in said.err


@pytest.mark.parametrize('text, says', [
    ('{"pairs": {"bg": "bg", "fg": "fg", "bg": "fg"}}', 'placed twice: bg'),
    ('{"pairs": {"bg": "bg", "fg": ["fg"]}}', 'these are none'),
    ('{"pairs": {"bg": "bg", "fg": "fg"}, "new": 5}', 'new=5'),
    ('{"pairs": {"bg": "bg", "fg": "fgg"}}', 'did you mean fg?'), ('{"pairs": {}, "news": []}', 'pairs, news'),
    ('{"pairs": {}, "pairs": {}}', 'nothing else'), ('[1]', 'a mapping is JSON'), ('{', 'a mapping is JSON')])
def test_a_wrong_mapping_is_one_line(done, tmp_path, say, text, says):
    data, home = done
    (tmp_path/'m.json').write_text(text)
    words = ['--source', home/'runs', '--target', data, '--out', tmp_path/'t', '--mapping', tmp_path/'m.json']
    assert says in (e := say('transfer', *words).error) and 'm.json' in e and not (tmp_path/'t').exists()


def test_no_arm_is_no_run(done, tmp_path, say):
    data, home = done
    assert '--arms' in say('run', '--data', data, '--out', tmp_path/'r', '--arms', ',').error
    assert '--arms' in say('transfer', '--source', home/'runs', '--target', data, '--arms', ',').error
    assert 'no such file' in say('label', tmp_path/'nothing', data, tmp_path/'out').error


def test_strict_is_no_layout(tmp_path):
    with pytest.raises(ValueError, match='CamVid: 3 of 7 images'):
        cli.open_data(folder(tmp_path/'camvid'), layout=cli.Layout(strict=True))

def test_the_last_of_several_processes_writes_the_overlays(done, tmp_path, say):
    data, home = done
    (tmp_path/'images').mkdir()
    for i in range(9): photo(i).save(tmp_path/f'images/{i}.png')
    for rank in range(2):
        said = say('label', home/'runs/seed0', tmp_path/'images', tmp_path/'out', '--overlay', '--shard', f'{rank},2')
        assert said.status == 0 and ('not yet' in said.out) == (rank == 0)
    assert len([*(tmp_path/'out/overlay').glob('*.jpg')]) == 9


def test_labels_can_be_looked_at_and_read_back(done, tmp_path, say):
    data, home = done
    q = tmp_path/'q'
    (q/'images').mkdir(parents=True)
    for i in range(3): photo(i).save(q/f'images/IMG_{i}.JPG', format='JPEG')
    said = say('label', home/'runs/seed0', q/'images', q/'out', '--overlay')
    assert said.status == 0 and '3 images labelled' in said.out
    photo(3).save(q/'images/IMG_3.JPG', format='JPEG')
    said = say('label', home/'runs/seed0', q/'images', q/'out', '--overlay')
    assert said.status == 0 and len([*(q/'out/overlay').rglob('*.jpg')]) == 4
    times = {p: p.stat().st_mtime_ns for p in (q/'out/overlay').rglob('*.jpg')}
    say('label', home/'runs/seed0', q/'images', q/'out', '--overlay')
    assert times == {p: p.stat().st_mtime_ns for p in (q/'out/overlay').rglob('*.jpg')}
    (q/'out'/'labels').rename(q/'labels')
    for f in ('codes.txt', 'meta.json'):
        if (q/'out'/f).exists(): (q/'out'/f).rename(q/f)
        elif (q/'labels'/f).exists(): (q/'labels'/f).rename(q/f)
    t = seg_folder(q, images='images', labels='labels')
    assert len(t.real) == 4 and t.space.names == ('bg', 'fg') and not len(t.check())
    assert Image.open(next((q/'labels').glob('*.png'))).mode == 'P'


def test_the_very_folder_given_as_out(done, tmp_path, say):
    data, home = done
    assert say('label', home/'runs', data/'images', tmp_path/'a').status == 0
    (tmp_path/'runs').mkdir()
    for s in (0, 1):
        (tmp_path/f'runs/seed{s}').mkdir()
        (tmp_path/f'runs/seed{s}/config.json').write_text('{}')
    assert 'seed0' in say('label', tmp_path/'runs', data/'images', tmp_path/'b').error


def test_unreadable_images_are_all_named(done, tmp_path, say):
    data, home = done
    (tmp_path/'im').mkdir()
    for i in range(4): photo(i).save(tmp_path/f'im/{i}.png')
    for i in (1, 3): (tmp_path/f'im/{i}.png').write_bytes(b'')
    said = say('label', home/'runs/seed0', tmp_path/'im', tmp_path/'out')
    assert '2 images labelled' in said.out and said.status == 1 and '1.png' in said.err and '3.png' in said.err


# Help, and options that cannot drift from the recipe

@pytest.mark.parametrize('command', ['run', 'label', 'transfer', 'check', 'demo'])
def test_help(say, command):
    said = say(command, '--help')
    assert said.status == 0 and f'selftrain-{command}' in said.out


def test_every_field_is_an_option(say):
    text, moved = say('run', '--help').out, say('transfer', '--help').out
    for cls, help in ((Recipe, text), (Options, text), (TransferRecipe, moved)):
        alone = {'student_encoder', 'student_arch', 'rounds', 'strong_teacher', 'teachers'}
        none = {'seed'} | (alone if cls is TransferRecipe else set())
        missing = [f.name for f in fields(cls) if f.name not in none and f'--{f.name.replace("_", "-")}' not in help]
        assert not missing
    assert 'images/' in text and 'codes.txt' in text and 'val.txt' in text       # what a folder must look like


def test_the_installed_commands():
    scripts = Path(sys.executable).parent
    for command in ('run', 'label', 'transfer', 'check', 'demo'):
        p = subprocess.run([scripts/f'selftrain-{command}', '--help'], capture_output=True, text=True, timeout=600)
        assert p.returncode == 0, p.stderr
