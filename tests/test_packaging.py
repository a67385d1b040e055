"""What the sdist and the wheel hold, and where mim finds its part."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from email import message_from_string
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[1]
# Where openmim looks, in the package, and where onedl-mim does.
MIM = 'infobatch_mm/.mim'
DOORS = '+infobatch_mm/.mim'
TOOLS = {'prepare_data.py', 'report.py', 'test.py', 'train.py'}


@pytest.fixture(scope='module')
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the sdist would hold."""
    base = tmp_path_factory.mktemp('sdist')
    command = [sys.executable, 'setup.py', '--quiet', 'egg_info']
    subprocess.run([*command, '--egg-base', str(base)], cwd=REPO, check=True)
    [listing] = base.glob('*/SOURCES.txt')
    for name in listing.read_text().splitlines():
        if '.egg-info' not in name:
            target = base / 'source' / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target)
    return base / 'source'


BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools puts its own command in its place
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


@pytest.fixture(scope='module')
def built(sdist: Path) -> Path:
    """The folder of the sdist and the wheel, built as pip builds them."""
    folder = sdist.parent / 'dist'
    command = [sys.executable, '-c', BUILD, str(folder)]
    subprocess.run(command, cwd=sdist, check=True, capture_output=True)
    return folder


def install(wheel: Path, *options: str | Path) -> None:
    """Install a wheel, with what is already there and no network."""
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    command += [*options, '--no-index', '--no-compile', '--quiet', wheel]
    subprocess.run(command, check=True)


@pytest.fixture(scope='module')
def distribution(built: Path) -> metadata.Distribution:
    """What pip installs of the wheel."""
    prefix = built.parent / 'prefix'
    [wheel] = built.glob('*.whl')
    # Else pip would remove the installation that the tests run with.
    options = '--no-deps', '--ignore-installed', '--prefix', prefix
    install(wheel, 'install', *options)
    [found] = prefix.rglob('infobatch_mm-*.dist-info')
    return metadata.Distribution.at(found)


@pytest.fixture(scope='module')
def site_packages(distribution: metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file('.')))


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def relative_links(text: str) -> set[str]:
    links = re.findall(r'\]\(([^)#]+)', text)
    return {link for link in links if not link.startswith('http')}


def test_the_sdist_holds_what_the_readme_mentions(sdist):
    links = relative_links((REPO / 'README.md').read_text())
    assert len(links) >= 5
    for name in (*links, 'Makefile', 'CONTRIBUTING.md', 'tests/conftest.py'):
        assert (sdist / name).exists(), name
    assert files_below(sdist / 'docs') == files_below(REPO / 'docs')


def test_package_is_whole(site_packages):
    assert files_below(site_packages / 'infobatch_mm') >= files_below(
        REPO / 'infobatch_mm'
    )


def test_the_environment_of_the_tests_is_left_alone(distribution, tmp_path):
    command = [sys.executable, '-I', '-c', 'import infobatch_mm']
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_nothing_else_is_installed(distribution):
    roots = {file.parts[0] for file in distribution.files}
    assert roots == {
        '..',
        '+infobatch_mm',
        'infobatch_mm',
        f'infobatch_mm-{distribution.version}.dist-info',
    }
    outside = [f for f in distribution.files if f.parts[0] == '..']
    assert [file.name for file in outside] == ['infobatch']


def test_onedl_mim_takes_its_folder(distribution):
    """It looks at the first file that is listed as installed."""
    assert str(distribution.files[0]).split('/')[0] == '+infobatch_mm'


def test_mim_finds_configs_tools_and_index(site_packages):
    mim = site_packages / MIM
    assert files_below(mim / 'configs') == files_below(REPO / 'configs')
    scripts = {'dist_train.sh', 'slurm_train.sh'}
    assert files_below(mim / 'tools') == TOOLS | scripts
    assert files_below(site_packages / DOORS / 'tools') == TOOLS
    for folder in (MIM, DOORS):
        index = site_packages / folder / 'model-index.yml'
        assert index.read_text() == (REPO / 'model-index.yml').read_text()


