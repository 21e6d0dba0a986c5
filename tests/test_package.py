"The package as a whole: what is stored is fresh, what is stated agrees, and what is shipped works."

import ast, configparser, importlib.metadata, json, os, re, shutil, subprocess, sys, venv
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
scripts = Path(sys.executable).parent
modules = sorted(p for p in (root / 'selftrain_nb').glob('*.py') if not p.name.startswith('_'))
notebooks = sorted(p for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
each_module = pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)


def run(*args, **kwargs):
    "Run a command; its output, or a failed test that shows it"
    p = subprocess.run(
        [str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800, **kwargs
    )
    assert p.returncode == 0, p.stdout
    return p.stdout


def project_files():
    "The files of the project, as git sees them: tracked, or new and not ignored"
    names = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=root).split('\0')
    return [root / n for n in names if n and (root / n).is_file()]


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }


def differences(a, b):
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


@pytest.fixture
def copy(tmp_path):
    "A copy of the project that a test may change"
    for p in project_files():
        to = tmp_path / 'project' / p.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(p, to)
    return tmp_path / 'project'


# What is stored is fresh


@pytest.mark.parametrize(
    'command',
    [(scripts / 'nbdev-export',), (scripts / 'nbdev-clean',), (sys.executable, 'tools/readme.py')],
    ids=['export', 'clean', 'readme'],
)
def test_nothing_is_stale(copy, command):
    before = contents(copy)
    run(*command, cwd=copy)
    assert not differences(before, contents(copy)), 'stale: see "Change something" in CONTRIBUTING.md'


def test_a_stale_readme_is_noticed(copy):
    (copy / 'README.md').write_text('old')
    p = subprocess.run([sys.executable, 'tools/readme.py', '--check'], cwd=copy, stderr=subprocess.PIPE, text=True,
                       timeout=300)
    assert p.returncode == 1 and 'README.md' in p.stderr and (copy / 'README.md').read_text() == 'old'


@each_notebook
def test_no_stored_error(path):
    assert not [o['ename'] for c in cells(path) for o in c.get('outputs', []) if o['output_type'] == 'error']


def test_no_path_of_a_machine():
    machine = re.compile(r'(?<![\w.)}*~-])/(?:work|home|root|tmp|Users|private|mnt)/\S*')
    texts = [
        p
        for p in project_files()
        if p.suffix in ('.py', '.ipynb', '.md', '.csv', '.html', '.json', '.toml', '.ini', '.yml', '.yaml')
    ]
    assert not {str(p.relative_to(root)): f for p in texts if (f := machine.findall(p.read_text(encoding='utf-8')))}


def test_links_of_the_readme():
    links = re.findall(r'\]\((?!\w+:|#)([^)\s#]+)', (root / 'README.md').read_text(encoding='utf-8'))
    assert links and not [l for l in links if not (root / l).exists()]


def test_the_readme_tells_the_results(monkeypatch):
    "The table stored in index.ipynb is what results/*.csv say now"
    monkeypatch.chdir(root / 'nbs')
    (cell,) = [c for c in cells(root / 'nbs' / 'index.ipynb') if 'def results(' in ''.join(c['source'])]
    names = {}
    exec(''.join(cell['source']), names)
    assert ''.join(cell['outputs'][0]['data']['text/markdown']) == names['results'](), 'run nbs/index.ipynb again'


def shown(outputs):
    "Tables and values of a cell, without its pictures"
    found = [o['data'] for o in outputs if 'image/png' not in o.get('data', {'image/png': ''})]
    return [''.join(d.get('text/html', d['text/plain'])).strip() for d in found]


def test_the_results_page_tells_the_results(tmp_path):
    "The tables stored in 49_results.ipynb are what results/*.csv say now; run in a process of its own"
    code = [c for c in cells(root / 'nbs' / '49_results.ipynb') if c['cell_type'] == 'code']
    file, out = tmp_path / 'cells.json', tmp_path / 'outputs.json'
    file.write_text(json.dumps([''.join(c['source']) for c in code]))
    run(
        sys.executable,
        '-c',
        'import json, sys\nfrom execnb.shell import CaptureShell\nshell = CaptureShell()\n'
        'found = [shell.run(c) for c in json.load(open(sys.argv[1]))]\njson.dump(found, open(sys.argv[2], "w"))',
        file,
        out,
        cwd=root / 'nbs',
    )
    now = [shown(o) for o in json.loads(out.read_text())]
    assert sum(map(len, now)) > 5
    assert now == [shown(c['outputs']) for c in code], 'run nbs/49_results.ipynb again'


