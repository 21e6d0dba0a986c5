"Processes that may be killed: forked from a server that has imported the package, so each costs milliseconds."

import io, json, multiprocessing as mp, os, time
from pathlib import Path

import numpy as np

ctx = mp.get_context('forkserver')
ctx.set_forkserver_preload(['selftrain_nb.selftrain', 'selftrain_nb.datasets'])


def _child(conn, job, args):
    import torch

    torch.set_num_threads(1)  # the same in each child: their results are compared bit by bit
    conn.send('begun')
    try:
        job(*args)
    except Exception as e:
        conn.send(_portable(e))
    else:
        conn.send(None)


def _portable(e):
    "An error that survives the way to the parent; fastai replaces the arguments of those that pass through a callback"
    if isinstance(e, OSError) and e.errno:
        return OSError(e.errno, e.strerror, e.filename)
    return e if isinstance(e, (OSError, ValueError)) else RuntimeError(repr(e))


def _start(job, args):
    here, there = ctx.Pipe(duplex=False)
    p = ctx.Process(target=_child, args=(there, job, args), daemon=True)
    p.start()
    there.close()
    assert here.poll(120) and here.recv() == 'begun'
    return p, here


def run(job, *args):
    "Run `job` to its end in a child and return how long it took; raises what it raises"
    p, conn = _start(job, args)
    begin, error = time.time(), _last(conn)
    p.join(60)
    assert p.exitcode is not None, 'a child does not end'
    if error:
        raise error
    return time.time() - begin


def stopped_at(point, job, *args):
    "Run `job` in a child that ends at once at a named point of the code (see `stop_at`); the point must be reached"
    p, conn = _start(_with_stop, (point, job, args))
    error = _last(conn)
    p.join(60)
    if error and error is not EOFError:
        raise error
    assert error is EOFError and p.exitcode == 137, f'{point} was never reached'


def _with_stop(point, job, args):
    os.environ['SELFTRAIN_NB_STOP'] = point
    job(*args)


def _last(conn, patience=900):
    "What a child says in the end; EOFError, the class, if it died; a child that hangs fails the test"
    assert conn.poll(patience), f'a child said nothing for {patience} s'
    try:
        return conn.recv()
    except EOFError:
        return EOFError


def stamps(folder):
    "{name: time of change} of what a training leaves: none is trained or measured again while these stay"
    names = 'predictor.safetensors', 'history.csv', 'metrics.json'
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in Path(folder).rglob('*') if p.name in names}


def histories(folder):
    "{name: text} of what trainings below a folder have written of their epochs, with the seconds of each"
    return {p.relative_to(folder): p.read_text() for p in Path(folder).rglob('history.csv')}


def assert_kept(before, folder):
    "Epochs that were done at a stop were not trained again, which would give the same but for the seconds"
    for name, text in before.items():
        assert (folder / name).read_text().startswith(text), f'{name}: epochs were trained again'


def contents(folder):
    """{name: bytes} of the files of a run or store, but for times of day and durations; unfinished files, which
    begin with a dot, and caches do not count"""
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(Path(folder).rglob('*'))
        if p.is_file() and not p.name.startswith('.')
    }
    return {
        k: _timeless(k, v)
        for k, v in files.items()
        if Path(k).name not in ('log.csv', 'report.html', 'table.counts.json')
    }


def _timeless(name, data):
    if name.endswith('metrics.json'):
        return {k: v for k, v in json.loads(data).items() if k != 'seconds'}
    if name.endswith('centroids.npz'):
        return _entries(data)  # the rest tells when files were written
    if name.endswith('history.csv'):
        return [l.rpartition(',')[0] for l in data.decode().splitlines()]  # the last column is `seconds`
    return data


def _entries(data):
    with np.load(io.BytesIO(data)) as z:
        return z['records'].tobytes()


def assert_same(a, b):
    "Two folders hold the same, bit by bit"
    a, b = contents(a), contents(b)
    assert not (d := sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))), f'these differ: {d}'
