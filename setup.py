"""Package metadata of infobatch_mm."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r"__version__ = '(.+)'", (HERE / 'infobatch_mm/__init__.py').read_text()
).group(1)

# mmengine, mmcv and mmsegmentation exist in two families that overwrite each
# other, so the base requirements name neither: choose an extra.
EXTRAS = {
    'onedl': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmsegmentation>=1.4.2',
    ],
    'openmmlab': [
        'mmengine==0.10.7',
        'mmcv>=2.0.0rc4,<2.2.0',
        'mmsegmentation==1.2.2',
        'ftfy',
        'regex',
        'setuptools<82',  # mmengine 0.10.7 needs pkg_resources
    ],
    'quickstart': ['scikit-learn'],
    'tests': ['hypothesis', 'mypy', 'pytest', 'ruff', 'scikit-learn'],
}

setup(
    name='infobatch_mm',
    version=VERSION,
    description='InfoBatch dynamic data pruning for OpenMMLab',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['infobatch_mm', 'infobatch_mm.*']),
    package_data={'infobatch_mm': ['py.typed']},
    install_requires=['torch>=2.1', 'numpy', 'rich', 'matplotlib'],
    extras_require=EXTRAS,
    classifiers=[
        'Development Status :: 4 - Beta',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
