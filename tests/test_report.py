"""What a run left behind, read, and the page about it."""

import base64
import json
import re
import sys
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import toys
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from infobatch_mm import records
from infobatch_mm.commands import report as command
from infobatch_mm.report import page as report
from infobatch_mm.report import results, samples
from infobatch_mm.report import runs as read_run
from infobatch_mm.report.runs import last_start

BATCH = 4


@HOOKS.register_module()
class SlowTruth(Hook):
    """Count the samples of a run, and note what its validations found."""

    def __init__(self, stop_at=None):
        self.samples = 0
        self.stop_at = stop_at
        self.found = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.samples += len(data_batch['inputs'])
        if runner.iter + 1 == self.stop_at:
            raise KeyboardInterrupt

    def after_val_epoch(self, runner, metrics):
        self.found.append((runner.iter, self.samples, metrics['mIoU']))


def config(work_dir, *, iters=None, **settings):
    """Return a run with validation, which says so in its log."""
    cfg = toys.config(work_dir, batch_size=BATCH, **settings)
    if iters:
        toys.make_iter_based(cfg, iters)
    toys.add_validation(cfg, interval=8 if iters else 2)
    cfg.log_level = 'INFO'
    cfg.default_hooks.logger = dict(
        type='LoggerHook', interval=5, log_metric_by_epoch=not iters
    )
    return cfg


def run(cfg, **witness):
    """Train and return what the run did, also if it was stopped."""
    cfg.custom_hooks.append(dict(type='SlowTruth', **witness))
    runner = toys.Runner.from_cfg(cfg)
    try:
        runner.train()
    except KeyboardInterrupt:
        assert witness
    return next(h for h in runner.hooks if isinstance(h, SlowTruth))


# Of a stock run by epochs the size of the last batch is not known.
@pytest.mark.parametrize(
    ('pruned', 'iters', 'samples'),
    [(True, None, 26), (True, 25, 26), (False, None, 24), (False, 25, 26)],
    ids=['pruned-epoch', 'pruned-iter', 'stock-epoch', 'stock-iter'],
)
def test_what_a_run_did(tmp_path, pruned, iters, samples):
    cfg = config(tmp_path, pruned=pruned, iters=iters, samples=samples)
    done = run(cfg)
    assert len(done.found) > 1
    assert read_run.iterations(tmp_path) == [i for i, _, _ in done.found]
    assert read_run.images_seen(tmp_path) == [n for _, n, _ in done.found]
    lines = read_run.validations(tmp_path)
    assert [line['mIoU'] for line in lines] == [m for _, _, m in done.found]
    assert read_run.global_batch(tmp_path) == BATCH
    tables = read_run.per_class(tmp_path)
    assert list(tables) == list(range(len(lines)))
    for i, (_, _, miou) in enumerate(done.found):
        assert list(tables[i])[:2] == ['background', '0']
        ious = [row['IoU'] for row in tables[i].values()]
        known = [iou for iou in ious if iou == iou]
        assert sum(known) / len(known) == pytest.approx(miou, abs=0.01)
    seconds = read_run.train_seconds(tmp_path)
    assert 0 < seconds[0] < seconds[1]
    assert bool(records.read_rounds(tmp_path)) == pruned
    assert (records.read_summary(tmp_path) is not None) == pruned


@pytest.mark.parametrize('pruned', [True, False], ids=['pruned', 'stock'])
@pytest.mark.parametrize('iters', [None, 40], ids=['epoch', 'iter'])
def test_a_resumed_run_reads_as_one(tmp_path, monkeypatch, pruned, iters):
    def start(**witness):
        cfg = config(tmp_path, pruned=pruned, iters=iters, epochs=8)
        save = dict(interval=10, by_epoch=False) if iters else dict(interval=3)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', **save)
        cfg.resume = bool(list(tmp_path.glob('*.pth')))
        return run(cfg, **witness)

    # The first start goes on for a validation after its last checkpoint.
    first = start(stop_at=(23 if pruned else 25) if iters else 28)
    lost = read_run.validations(tmp_path)
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() + 60)
    second = start()
    repeated = second.found[0][0]
    kept = [found for found in first.found if found[0] < repeated]
    assert 0 < len(kept) < len(lost)
    found = kept + second.found
    assert read_run.iterations(tmp_path) == [i for i, _, _ in found]
    lines = read_run.validations(tmp_path)
    assert [line['mIoU'] for line in lines] == [m for _, _, m in found]
    assert list(read_run.per_class(tmp_path)) == list(range(len(lines)))
    steps = [
        line['iter'] for line in read_run.scalars(tmp_path) if 'iter' in line
    ]
    assert steps == sorted(set(steps))


