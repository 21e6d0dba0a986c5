"Processes that may be killed: forked from a server that has imported the package and computed nothing, so each costs milliseconds instead of seconds."
import io, json, multiprocessing as mp, time
from pathlib import Path

import numpy as np

ctx = mp.get_context('forkserver')
ctx.set_forkserver_preload(['selftrain_nb.selftrain', 'selftrain_nb.datasets'])


def _child(conn, job, args):
    import torch
    torch.set_num_threads(1)  # the same in each child: their results are compared bit by bit
    conn.send('begun')
    try: job(*args)
    except Exception as e: conn.send(_portable(e))
    else: conn.send(None)


def _portable(e):
    "An error that survives the way to the parent; fastai replaces the arguments of those that pass through a callback"
    if isinstance(e, OSError) and e.errno: return OSError(e.errno, e.strerror, e.filename)
    return e if isinstance(e, (OSError, ValueError)) else RuntimeError(repr(e))


def _start(job, args):
    here, there = ctx.Pipe(duplex=False)
    p = ctx.Process(target=_child, args=(there, job, args), daemon=True)
    p.start(); there.close()
    assert here.recv() == 'begun'
    return p, here


def run(job, *args):
    "Run `job` to its end in a child and return how long it took; raises what it raises"
    p, conn = _start(job, args)
    begin, error = time.time(), _last(conn)
    p.join()
    if error: raise error
    return time.time() - begin


def kill(after, job, *args):
    "Run `job` in a child and SIGKILL it after some seconds; True if that hit it, False if it was faster"
    p, conn = _start(job, args)
    p.join(after); p.kill(); p.join()
    done = conn.poll() and (e := _last(conn)) is not EOFError
    if done and e: raise e
    return not done


def _last(conn, patience=300):
    "What a child says in the end; EOFError, the class, if it died; a child that hangs fails the test instead of hanging it"
    assert conn.poll(patience), f'a child said nothing for {patience} s'
    try: return conn.recv()
    except EOFError: return EOFError


def killed_by_itself(job, *args):
    "Run `job` in a child that may kill itself; True if it did"
    p, conn = _start(job, args)
    error = _last(conn); p.join()
    if error is EOFError: return True
    if error: raise error
    return False


def contents(folder):
    "{name: bytes} of the files of a run or store, but for times of day and durations; unfinished files, which begin with a dot, do not count"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file() and not p.name.startswith('.')}
    return {k: _timeless(k, v) for k, v in files.items() if Path(k).name not in ('log.csv', 'report.html')}


def _timeless(name, data):
    if name.endswith('metrics.json'): return {k: v for k, v in json.loads(data).items() if k != 'seconds'}
    if name.endswith('centroids.npz'): return _entries(data)  # the rest tells when files were written
    if name.endswith('history.csv'): return [l.rpartition(',')[0] for l in data.decode().splitlines()]  # the last column is `seconds`
    return data


def _entries(data):
    with np.load(io.BytesIO(data)) as z: return z['entries'].tobytes()


def assert_same(a, b):
    "Two folders hold the same, bit by bit"
    a, b = contents(a), contents(b)
    assert not (d := sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))), f'these differ: {d}'
