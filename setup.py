"""Package metadata of infobatch_mm."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.install_lib import install_lib

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
    'quickstart': ['scikit-learn'],
    'tests': ['hypothesis', 'mypy', 'pytest', 'ruff', 'scikit-learn'],
}

# What `mim train infobatch_mm CONFIG` and `mim search infobatch_mm` look for.
MIM_FILES = ('configs', 'tools', 'model-index.yml')
# Where. openmim looks in the package; onedl-mim in the folder of the first
# installed file, by name. That would be infobatch_mm-VERSION.dist-info, so a
# folder that sorts before it holds a second copy.
MIM_FOLDERS = ('infobatch_mm/.mim', '_infobatch_mm')


class InstallWithMim(install_lib):
    """Add what mim looks for to a wheel.

    Neither the source tree nor its build folder gets a copy. An editable
    install needs none either: there onedl-mim looks in the source tree, where
    a second config of the same name would be an error.
    """

    def run(self) -> None:
        """Install the package, then the copies for mim beside it."""
        super().run()
        for folder in MIM_FOLDERS:
            copy_mim_files(Path(self.install_dir) / folder)


def copy_mim_files(target: Path) -> None:
    """Copy the files for mim into a new folder."""
    target.mkdir(parents=True)
    for name in MIM_FILES:
        source = HERE / name
        if source.is_dir():
            ignored = shutil.ignore_patterns('__pycache__')
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy2(source, target / name)


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
    cmdclass={'install_lib': InstallWithMim},
    install_requires=[
        'torch>=2.1',
        'numpy>=1.24',
        'rich',
        'matplotlib',
        'jinja2',
    ],
    extras_require=EXTRAS,
    classifiers=[
        'Development Status :: 4 - Beta',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