def test_links_between_notebooks():
    lost = []
    for p in notebooks:
        text = '\n'.join(''.join(c['source']) for c in cells(p) if c['cell_type'] == 'markdown')
        links = re.findall(r'\]\((?!\w+:|#)([^)\s#]+)', text)
        lost += [f'{p.name}: {link}' for link in links if not (p.parent / link).exists()]
    assert not lost


# What is stated agrees


@each_module
def test_public_names(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    stated = {
        n
        for s in tree.body
        if isinstance(s, ast.Assign) and getattr(s.targets[0], 'id', '') == '__all__'
        for n in ast.literal_eval(s.value)
    }
    defined = [s for s in tree.body if isinstance(s, (ast.FunctionDef, ast.ClassDef)) and not s.name.startswith('_')]
    patches = {s.name for s in defined if any(ast.unparse(d).startswith('patch') for d in s.decorator_list)}
    assert not {s.name for s in defined} - patches - stated, 'public, but not in __all__'
    assert not [s.name for s in defined if not ast.get_docstring(s)], 'without a docstring'


def imports(path):
    "What a module imports: `.name` for a sibling, else the top-level package"
    for s in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(s, ast.Import):
            names = [a.name for a in s.names]
        elif isinstance(s, ast.ImportFrom) and (s.level or s.module.split('.')[0] == 'selftrain_nb'):
            inner = (s.module or '').removeprefix('selftrain_nb').strip('.')
            names = ['selftrain_nb.' + n for n in ([inner] if inner else [a.name for a in s.names])]
        elif isinstance(s, ast.ImportFrom):
            names = [s.module]
        else:
            continue
        for n in names:
            yield '.' + n.split('.')[1] if n.startswith('selftrain_nb.') else n.split('.')[0]


ORDER = """
files images labels rows table check drawing scenes codes layout datasets archives videos public mapping
metrics augment journal centroids reading streams mixing tensors encoders losses models ema checkpoint
training costs crops views outputs predictor predict store labelling calibration pseudo recipe arms runs rounds
selftrain heads domains replay transfer html pages evidence doubts pictures inspection report widgets
annotation corrections export arguments cli
""".split()


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(p.stem for p in modules if p.stem != 'all')


@each_module
def test_imports_go_down(path):
    if path.stem == 'all':
        return
    inner = [m[1:] for m in imports(path) if m[0] == '.' and not m.startswith('.__')]
    above = [m for m in inner if ORDER.index(m) >= ORDER.index(path.stem)]
    assert not above, f'{path.stem} imports from above: {above}'


@each_module
def test_a_notebook_is_a_module_of_the_same_name(path):
    if path.stem != 'all':
        assert re.search(
            rf'File to edit: \.\./nbs/\d\d_{path.stem}\.ipynb\.$', path.read_text(encoding='utf-8'), flags=re.M
        )


LINE = 120


@pytest.mark.parametrize('folder', ['nbs', 'tests', 'benchmarks'])
def test_no_line_is_wider_than_a_page(folder):
    wide = []
    for p in project_files():
        if p.parent.name not in (folder, 'browser') or folder not in p.parts:
            continue
        if p.suffix == '.ipynb':
            texts = [''.join(c['source']) for c in cells(p) if c['cell_type'] == 'code']
        elif p.suffix in ('.py', '.sh'):
            texts = [p.read_text(encoding='utf-8')]
        else:
            continue
        wide += [f'{p.name}: {l[:60]}' for t in texts for l in t.splitlines() if len(l) > LINE]
    assert not wide


def exported(path):
    "Exported cells of a notebook"
    return [
        ''.join(c['source'])
        for c in cells(path)
        if c['cell_type'] == 'code' and re.search(r'^#\s*\| *export', ''.join(c['source']), flags=re.M)
    ]


def is_list_of_fields(source):
    "A cell whose one statement is a dataclass, or a table of constants"
    body = ast.parse(source).body
    return all(
        isinstance(n, (ast.ClassDef, ast.Assign)) and (isinstance(n, ast.Assign) or n.decorator_list) for n in body
    )


@each_notebook
def test_exported_cells_are_short(path):
    long = [
        s[:80]
        for s in exported(path)
        if not is_list_of_fields(s)
        and (len([l for l in s.splitlines() if l.strip() and not l.strip().startswith('#')]) > 25 or len(s) > 1500)
    ]
    assert not long


@each_module
def test_functions_have_few_parameters(path):
    "At most 8, then a dataclass"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    functions = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef) and (not n.name.startswith('_') or n.name == '__init__')
    ]

    def count(f):
        return len([a for a in f.args.args + f.args.kwonlyargs if a.arg not in ('self', 'cls')])

    assert not {f.name: count(f) for f in functions if count(f) > 8}


def settings():
    c = configparser.ConfigParser(delimiters=['='])
    c.read(root / 'settings.ini', encoding='utf-8')
    return c['DEFAULT']


