"Files that are whole or absent, folders that belong to one run, and files and folders that are recognised again."

import errno, os, subprocess, sys
from pathlib import Path

import pytest

from selftrain_nb.files import *


def python(code, stop='', **kwargs):
    "Run code in a process of its own"
    env = {**os.environ, 'SELFTRAIN_NB_STOP': stop}
    code = 'from pathlib import Path\nfrom selftrain_nb.files import *\n' + code
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120, **kwargs)


def files_of(folder):
    return {p.name: p.read_text() for p in Path(folder).iterdir() if p.is_file()}


# Whole or absent


@pytest.mark.parametrize('stop,left', [('write.temp', 'old'), ('write.replace', 'new'), ('write.temp:2', 'new')])
def test_a_process_that_dies_while_it_writes(tmp_path, stop, left):
    "The file is the old or the new one, and never half of one; the next call goes on"
    (tmp_path / 'a.txt').write_text('old')
    write = f'''
for k in range(2):
    with atomic_write({str(tmp_path / 'a.txt')!r}) as tmp: tmp.write_text('new')
'''
    assert python(write, stop).returncode == 137
    assert (tmp_path / 'a.txt').read_text() == left
    assert python(write).returncode == 0
    assert (tmp_path / 'a.txt').read_text() == 'new'


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / 'a.txt') as tmp:
        tmp.write_text('half')
        raise KeyboardInterrupt
    assert files_of(tmp_path) == {'a.txt': 'old'}


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    "After a power cut, a file of the right name must not be empty: it is synced before it is renamed, its folder after"
    done, fsync, replace = [], os.fsync, os.replace

    def note(fd):
        done.append(os.readlink(f'/proc/self/fd/{fd}') if os.path.exists('/proc/self/fd') else '')
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', note)
    monkeypatch.setattr(os, 'replace', lambda a, b: (done.append('replace'), replace(a, b)))
    with atomic_write(tmp_path / 'a.txt') as tmp:
        tmp.write_text('x')
    assert len(done) == 3 and done[1] == 'replace'
    if done[0]:
        assert done[0].endswith('.txt') and done[2] == str(tmp_path)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(OSError, match='file/a.txt') as e, atomic_write(tmp_path / 'file' / 'a.txt'):
        pass
    assert 'choose a folder that you may write to' in str(e.value)

    def replace(a, b):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(OSError, match='make room, and the same call goes on'), atomic_write(tmp_path / 'a.txt') as tmp:
        tmp.write_text('x')
    assert files_of(tmp_path) == {'file': 'mine'}


def test_json(tmp_path):
    odd = {'name': 'Zürich \u2028 caf\udce9.png', 'lr': 0.003}
    write_json(tmp_path / 'a.json', odd)
    assert read_json(tmp_path / 'a.json') == odd
    assert b'caf\xe9.png' in (tmp_path / 'a.json').read_bytes()
    (tmp_path / 'a.json').write_text('{"lr": .00')
    with pytest.raises(ValueError, match='a.json: not a JSON file'):
        read_json(tmp_path / 'a.json')


def test_stop_at_costs_nothing_when_it_is_not_asked_for():
    for _ in range(3):
        stop_at('write.temp')
    assert python("stop_at('a'); stop_at('b')", 'b').returncode == 137
    assert python("stop_at('a'); stop_at('a')", 'a:3').returncode == 0


# Folders


def test_claiming_a_folder(tmp_path):
    what = dict(lr=0.004, size=(96, 128), table_id='a1', workers=2)
    for _ in range(2):
        claim_folder(tmp_path / 'run', 'config.json', what)
    claim_folder(tmp_path / 'run', 'config.json', {**what, 'workers': 0}, ignore=['workers'])
    with pytest.raises(
        ValueError, match=r'run holds other work: lr is 0.004 there and 0.003 here\. Choose another folder'
    ):
        claim_folder(tmp_path / 'run', 'config.json', {**what, 'lr': 0.003})
    assert read_json(tmp_path / 'run/config.json')['lr'] == 0.004


def test_a_hash_that_differs_is_told_in_words(tmp_path):
    "Hashes say nothing to a reader"
    claim_folder(tmp_path, 'config.json', dict(table_id='a1b2c3', weights_hash='77ff'))
    with pytest.raises(ValueError) as e:
        claim_folder(tmp_path, 'config.json', dict(table_id='d4e5f6', weights_hash='88ee'))
    assert 'the table is another one; the weights is another one' in str(e.value) and 'a1b2c3' not in str(e.value)
    with pytest.raises(ValueError, match='the labels were changed'):
        claim_folder(
            tmp_path,
            'config.json',
            dict(table_id='x', weights_hash='77ff'),
            words={'table_id': 'the labels were changed'},
        )


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(ValueError, match='is not empty and has no config.json'):
        claim_folder(tmp_path, 'config.json', {})
    assert files_of(tmp_path) == {'mine.txt': 'x'}


def test_a_claim_that_was_stopped_can_be_made_again(tmp_path):
    claim = f"claim_folder({str(tmp_path / 'run')!r}, 'config.json', dict(lr=1))"
    for stop in ('write.temp', 'claim'):
        assert python(claim, stop).returncode == 137
    claim_folder(tmp_path / 'run', 'config.json', dict(lr=1))


