"""infobatch report: the page about a short real run, as a browser reads it."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import toys
from test_read_run import config, run, train_line, write

from infobatch_mm.commands import ending
from infobatch_mm.commands import report as command
from infobatch_mm.report import page as report
from infobatch_mm.report import results, samples
from infobatch_mm.report.runs import last_start

VOID = {'meta', 'img', 'link', 'br'}
# All that can make a browser fetch something, or run it.
REFERENCES = {
    'src',
    'href',
    'srcset',
    'data',
    'action',
    'poster',
    'xlink:href',
}
PARTS = ['Results', 'Pruning', 'Samples', 'Classes', 'Setup']


class Page(HTMLParser):
    """The parts of a page, by name."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open = text, []
        self.parts, self.rows, self.images, self.missing = [], [], [], []
        self.references = re.findall(r'@import|url\(', text)
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append((tag, attributes.get('class')))
        if tag == 'img':
            self.images.append(attributes)
        if tag == 'tr':
            self.rows.append([])
        for name, value in attributes.items():
            assert not name.startswith('on')
            if name in REFERENCES and not value.startswith('data:'):
                self.references.append(value)
        assert tag != 'script'

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        text = data.strip()
        if not text:
            return
        tag, kind = self.open[-1]
        if tag == 'h2':
            self.parts.append(text)
        if tag in ('td', 'th'):
            self.rows[-1].append(text)
        if kind == 'missing':
            self.missing.append(text)

    def pictures(self, kind):
        """Return the contents of the images of a kind, as image/png."""
        start = f'data:{kind};base64,'
        return [
            base64.b64decode(image['src'].removeprefix(start))
            for image in self.images
            if image['src'].startswith(start)
        ]


def check(page):
    """A whole page that refers to nothing outside itself, in words too."""
    assert page.parts == PARTS
    assert page.references == []
    assert all(image['alt'] for image in page.images)
    assert all(reason.startswith('Left out:') for reason in page.missing)
    for chart in page.pictures('image/svg+xml'):
        tree = ElementTree.fromstring(chart)
        for node in tree.iter():
            for name, value in node.attrib.items():
                if name.endswith('href'):
                    assert value.startswith(('#', 'data:'))
    for image in page.pictures('image/png'):
        assert image.startswith(b'\x89PNG')


def save_at_end(cfg):
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=4)
    return cfg


@pytest.fixture
def stock(tmp_path):
    folder = tmp_path / 'stock_run'
    run(save_at_end(config(folder, pruned=False)))
    return folder


def test_a_pruned_run_beside_its_baseline(tmp_path, stock):
    folder = tmp_path / 'pruned_run'
    run(save_at_end(config(folder)))
    page = Page(report.render(folder, stock))
    check(page)
    assert page.missing == []
    alts = [image['alt'] for image in page.images]
    charts = ['mIoU over samples', 'mIoU over training time', 'kept share']
    charts += ['weights by round', 'Heat map', 'variance ratio']
    assert len(page.pictures('image/svg+xml')) == len(charts)
    for alt, words in zip(alts, charts, strict=False):
        assert words in alt
    # Hardest and most pruned, each with its label map.
    samples = [alt for alt in alts if alt.startswith('Training image')]
    assert len(samples) == 16
    assert len(page.pictures('image/png')) == 32
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows['samples trained on'][1:] == ['96', rows_change(rows)]
    assert set(rows) >= {'mIoU, last', 'iterations', 'background', '9'}
    assert all(len(rows[name]) == 4 for name in ('background', '9'))
    assert 'InfoBatchPolicy(0.5 until 0.875)' in page.text
    assert 'MMEngine' in page.text
    assert 'train_dataloader' in page.text


def rows_change(rows):
    seen, budget, _ = rows['samples trained on']
    return results.change([int(seen), int(budget)])


def test_the_gallery_holds_the_extremes(tmp_path):
    save = save_at_end(config(tmp_path, epochs=8))
    save.default_hooks.checkpoint.interval = 8
    run(save)
    path = samples.last_checkpoint(tmp_path)
    state = samples.load_state(path)
    hardest, pruned = state.hardest, state.pruned_most
    assert sorted(hardest) == list(range(24))
    assert state.scores[hardest[0]] == state.scores.max()
    assert state.times_kept[pruned[0]] == state.times_kept.min()
    assert state.times_kept.max() <= state.rounds == 8
    assert all(state.times_kept[i] < state.times_kept.max() for i in pruned)
    gallery = report.gallery(tmp_path)
    assert [card.name for card in gallery.hardest] == [
        f'{index:05d}' for index in hardest[:8]
    ]
    scores = [card.score for card in gallery.hardest]
    assert scores == sorted(scores, reverse=True)


def test_a_stock_run_says_what_it_lacks(stock):
    page = Page(report.render(stock))
    check(page)
    assert page.missing == [
        report.NO_SUMMARY,
        report.NO_ROUNDS,
        'Left out: the checkpoint is of a stock run, with no scores.',
    ]
    assert len(page.pictures('image/svg+xml')) == 2


def test_a_run_that_has_just_begun(tmp_path):
    write(tmp_path, [train_line(10)])
    page = Page(report.render(tmp_path))
    check(page)
    assert page.missing[0] == report.NO_VALIDATIONS
    assert page.images == []


def test_a_run_by_iterations_whose_data_are_gone(tmp_path):
    cfg = config(tmp_path, iters=24)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=24, by_epoch=False
    )
    run(cfg)
    path = last_start(tmp_path) / 'vis_data/config.py'
    path.write_text(path.read_text().replace('DigitScenes', 'GoneScenes'))
    page = Page(report.render(tmp_path))
    check(page)
    (reason,) = page.missing
    assert 'GoneScenes' in reason
    assert len(page.pictures('image/svg+xml')) == 6


def test_what_is_loaded_is_not_augmented():
    cfg = toys.Config(
        dict(
            type='RepeatDataset',
            dataset=dict(
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='mmseg.LoadAnnotations'),
                    dict(type='RandomFlip', prob=1.0),
                    dict(type='PackSegInputs'),
                ]
            ),
        )
    )
    plain = samples.without_augmentation(cfg._cfg_dict)
    assert [step['type'] for step in plain['dataset']['pipeline']] == [
        'LoadImageFromFile',
        'mmseg.LoadAnnotations',
        'PackSegInputs',
    ]


def test_one_page_is_written(stock, capsys):
    command.main([str(stock)])
    assert 'report.html' in capsys.readouterr().out
    check(Page((stock / 'report.html').read_text()))


def refusal(capsys, *arguments):
    """Return the one line that the command ends with."""
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments, prog='infobatch report')
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('infobatch report: error: ')
    return line


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    line = refusal(capsys, str(tmp_path / 'nothing'))
    assert f'{tmp_path}/nothing has no */vis_data/scalars.json' in line


def test_what_is_not_installed_is_named_with_its_extra(
    stock, monkeypatch, capsys
):
    monkeypatch.setattr(ending, 'is_importable', lambda name: name != 'jinja2')
    line = refusal(capsys, str(stock))
    assert 'jinja2 cannot be imported' in line
    assert 'pip install "infobatch_mm[report]"' in line
