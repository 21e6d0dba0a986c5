"""The explorer of pseudo labels as a person meets it: JupyterLab in Chromium, a slider dragged with the mouse.

A screenshot is kept in `artefacts/`. Skipped where there is no Chromium or Chrome.
"""
import json, os, shutil, socket, subprocess, sys, time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest

from selftrain_nb.all import *

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium or Chrome on this machine')
ARTEFACTS = Path(__file__).parents[2]/'artefacts'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A store of pseudo labels, and a notebook that explores it"
    folder = tmp_path_factory.mktemp('browser')
    ds = scenes(n=6, n_val=0, n_test=0, size=(48, 96), path=folder/'scenes').keep_labels(2, by='image')
    teacher = seg_learner(mixed_dls(ds, n=64, crop=(48, 64), bs=8), 'test_byobnet')
    with teacher.no_bar(), teacher.no_logging(): teacher.fit_one_cycle(2)
    pseudo_label(teacher, ds.unlabelled, folder/'pseudo', progress=False)
    code = "from selftrain_nb.all import *\nbox = explore_pseudo('pseudo', start=.1)\nbox"
    cell = dict(cell_type='code', id='one', metadata={}, execution_count=None, outputs=[], source=code)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    (folder/'explore.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    return folder


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def answers(url):
    try: return build_opener(ProxyHandler({})).open(url, timeout=5).status == 200
    except (URLError, OSError): return False

@pytest.fixture(scope='module')
def lab(folder):
    "The address of a JupyterLab that serves the folder and asks nobody for news"
    port = free_port()
    args = ['--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--IdentityProvider.token=', f'--ServerApp.root_dir={folder}',
            '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.extension_manager=readonly']
    own = {f'JUPYTER_{k}_DIR': str(folder/k) for k in ('CONFIG', 'DATA', 'RUNTIME')} | dict(JUPYTERLAB_SETTINGS_DIR=str(folder/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(folder/'workspaces'))
    with open(folder/'lab.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *args], stdout=log, stderr=log, env={**os.environ, **own})
    url = f'http://127.0.0.1:{port}'
    try:
        end = time.time() + 60
        while not answers(f'{url}/api/status'):
            assert time.time() < end and server.poll() is None, (folder/'lab.log').read_text()[-2000:]
            time.sleep(.3)
        yield url
    finally: server.terminate(); server.wait(20)


def run_first_cell(page):
    "Press Shift+Enter when the kernel is there, and again if nobody was listening yet"
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    cell = page.locator('.jp-Notebook .jp-CodeCell').first
    for _ in range(12):
        cell.locator('.cm-content').click()
        page.keyboard.press('Shift+Enter')
        page.wait_for_timeout(5000)
        if cell.locator('.jp-InputPrompt').inner_text().strip() != '[ ]:': return  # a star while it runs, then a number

@pytest.fixture(scope='module')
def page(lab):
    "The notebook in a browser, its cell run"
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--no-proxy-server'])
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.set_default_timeout(60_000)
        page.goto(f'{lab}/lab/tree/explore.ipynb?reset')
        run_first_cell(page)
        page.locator('.widget-image').wait_for(); page.locator('.widget-html table').wait_for()
        yield page
        browser.close()


def picture(page): return page.locator('img.widget-image').get_attribute('src')

def counts(page): return page.locator('.widget-html table tr').all_inner_texts()[1:]  # a row for each class

def slider(page, name): return page.locator('.widget-slider').filter(has_text=name)

def drag(page, slider, share):
    "Take a slider's handle and pull it to a share of its way"
    handle, way = slider.locator('.noUi-handle').bounding_box(), slider.locator('.noUi-target').bounding_box()
    page.mouse.move(handle['x'] + handle['width'] / 2, handle['y'] + handle['height'] / 2); page.mouse.down()
    page.mouse.move(way['x'] + share * way['width'], way['y'] + way['height'] / 2, steps=5); page.mouse.up()

def changed(page, what, before):
    "What it shows when it shows something else, and has come to rest"
    end, now = time.time() + 30, before
    while now == before or now != what(page):
        assert time.time() < end, 'nothing changed within 30 seconds'
        now = what(page); time.sleep(.5)
    return now

def cells(row):
    "('road', 'kept % of the image', 'of all')"
    return row.strip('■ ').split('\t')

def pixels(row): return int(cells(row)[1].split('of')[-1].replace(' ', '')) if 'of' in cells(row)[1] else 0


def test_the_slider_moves_picture_and_counts(page):
    before, seen = counts(page), picture(page)
    name = cells(max(before, key=pixels))[0]
    drag(page, slider(page, name), 1.)
    after = changed(page, counts, before)
    changed(page, picture, seen)
    was, now = ({cells(r)[0]: cells(r)[1:] for r in rows} for rows in (before, after))
    assert was.pop(name) != (left := now.pop(name)) and all(c.startswith('0 %') for c in left)  # nothing is as sure as that
    assert was == now                                                                          # and no other class has moved
    assert float(slider(page, name).locator('.widget-readout').inner_text()) == 1
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS/'explore_pseudo.png')

def test_the_next_image_is_another(page):
    seen, said = picture(page), counts(page)
    drag(page, slider(page, 'image'), 1.)
    changed(page, picture, seen); changed(page, counts, said)

def test_a_marked_image_is_left_out(page, folder):
    page.locator('button.widget-toggle-button').click()
    end = time.time() + 30
    while not PseudoStore.open(folder/'pseudo').marked and time.time() < end: time.sleep(.3)
    store = PseudoStore.open(folder/'pseudo')
    assert len(store.marked) == 1 and len(store.select()) == len(store) - 1