def test_each_config_has_a_door(site_packages):
    mim, doors = site_packages / MIM, site_packages / DOORS
    names = {n for n in files_below(mim / 'configs') if n.endswith('.py')}
    assert files_below(doors / 'configs') == names
    for name in names:
        door = doors / 'configs' / name
        [base] = re.findall(r"^_base_ = '(.+)'\n$", door.read_text())
        assert (door.parent / base).resolve() == (mim / 'configs' / name)


@pytest.mark.parametrize('tool', sorted(TOOLS))
def test_tools_in_the_wheel_need_no_other_tool(tool):
    tree = ast.parse((REPO / 'tools' / tool).read_text())
    imported = {
        name.partition('.')[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [getattr(node, 'module', None)]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    neighbours = {path.stem for path in (REPO / 'tools').glob('*.py')}
    assert not imported & neighbours


def test_the_base_needs_three_packages(distribution):
    base = [r for r in distribution.requires if 'extra ==' not in r]
    names = {re.match(r'[\w-]+', requirement)[0] for requirement in base}
    assert names == {'torch', 'numpy', 'rich'}


def test_the_description_has_no_link_that_breaks_on_an_index(distribution):
    message = message_from_string(distribution.read_text('METADATA'))
    text = message.get_payload()
    assert 'make quickstart' in text
    assert not relative_links(text)
    # A picture without alternative text, or one that lost its file.
    assert '![' not in re.sub(r'!\[[^]]*\]\(https?:', '', text)
    assert message['License-Expression'] == 'Apache-2.0'
    assert message['Author'] and message['Keywords'] and message['Summary']


def test_an_index_would_take_them(built):
    pytest.importorskip('twine')
    files = [*built.iterdir()]
    assert {path.suffix for path in files} == {'.gz', '.whl'}
    command = [sys.executable, '-m', 'twine', 'check', '--strict', *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('PASSED') == 2


# A run of few steps on scenes that are composed of scikit-learn's digits.
DIGITS = 'infobatch_mm::quickstart/upernet_tiny_1xb16-20e_digits-48x48.py'
SHORT = (
    'train_cfg.max_epochs=2 train_dataloader.dataset.num_scenes=32 '
    'train_dataloader.batch_size=4 '
    'train_dataloader.num_workers=0 train_dataloader.persistent_workers=False '
    'val_dataloader.dataset.num_scenes=4 val_dataloader.num_workers=0 '
    'val_dataloader.persistent_workers=False'
)


@pytest.fixture(scope='module')
def environment(built: Path) -> Path:
    """A new environment with the wheel in it.

    What the wheel needs is found in the environment of the tests, whose own
    infobatch_mm comes after that of the wheel, and is not found at all if it
    is an editable one.
    """
    folder = built.parent / 'environment'
    venv.create(folder, symlinks=True)
    python = folder / 'bin/python'
    ask = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    asked = subprocess.run([python, '-c', ask], capture_output=True, text=True)
    packages = Path(asked.stdout.strip())
    (packages / 'tests.pth').write_text(sysconfig.get_path('purelib'))
    [wheel] = built.glob('*.whl')
    again = ['--ignore-installed', '--no-deps']
    install(wheel, '--python', python, 'install', *again)
    return folder


def test_an_installed_wheel_trains(environment, tmp_path):
    pytest.importorskip('mmseg')
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    run = partial(subprocess.run, cwd=tmp_path, env=env, check=True)
    ask = 'import infobatch_mm; print(infobatch_mm.__file__)'
    python = [environment / 'bin/python', '-c', ask]
    found = run(python, stdout=subprocess.PIPE, text=True).stdout
    assert Path(found.splitlines()[-1]).is_relative_to(environment)
    command = [environment / 'bin/infobatch', 'train', DIGITS, '--infobatch']
    command += ['--work-dir', 'run', '--cfg-options', *SHORT.split()]
    run(command, capture_output=True)
    lines = (tmp_path / 'run/infobatch.jsonl').read_text().splitlines()
    kept = [json.loads(line)['kept'] for line in lines]
    assert kept[0] == 32 and kept[1] < 32
    assert (tmp_path / 'run/epoch_2.pth').is_file()


def test_source_tree_gets_no_copy(site_packages):
    assert not (REPO / MIM).exists() and not (REPO / '+infobatch_mm').exists()


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
