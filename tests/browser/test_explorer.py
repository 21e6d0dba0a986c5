"""The explorer of pseudo labels as a person meets it: JupyterLab in Chromium, a slider dragged with the mouse.

A screenshot is kept in `artefacts/`. Skipped where there is no Chromium or Chrome. Every wait is bounded by `PATIENCE`,
and ends as soon as what it waits for is there: on a fast machine the whole takes half a minute.
"""
import json, os, shutil, socket, subprocess, sys, time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
import torch

from selftrain_nb.models import seg_model
from selftrain_nb.predict import Predictor
from selftrain_nb.pseudo import LabelJob, PseudoStore, pseudo_label
from selftrain_nb.scenes import scenes

PATIENCE = 400  # seconds for the slowest step, the import of fastai in a new kernel: more than ten times what it takes
CHROMES = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
CHROMIUM = next(filter(None, map(shutil.which, CHROMES)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium or Chrome on this machine')
ARTEFACTS = Path(__file__).parents[2]/'artefacts'
CODE = "from selftrain_nb.widgets import explore_pseudo\nbox = explore_pseudo('pseudo', start=.1)\nbox"


def wait_until(true, what, pause=.3):
    "What `true` returns when it is true for the first time"
    end = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < end, f'{what} did not happen within {PATIENCE} seconds'
        time.sleep(pause)
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A store of pseudo labels, and a notebook that explores it"
    folder = tmp_path_factory.mktemp('browser')
    ds = scenes(n=6, n_val=0, n_test=0, size=(48, 96), path=folder/'scenes').keep_labels(2, by='image')
    torch.manual_seed(0)
    teacher = Predictor(seg_model(len(ds.space), 'test_byobnet'), ds.space)
    pseudo_label(teacher, ds.unlabelled, folder/'pseudo', job=LabelJob(progress=False))
    cell = dict(cell_type='code', id='one', metadata={}, execution_count=None, outputs=[], source=CODE)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    notebook = dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (folder/'explore.ipynb').write_text(json.dumps(notebook))
    return folder


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def answers(url):
    try: return build_opener(ProxyHandler({})).open(url, timeout=20).status == 200
    except (URLError, OSError): return False

def start_lab(folder, port):
    "A JupyterLab that serves the folder, with settings of its own, and asks nobody for news"
    options = ['--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', f'--ServerApp.root_dir={folder}',
               '--IdentityProvider.token=', '--LabApp.news_url=None', '--LabApp.extension_manager=readonly',
               '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    own = {f'JUPYTER_{k}_DIR': str(folder/k) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    own |= {f'JUPYTERLAB_{k}_DIR': str(folder/k) for k in ('SETTINGS', 'WORKSPACES')}
    with open(folder/'lab.log', 'w') as log:
        args = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', *options]
        return subprocess.Popen(args, stdout=log, stderr=log, env={**os.environ, **own})

@pytest.fixture(scope='module')
def lab(folder):
    "The address of a JupyterLab"
    port = free_port()
    server, url = start_lab(folder, port), f'http://127.0.0.1:{port}'
    def up():
        assert server.poll() is None, (folder/'lab.log').read_text()[-2000:]
        return answers(f'{url}/api/status')
    try:
        wait_until(up, 'the start of JupyterLab')
        yield url
    finally:
        server.terminate()
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()


def run_first_cell(page):
    "Press Shift+Enter when the kernel is there, and again if nobody was listening yet"
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    cell = page.locator('.jp-Notebook .jp-CodeCell').first
    def begun():
        cell.locator('.cm-content').click()
        page.keyboard.press('Shift+Enter')
        page.wait_for_timeout(5000)
        return cell.locator('.jp-InputPrompt').inner_text().strip() != '[ ]:'  # a star while it runs, then a number
    wait_until(begun, 'the first cell')

@pytest.fixture(scope='module')
def page(lab):
    "The notebook in a browser, its cell run"
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    with sync_playwright() as p:
        args = ['--no-sandbox', '--no-proxy-server']
        browser = p.chromium.launch(executable_path=CHROMIUM, args=args, timeout=PATIENCE * 1000)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f'{lab}/lab/tree/explore.ipynb?reset')
        run_first_cell(page)
        for what in ('.widget-image', '.widget-html table'): page.locator(what).first.wait_for()
        yield page
        browser.close()


def picture(page): return page.locator('img.widget-image').get_attribute('src')

def counts(page): return page.locator('.widget-html table tr').all_inner_texts()[1:]  # a row for each class

def slider(page, name): return page.locator('.widget-slider').filter(has_text=name)

def drag(page, slider, share):
    "Take a slider's handle and pull it to a share of its way"
    slider.scroll_into_view_if_needed()
    handle, way = slider.locator('.noUi-handle').bounding_box(), slider.locator('.noUi-target').bounding_box()
    page.mouse.move(handle['x'] + handle['width'] / 2, handle['y'] + handle['height'] / 2)
    page.mouse.down()
    page.mouse.move(way['x'] + share * way['width'], way['y'] + way['height'] / 2, steps=5)
    page.mouse.up()

def changed(page, what, before):
    "What it shows when it shows something else, and has come to rest"
    last = [before]
    def at_rest():
        now = what(page)
        same, last[0] = now == last[0] and now != before, now
        return same
    wait_until(at_rest, 'a change in the page', pause=1)
    return last[0]

def cells(row):
    "('road', 'kept % of the image', 'of all')"
    return row.strip('■ ').split('\t')

def pixels(row):
    "Pixels of a class in this image"
    text = cells(row)[1]
    return int(text.split('of')[-1].replace(' ', '')) if 'of' in text else 0


def test_the_slider_moves_picture_and_counts(page):
    before, seen = counts(page), picture(page)
    name = cells(max(before, key=pixels))[0]
    drag(page, slider(page, name), 1.)
    def ended(page): return [r for r in counts(page) if cells(r)[0] == name and cells(r)[2].startswith('0 %')]
    wait_until(lambda: ended(page), 'the end of the slider')  # nothing is kept there
    after = changed(page, counts, before)
    changed(page, picture, seen)
    was, now = ({cells(r)[0]: cells(r)[1:] for r in rows} for rows in (before, after))
    assert was.pop(name) != (left := now.pop(name)) and all(c.startswith('0 %') for c in left)
    assert was == now  # no other class has moved
    assert float(slider(page, name).locator('.widget-readout').inner_text()) > 1
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS/'explore_pseudo.png')

def test_the_next_image_is_another(page):
    seen, said = picture(page), counts(page)
    drag(page, slider(page, 'image'), 1.)
    changed(page, picture, seen)
    changed(page, counts, said)

def test_a_marked_image_is_left_out(page, folder):
    page.locator('button.widget-toggle-button').click()
    wait_until(lambda: PseudoStore.open(folder/'pseudo').marked, 'the mark')
    store = PseudoStore.open(folder/'pseudo')
    assert len(store.marked) == 1 and len(store.select()) == len(store) - 1
