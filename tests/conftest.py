"What all tests share: a home of their own, the same threads in every process, no display, and no network."

import atexit, os, shutil, sys, tempfile

home = tempfile.mkdtemp(prefix='selftrain_nb-')
atexit.register(shutil.rmtree, home, ignore_errors=True)
nowhere = 'http://127.0.0.1:9'  # processes that a test starts inherit this proxy, where nobody answers
os.environ.update(
    SELFTRAIN_NB_HOME=f'{home}/selftrain_nb',
    HF_HOME=f'{home}/hf',
    TORCH_HOME=f'{home}/torch',
    FASTAI_HOME=f'{home}/fastai',
    MPLBACKEND='Agg',
    HF_HUB_OFFLINE='1',
    http_proxy=nowhere,
    https_proxy=nowhere,
    HTTP_PROXY=nowhere,
    HTTPS_PROXY=nowhere,
)
os.environ.setdefault('OMP_NUM_THREADS', '1')  # results are bit-identical for the same number of threads


class NetworkUsed(RuntimeError):
    "A test reached for the network"


def offline(event, args):
    "An audit hook: look no name up and connect to nothing, except on this machine"
    if event == 'socket.getaddrinfo':
        host, port = args[:2]
    elif event == 'socket.connect' and isinstance(args[1], tuple):
        host, port = args[1][:2]
    else:
        return
    if host not in (None, '', b'', 'localhost', b'localhost', '127.0.0.1', b'127.0.0.1', '::1') or port == 9:
        raise NetworkUsed(f'{event} {host}:{port}: tests run offline')


sys.addaudithook(offline)
