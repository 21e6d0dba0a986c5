"The package's metadata, read from settings.ini. `nbdev_test`, the name that nbdev had for nbdev-test, needs extra dev."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

extras = {k: cfg[f'{k}_requirements'].split() for k in ('weights', 'export')}
extras['dev'] = cfg['dev_requirements'].split() + extras['weights'] + extras['export']

setup(
    description=cfg['description'], author=cfg['author'], license_expression=cfg['license'],
    keywords=cfg['keywords'].split(),
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires='>=' + cfg['min_python'], packages=find_packages(include=['selftrain_nb', 'selftrain_nb.*']),
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split() + ['nbdev_test=nbdev.test:nbdev_test'],
                  'nbdev': ['selftrain_nb=selftrain_nb._modidx:d']})
