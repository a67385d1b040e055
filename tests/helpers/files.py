"""Files of tests: folders of configs for the zoo, and blocks of our pages."""

import json
import re
from pathlib import Path
from typing import Any

import mmengine.config.config
import pytest
from yapf.yapflib import yapf_api

from zoo import __main__ as command
from zoo import check as zoo_check

DOCS = Path(__file__).parents[2] / 'docs'


def use_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the zoo check the configs of a folder in place of a package's."""
    monkeypatch.undo()  # conftest's text of a config cannot be read back
    for module in (yapf_api, mmengine.config.config):
        monkeypatch.setattr(module, 'FormatCode', None, raising=False)
    zoo_check.skip_layout()
    monkeypatch.setattr(zoo_check, 'config_root', lambda package: folder)


def write_config(folder: Path, name: str, **settings: Any) -> None:
    path = folder / f'{name}.py'
    path.parent.mkdir(exist_ok=True)
    lines = [f'{key} = {value!r}\n' for key, value in settings.items()]
    path.write_text(''.join(lines))


def check(folder: Path, *args: str) -> tuple[int, dict[str, Any]]:
    """Run the command; return its exit status and the records by config."""
    out = folder / 'out.jsonl'
    status = command.main(['check', *args, '--all', '--json', str(out)])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return status, {record['config']: record for record in records}


def snippets(page: str, language: str, heading: str) -> list[str]:
    """Return the blocks of a language under a heading."""
    text = (DOCS / page).read_text()
    section = text.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    return re.findall(rf'```{language}\n(.*?)```', section, re.DOTALL)