def test_differences():
    assert differences({'a': 1, 'b': 2}, {'a': 1, 'c': 3}) == [
        'b is 2 there and None here',
        'c is None there and 3 here',
    ]


def test_two_processes_in_one_folder(tmp_path):
    "The second one is told so, and is free to work when the first one has ended, however it ended"
    hold = f'with folder_lock({str(tmp_path)!r}): {{}}'
    with folder_lock(tmp_path):
        r = python(hold.format('pass'))
        assert r.returncode == 1 and r.stderr.rstrip().endswith(
            'another process works in this folder; wait for it to end, or choose another folder'
        )
    assert python(hold.format("stop_at('x')"), 'x').returncode == 137
    with folder_lock(tmp_path) as path:
        assert path == tmp_path


def test_a_lock_does_not_make_a_folder_look_used(tmp_path):
    with folder_lock(tmp_path / 'run'):
        claim_folder(tmp_path / 'run', 'config.json', {})


# Files that are recognised again


def test_signatures_see_what_changed(tmp_path):
    names = ['same', 'touched', 'edited', 'longer', 'gone']
    for n in names:
        (tmp_path / n).write_bytes(n.encode() * 50_000)
    sigs = Signatures.of([tmp_path / n for n in names])
    os.utime(tmp_path / 'touched', (1, 1))
    a = bytearray((tmp_path / 'edited').read_bytes())
    a[-3] ^= 1
    (tmp_path / 'edited').write_bytes(a)
    os.utime(tmp_path / 'edited', (2, 2))
    (tmp_path / 'longer').write_bytes(b'x' * 9)
    (tmp_path / 'gone').unlink()
    (tmp_path / 'new').write_bytes(b'new')
    assert sigs.changed([tmp_path / n for n in names]) == ['edited', 'longer', 'gone']
    assert sigs.changed([tmp_path / n for n in names[:4]] + [tmp_path / 'new']) == ['edited', 'longer', 'new', 'gone']


def test_signatures_of_missing_files_and_on_disk(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9,\n"x".png')
    Path(odd).write_bytes(b'1')
    sigs = Signatures.of([odd, tmp_path / 'missing'])
    assert sigs.changed([odd, tmp_path / 'missing']) == []
    sigs.save(tmp_path / 's.csv')
    assert Signatures.load(tmp_path / 's.csv') == sigs and len(sigs) == 2
    (tmp_path / 'missing').write_bytes(b'2')
    assert sigs.changed([odd, tmp_path / 'missing']) == ['missing']


def test_unchanged_files_are_not_opened_again(tmp_path, monkeypatch):
    files = [tmp_path / str(i) for i in range(3)]
    for f in files:
        f.write_text(f.name)
    sigs = Signatures.of(files)
    files[1].write_text('other')
    read, digest = [], sys.modules['selftrain_nb.files']._digest
    monkeypatch.setattr('selftrain_nb.files._digest', lambda p, size: (read.append(Path(p).name), digest(p, size))[1])
    now = Signatures.of(files, known=sigs)
    assert read == ['1'] and now.changed(files) == [] and now != sigs


def test_a_large_file_is_read_at_both_ends(tmp_path):
    (tmp_path / 'a').write_bytes(b'\0' * (1 << 20))
    sig = file_signature(tmp_path / 'a')
    for at in (0, -1):
        a = bytearray(1 << 20)
        a[at] = 1
        (tmp_path / 'a').write_bytes(a)
        os.utime(tmp_path / 'a', ns=(1, 1))
        assert not same_file(tmp_path / 'a', sig)
    assert not same_file(tmp_path / 'b', sig)


# Names


def test_names_below_a_folder_keep_links(tmp_path):
    (tmp_path / 'store').mkdir()
    (tmp_path / 'data').mkdir()
    for i in range(2):
        (tmp_path / 'store' / f'k{i}.png').write_text('x')
        (tmp_path / 'data' / f'{i}.png').symlink_to(tmp_path / 'store' / f'k{i}.png')
    assert relative_names(sorted((tmp_path / 'data').iterdir())) == (str(tmp_path / 'data'), ['0.png', '1.png'])
    assert relative_names([]) == ('', [])


def test_short_names_do_not_depend_on_where_the_data_lie(tmp_path, monkeypatch):
    ends = ['train/1.png', 'val/1.png', 'val/2.png']
    here = short_names([tmp_path / 'here' / e for e in ends])
    assert here == ['train/1.png', 'val/1.png', '2.png']
    assert short_names([f'/elsewhere/deep/{e}' for e in ends]) == here
    monkeypatch.chdir(tmp_path)
    assert short_names(ends) == here and short_names([]) == []
    assert short_names(['a/1.png', 'a/1.png']) == ['1.png', '1.png']
    assert len({*short_names(['/1.png', '/a/1.png', '/b/a/1.png'])}) == 3


def test_say_a_name_that_is_no_text(capsys):
    say('caf\udce9.png')
    assert capsys.readouterr().out == 'caf\\udce9.png\n'
    assert python(r"say('caf\udce9.png')").returncode == 0
    assert is_terminal() is False
