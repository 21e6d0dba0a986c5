#!/usr/bin/env python3
"""Make README.md from nbs/index.ipynb, with nbconvert. `--check` writes nothing and exits 1 when README.md is stale.

Flags as in nbdev: `#| hide` drops a cell, `#| echo: false` keeps its output only. Links and pictures of the notebook are
relative to nbs/, those of README.md to the root. Pictures drawn by cells go to nbs/images/index-N.png.
"""
import posixpath, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
index, images = root/'nbs'/'index.ipynb', root/'nbs'/'images'
banner = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n'
kinds = 'text/markdown', 'image/png', 'text/plain'  # of one output, the first of these that it has

def prepare(cell):
    "The cell as a reader sees it, or None"
    if cell.cell_type != 'code': return cell
    flags = ' '.join(re.findall(r'^#\| *(.+)$', cell.source, flags=re.M))
    if re.search(r'\bhide\b|\bdefault_exp\b|include: false', flags): return None
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()
    cell.metadata = dict(transient=dict(remove_source='echo: false' in flags))
    for o in cell.outputs:
        if 'data' in o: o.data = {k: o.data[k] for k in [k for k in kinds if k in o.data][:1]}
    return cell

def relocate(match):
    "A markdown link seen from the root"
    text, target = match.groups()
    local = not re.match(r'\w+:|#|/', target)
    return f"{text}({posixpath.normpath('nbs/' + target) if local else target})"

def make():
    "README.md's text and the pictures it shows, {path: bytes}"
    nb = nbformat.read(index, as_version=4)
    nb.cells = [c for c in map(prepare, nb.cells) if c is not None]
    nb.metadata['language_info'] = dict(name='python')
    text, resources = MarkdownExporter().from_notebook_node(nb)
    files = {}
    for n, (name, data) in enumerate(resources['outputs'].items(), 1):
        files[images/f'index-{n}.png'] = data
        text = text.replace(f'({name})', f'(images/index-{n}.png)')
    text = re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', relocate, text)
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', text, flags=re.M)).strip()
    return {root/'README.md': (banner + text + '\n').encode(), **files}

def main(check):
    "Write what differs, or with `check` name it"
    files = make()
    old = [p for p in images.glob('index-*.png') if p not in files]
    stale = [p for p, data in files.items() if not p.exists() or p.read_bytes() != data]
    if check: return f"stale, run tools/readme.py: {', '.join(str(p.relative_to(root)) for p in stale + old)}" if stale + old else 0
    for p in old: p.unlink()
    for p in stale:
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(files[p])

if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
