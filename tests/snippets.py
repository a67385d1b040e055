"""The fenced blocks of a page of docs/."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / 'docs'


def snippets(page: str, language: str, heading: str) -> list[str]:
    """Return the blocks of a language under a heading."""
    text = (DOCS / page).read_text()
    section = text.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    return re.findall(rf'```{language}\n(.*?)```', section, re.DOTALL)