# Files as a run that was killed, or that is under way, leaves them


def write(
    work_dir, lines, torn='', start='20260101_000000', budget='max_iters'
):
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (folder / 'scalars.json').write_text(text + torn)
    (folder / 'config.py').write_text(
        f'train_cfg = dict({budget}=40)\n'
        'train_dataloader = dict(batch_size=2)\n'
        'default_hooks = dict(logger=dict('
        f'log_metric_by_epoch={budget == "max_epochs"}))\n'
    )


def train_line(step, seconds=0.5):
    return dict(lr=0.1, loss=1.0, time=seconds, iter=step, step=step)


def val_line(step):
    return dict(mIoU=1.0, data_time=0.0, time=0.1, step=step)


def round_line(step):
    return {'infobatch/kept_ratio': 1.0, 'step': step}


def test_a_torn_last_line_is_dropped(tmp_path):
    write(tmp_path, [train_line(10)], torn='{"lr": 0.1, "lo')
    assert read_run.scalars(tmp_path) == [train_line(10)]
    (tmp_path / 'infobatch.jsonl').write_text('{"round": 0}\n{"rou')
    assert records.read_rounds(tmp_path) == [{'round': 0}]


@pytest.mark.parametrize('budget', ['max_iters', 'max_epochs'])
def test_what_a_run_lacks_that_has_just_begun(tmp_path, budget):
    write(tmp_path, [], budget=budget)
    assert read_run.scalars(tmp_path) == []
    assert read_run.per_class(tmp_path) == {}
    assert read_run.images_seen(tmp_path) == []
    assert read_run.train_seconds(tmp_path) == []
    assert records.read_summary(tmp_path) is None


def test_a_folder_that_is_no_work_dir(tmp_path):
    with pytest.raises(FileNotFoundError, match='LocalVisBackend'):
        read_run.config(tmp_path)


def test_a_start_from_scratch_replaces_the_run(tmp_path):
    write(tmp_path, [round_line(0), train_line(10), val_line(20)])
    again = [round_line(0), train_line(10)]
    write(tmp_path, again, start='20260101_000001')
    assert read_run.scalars(tmp_path) == again


def test_a_validation_belongs_before_the_round_that_begins(tmp_path):
    old = [train_line(10), val_line(20), round_line(20), train_line(30)]
    write(tmp_path, old)
    new = [round_line(20), train_line(30)]
    write(tmp_path, new, start='20260101_000001')
    assert read_run.scalars(tmp_path) == old[:2] + new


def test_training_time_is_that_of_the_logged_paces(tmp_path):
    write(
        tmp_path,
        [train_line(10, 0.5), val_line(15), train_line(20, 1.0), val_line(25)],
    )
    assert read_run.train_seconds(tmp_path) == [10.0, 20.0]


def test_all_ranks_count(tmp_path):
    write(tmp_path, [train_line(10), val_line(10)])
    start = read_run.last_start(tmp_path)
    log = start / f'{start.name}.log'
    log.write_text('    Distributed training: True\n    GPU number: 3\n')
    assert read_run.images_seen(tmp_path) == [60]


# infobatch report: the page about a short real run, as a browser reads it

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
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    line = refusal(capsys, str(stock))
    assert 'jinja2 is not installed' in line
    assert 'pip install "infobatch_mm[report]"' in line
