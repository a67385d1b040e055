"""What is said where a package of an extra is missing."""

import statistics
import sys

import pytest

from infobatch_mm.extras import require


def test_a_package_that_is_there_is_imported():
    assert require('statistics', 'compare') is statistics


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ModuleNotFoundError) as caught:
        require('no_such_package.part', 'compare')
    assert 'no_such_package is not installed' in str(caught.value)
    assert 'pip install "infobatch_mm[compare]"' in str(caught.value)


def test_an_installed_package_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / 'broken_package.py').write_text('import no_such_package\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='no_such_package') as caught:
        require('broken_package', 'compare')
    assert 'infobatch_mm[' not in str(caught.value)
    assert 'broken_package' not in sys.modules
