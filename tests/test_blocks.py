"""Blocks of a Markdown file that a command writes."""

import pytest

from benchmarks import blocks

TEXT = 'one\n<!-- begin: x -->\nold\n<!-- end: x -->\ntwo\n'


def test_a_block_is_replaced_and_read():
    text = blocks.replace_block(TEXT, 'x', '| a |\n|---|\n')
    assert text == (
        'one\n<!-- begin: x -->\n| a |\n|---|\n<!-- end: x -->\ntwo\n'
    )
    assert blocks.read_block(text, 'x') == '| a |\n|---|'
    assert blocks.replace_block(text, 'x', '| a |\n|---|') == text


@pytest.mark.parametrize('marker', blocks.markers('x'))
@pytest.mark.parametrize('twice', [False, True])
def test_a_marker_that_is_missing_or_twice_is_named(marker, twice):
    text = TEXT + marker if twice else TEXT.replace(marker, '')
    with pytest.raises(ValueError, match=f'{marker!r} stands {2 * twice} ti'):
        blocks.replace_block(text, 'x', 'new')


def test_markers_in_the_wrong_order_are_refused():
    begin, end = blocks.markers('x')
    with pytest.raises(ValueError, match='stands before'):
        blocks.replace_block(end + begin, 'x', 'new')


def test_a_file_is_written_and_found_current(tmp_path):
    path = tmp_path / 'some.md'
    path.write_text(TEXT)
    assert not blocks.is_current(path, 'x', 'new')
    blocks.write_block(path, 'x', 'new')
    assert blocks.is_current(path, 'x', 'new\n')
    assert path.read_text() == TEXT.replace('old', 'new')
