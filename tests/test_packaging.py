"""What an installed wheel holds for mim, and what mim lists."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would unpack, made by the step that fills a wheel."""
    base = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, 'setup.py', '--quiet']
    command += ['build', '--build-base', str(base / 'build')]
    command += ['install_lib', '--install-dir', str(base / 'site-packages')]
    subprocess.run(command, cwd=REPO, check=True)
    return base / 'site-packages'


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_package_is_whole(site_packages):
    assert files_below(site_packages / 'infobatch_mm') >= files_below(
        REPO / 'infobatch_mm'
    )


# openmim looks in the package. onedl-mim looks in the folder of the file that
# is first in RECORD, which pip sorts.
@pytest.mark.parametrize('folder', ['infobatch_mm/.mim', '_infobatch_mm'])
def test_mim_finds_configs_tools_and_index(folder, site_packages):
    mim = site_packages / folder
    for name in ('configs', 'tools'):
        assert files_below(mim / name) == files_below(REPO / name)
    assert (mim / 'model-index.yml').is_file()


def test_folder_of_the_first_installed_file(site_packages):
    dist_info = 'infobatch_mm-1.0.dist-info/METADATA'
    record = sorted([dist_info, *files_below(site_packages)])
    assert record[0].split('/')[0] == '_infobatch_mm'


def test_source_tree_gets_no_copy(site_packages):
    assert not (REPO / 'infobatch_mm' / '.mim').exists()


def test_names_of_configs_are_unique():
    names = [path.name for path in REPO.glob('configs/*/*.py')]
    assert len(names) == len(set(names))


def test_index_lists_the_pruned_configs():
    index = yaml.safe_load((REPO / 'model-index.yml').read_text())
    listed = {model['Name']: model['Config'] for model in index['Models']}
    assert listed == {
        path.stem: path.relative_to(REPO).as_posix()
        for path in REPO.glob('configs/*/infobatch*.py')
    }
    [collection] = index['Collections']
    assert (REPO / collection['README']).is_file()
    assert {model['In Collection'] for model in index['Models']} == {
        collection['Name']
    }