def test_requirements():
    wants = [
        re.fullmatch(r'([a-z0-9-]+)>=[\d.]+,<\d+', r)
        for r in (''.join(settings()[k] for k in settings() if k.endswith('requirements'))).split()
    ]
    assert all(wants), 'a requirement is written name>=lowest,<next-major'
    of = importlib.metadata.packages_distributions()
    used = {m for p in modules for m in imports(p) if m[0] != '.'} - sys.stdlib_module_names - {'selftrain_nb'}
    named = {m[1] for m in map(re.compile('([a-z-]+)').match, settings()['requirements'].split())}
    optional = {'pillow_heif', 'onnx', 'onnxruntime', 'IPython'}
    assert not [m for m in used - optional if not {d.lower().replace('_', '-') for d in of[m]} & named], (
        'imported, but not a requirement'
    )


def test_the_version_is_stated_once():
    said = [
        p.name
        for p in (root / 'settings.ini', root / 'setup.py')
        if re.search(r'^\s*version\s*=', p.read_text(), flags=re.M)
    ]
    project = (root / 'pyproject.toml').read_text().split('[project]')[1].split('\n[')[0]
    assert not said and not re.search(r'^version', project, flags=re.M)
    assert re.search(
        r'^__version__ = "\d+\.\d+\.\d+"$', (root / 'selftrain_nb' / '__init__.py').read_text(), flags=re.M
    )


# What is shipped works


def front_page():
    "The Python lines of the first page: the method, and the same as one call"
    blocks = re.findall(r'```python\n(.*?)```', (root / 'README.md').read_text(encoding='utf-8'), flags=re.S)
    small = {
        'scenes(n=256)': "scenes(n=16, n_val=2, n_test=2, size=(32, 64))",
        '(20)': '(1)',
        '(96, 128)': '(32, 32)',
        'keep_labels(1/8': 'keep_labels(1/2',
        'bs=(8, 8)': 'bs=(2, 2)',
        'Stream(few)': 'Stream(few, n=4)',
        'Recipe(crop=(96, 128), teachers=1)': 'Recipe(crop=(96, 128), bs=2, n=4, epochs=(1, 1), teachers=1)',
    }
    for old, new in sorted(small.items(), key=lambda o: -len(o[0])):
        assert any(old in b for b in blocks), old
        blocks = [b.replace(old, new) for b in blocks]
    return [b.replace("'runs/", "'") for b in blocks]


def test_the_front_page_runs_and_equals_self_train(tmp_path):
    "Only the numbers are smaller; by hand and by call the weights are the same, bit for bit"
    by_hand, call = front_page()
    same = (
        "assert Predictor.of(teacher).hash == run.predictor('teacher').hash\n"
        "assert Predictor.of(student).hash == run.predictor('student').hash\nassert 'control' in run.done\n"
    )
    (tmp_path / 'front.py').write_text(by_hand + call + same)
    run(sys.executable, 'front.py', cwd=tmp_path)
    assert (tmp_path / 'demo' / 'report.html').exists()


def test_the_wheel_in_a_clean_environment(copy, tmp_path):
    """Built and installed beside the dependencies only, every module imports, without the network, from where it
    was installed"""
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp_path, copy)
    (wheel,) = tmp_path.glob('*.whl')
    venv.create(tmp_path / 'clean', symlinks=os.name != 'nt')
    python = tmp_path / 'clean' / scripts.name / 'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel)
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    (site / 'dependencies.pth').write_text(
        os.path.dirname(os.path.dirname(pytest.__file__))
    )  # its own .pth files are not read: no editable install
    (tmp_path / 'check.py').write_text(CHECK)
    run(python, '-I', tmp_path / 'check.py', site, *[p.stem for p in modules], cwd=tmp_path)


CHECK = '''
import importlib, importlib.metadata, sys
from pathlib import Path

def offline(event, args): assert event not in ('socket.connect', 'socket.getaddrinfo'), (event, args)
sys.addaudithook(offline)
site, *names = sys.argv[1:]
for name in sorted(names, key=lambda n: n not in ('labels', 'table', 'scenes', 'datasets')):
    module = importlib.import_module('selftrain_nb.' + name)
    assert Path(module.__file__).parent == Path(site)/'selftrain_nb', module.__file__
    assert not {'labels', 'table', 'scenes', 'datasets'} & {name} or 'torch' not in sys.modules, name + ' imports torch'
dist = importlib.metadata.distribution('selftrain_nb')
assert dist.version == sys.modules['selftrain_nb'].__version__ and str(dist.locate_file('')) == site
for e in dist.entry_points:
    if e.group == 'console_scripts': assert callable(e.load()), e
'''
