"""What runs left behind, read, and the page about them."""

import base64
import json
import math
import re
import shutil
import statistics
import sys
import time
from functools import partial
from html.parser import HTMLParser

import pytest
import torch
import toys
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from infobatch_mm import InfoBatchHook, records
from infobatch_mm.commands import report as command
from infobatch_mm.datasets.digit_scenes import DigitScenes
from infobatch_mm.host import packages
from infobatch_mm.report import (
    arms,
    figures,
    progress,
    results,
    round_figures,
    samples,
    sources,
    tables,
)
from infobatch_mm.report import page as report
from infobatch_mm.report import runs as read_run
from infobatch_mm.report.runs import last_start

BATCH = 4
HALF = dict(type='RandomPolicy', prune_ratio=0.5)
MINUS = '\N{MINUS SIGN}'


@HOOKS.register_module()
class SlowTruth(Hook):
    """Count the samples of a run, and note what its validations found."""

    def __init__(self, stop_at=None):
        self.samples = 0
        self.stop_at = stop_at
        self.found, self.clock = [], []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.samples += len(data_batch['inputs'])
        if runner.iter + 1 == self.stop_at:
            raise KeyboardInterrupt

    def after_val_epoch(self, runner, metrics):
        self.found.append((runner.iter, self.samples, metrics['mIoU']))
        hooks = (h for h in runner.hooks if isinstance(h, InfoBatchHook))
        hook = next(hooks, None)
        self.clock.append(hook.run.clock.now if hook else runner.iter)


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
    assert progress.iterations(tmp_path) == [i for i, _, _ in done.found]
    assert progress.images_seen(tmp_path) == [n for _, n, _ in done.found]
    clock = progress.clock_at(tmp_path, progress.iterations(tmp_path))
    # Within a round the hook's clock has whole ticks.
    assert clock == pytest.approx(done.clock, abs=1)
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
    seconds = progress.train_seconds(tmp_path)
    assert 0 < seconds[0] < seconds[1]
    assert bool(records.read_rounds(tmp_path)) == pruned
    assert (records.read_summary(tmp_path) is not None) == pruned


def test_a_smaller_last_batch_is_known_from_a_pruned_run(tmp_path):
    seen = {}
    for name, pruned in (('stock', False), ('pruned', True)):
        folder = tmp_path / name
        cfg = config(folder, pruned=pruned, samples=2 * BATCH + 2)
        seen[name] = [n for _, n, _ in run(cfg).found]
    folders = [(None, tmp_path / name) for name in seen]
    shown = sources.read(folders)
    found = {arm.name: arm.cells[0].run.images for arm in shown.arms}
    assert found == seen
    alone = progress.images_seen(tmp_path / 'stock')
    assert alone == [n // 10 * 3 * BATCH for n in seen['stock']]


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
def test_a_loop_by_iterations_that_logs_no_place(tmp_path, pacing):
    """As LoggerHook does by default; its clock runs ahead of iterations."""
    options = dict(policy=HALF, delta=1.0, pacing=pacing)
    cfg = config(tmp_path, iters=60, samples=24, **options)
    cfg.train_cfg.val_interval = 12
    del cfg.default_hooks.logger.log_metric_by_epoch
    done = run(cfg)
    found = results.read(tmp_path)
    assert found.iterations == [i for i, _, _ in done.found]
    assert found.images == [n for _, n, _ in done.found]
    assert found.clock == pytest.approx(done.clock, abs=1)
    assert found.is_done


def test_rounds_of_another_folder_are_not_counted_as_full(
    tmp_path, monkeypatch
):
    """As where a run goes on in a folder of its own."""
    first, second = tmp_path / 'first', tmp_path / 'second'
    options = dict(policy=HALF, delta=1.0, samples=24)
    cfg = config(first, epochs=8, **options)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    begun = run(cfg, stop_at=25)
    cfg = config(second, epochs=8, **options)
    cfg.load_from = (first / 'last_checkpoint').read_text()
    cfg.resume = True
    done = run(cfg)
    before = next(n for i, n, _ in begun.found if i == 24)
    assert before < 96
    images = progress.images_seen(second)
    assert images == [before + n for _, n, _ in done.found]


def test_a_run_that_goes_on_without_pruning(tmp_path, monkeypatch):
    options = dict(policy=HALF, delta=1.0, samples=24)
    cfg = config(tmp_path, epochs=8, **options)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    begun = run(cfg, stop_at=30)
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() + 60)
    cfg = config(tmp_path, epochs=8, samples=24, pruned=False)
    cfg.resume = True
    done = run(cfg)
    first = dict((i, n) for i, n, _ in begun.found)
    assert progress.images_seen(tmp_path) == [
        *first.values(),
        *(first[24] + n for _, n, _ in done.found),
    ]


@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_without_a_log_the_number_of_processes_is_known(tmp_path, launcher):
    lines = [train_line(10), val_line(10)]
    write(tmp_path, lines, config=f'launcher = {launcher!r}')
    if launcher == 'none':
        assert progress.images_seen(tmp_path) == [20]
        return
    with pytest.raises(ValueError, match="log_level='INFO'"):
        progress.images_seen(tmp_path)
    line = dict(round=0, iter=0, kept=40, total=40, iters=10, world_size=2)
    (tmp_path / 'infobatch.jsonl').write_text(json.dumps(line) + '\n')
    write(tmp_path, [round_line(0), *lines], start='20260102_000000')
    assert progress.images_seen(tmp_path) == [40]


def test_the_length_of_an_epoch_is_not_the_rest_of_a_round(tmp_path):
    write(tmp_path, [train_line(3), val_line(1)], budget='max_epochs')
    new = [round_line(8), train_line(9), val_line(2)]
    on, at = 'resume = True', '20260101_000001'
    write(tmp_path, new, start=at, budget='max_epochs', config=on)
    for start, length in (('20260101_000000', 6), (at, 3)):
        log = tmp_path / start / f'{start}.log'
        log.write_text(f'Epoch(train)  [1][3/{length}]  lr: 0.1\n')
    assert progress.iterations(tmp_path) == [6, 12]


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
    first = start(stop_at=25 if iters else 28)
    lost = read_run.validations(tmp_path)
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() + 60)
    second = start()
    repeated = second.found[0][0]
    kept = [found for found in first.found if found[0] < repeated]
    assert 0 < len(kept) < len(lost)
    found = kept + second.found
    assert progress.iterations(tmp_path) == [i for i, _, _ in found]
    lines = read_run.validations(tmp_path)
    assert [line['mIoU'] for line in lines] == [m for _, _, m in found]
    assert list(read_run.per_class(tmp_path)) == list(range(len(lines)))
    steps = [
        line['iter'] for line in read_run.scalars(tmp_path) if 'iter' in line
    ]
    assert steps == sorted(set(steps))


# Files as a run that was killed, or that is under way, leaves them


def write(
    work_dir,
    lines,
    torn='',
    start='20260101_000000',
    budget='max_iters',
    config='',
    length=None,
):
    # By default the last validation is that of the end.
    steps = [line['step'] for line in lines if 'data_time' in line]
    length = length or max(steps, default=40)
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (folder / 'scalars.json').write_text(text + torn)
    (folder / 'config.py').write_text(
        f'train_cfg = dict({budget}={length})\n'
        'train_dataloader = dict(batch_size=2)\n'
        'default_hooks = dict(logger=dict('
        f'log_metric_by_epoch={budget == "max_epochs"}))\n{config}\n'
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
    assert progress.images_seen(tmp_path) == []
    assert progress.train_seconds(tmp_path) == []
    assert records.read_summary(tmp_path) is None


def test_a_folder_that_is_no_work_dir(tmp_path):
    with pytest.raises(FileNotFoundError, match='LocalVisBackend'):
        read_run.config(tmp_path)


def test_a_start_from_scratch_replaces_the_run(tmp_path):
    write(tmp_path, [round_line(0), train_line(10), val_line(20)])
    again = [round_line(0), train_line(10)]
    write(tmp_path, again, start='20260101_000001')
    assert read_run.scalars(tmp_path) == again


def test_a_start_from_scratch_replaces_one_that_logged_more_often(tmp_path):
    """As a first try on few samples, whose epochs are shorter, does."""
    write(tmp_path, [round_line(0), train_line(1), val_line(5), val_line(10)])
    again = [train_line(50), val_line(120)]
    write(tmp_path, again, start='20260101_000001')
    assert read_run.scalars(tmp_path) == again
    assert not read_run.prunes(tmp_path)


def test_what_is_no_start_of_training_is_left_alone(tmp_path):
    trained = [train_line(10), val_line(20)]
    write(tmp_path, trained)
    # A test of the model in the same folder, and a folder that was put aside.
    write(tmp_path, [val_line(0)], start='20260101_000001')
    write(tmp_path, [train_line(99)], start='old_20260101')
    assert read_run.scalars(tmp_path) == trained


@pytest.mark.parametrize(
    ('log', 'length'),
    [
        ('Epoch(train)  [1][50/75]  lr: 0.1', 75),
        ('Epoch(train)   [1][ 50/120]  lr: 0.1', 120),
        ('Iter(train) [  50/3000]  lr: 0.1', 75),
        ('', 50),
    ],
)
def test_the_length_of_an_epoch_is_that_of_the_log(tmp_path, log, length):
    line = train_line(50)
    if 'Iter' not in log:
        line['epoch'] = 1
    write(tmp_path, [line, val_line(1)], budget='max_epochs', length=40)
    start = read_run.last_start(tmp_path)
    (start / f'{start.name}.log').write_text(f'{log}\n')
    assert progress.iterations(tmp_path) == [length]


def test_epochs_logged_by_iterations_without_a_log(tmp_path):
    lines = [train_line(50), val_line(1), train_line(100), val_line(2)]
    write(tmp_path, lines, budget='max_epochs')
    assert progress.iterations(tmp_path) == [50, 100]


def test_validations_of_a_loop_by_iterations_that_logged_no_place(tmp_path):
    """As with log_metric_by_epoch, the default of LoggerHook."""
    lines = [val_line(0), train_line(100), val_line(0), val_line(0)]
    lines += [train_line(200), val_line(0), val_line(0)]
    write(tmp_path, lines, length=230)
    start = read_run.last_start(tmp_path)
    with (start / 'vis_data/config.py').open('a') as file:
        file.write('train_cfg.update(val_interval=50)\n')
    assert progress.iterations(tmp_path) == [50, 100, 150, 200, 230]


def test_logs_of_other_forms(tmp_path):
    lines = [
        {'train/loss': 1.0, 'iter': 10, 'step': 10},
        {'val/mIoU': 7.0, 'val/data_time': 0.0, 'step': 20},
    ]
    form = 'log_processor = dict(log_with_hierarchy=True)'
    write(tmp_path, lines, config=form, length=20)
    start = read_run.last_start(tmp_path)
    # At log_level DEBUG; cut off within a character.
    log = start / f'{start.name}_device0_rank0.log'
    log.write_bytes(b'    GPU number: 4\n caf\xc3')
    found = results.read(tmp_path)
    assert (found.values, found.iterations) == ([7.0], [20])
    assert found.images == [20 * 2 * 4]
    assert math.isnan(found.seconds[0]) and math.isnan(found.pace)


def test_a_class_with_a_bar_in_its_name():
    table = '|  Class  |  IoU  |  Acc  |'
    rows = f'+---+\n{table}\n+---+\n|  car|van  |  1.5  |  2.5  |\n+---+\n'
    (found,) = read_run.printed_classes(f'per class results:\nx\n{rows}')
    assert found == {'car|van': {'IoU': 1.5, 'Acc': 2.5}}


def test_a_run_that_is_not_done_gives_no_verdict(tmp_path):
    folders = two_arms(tmp_path, {0: 51.0, 1: 53.0, 2: 55.0})
    config = last_start(folders[2]) / 'vis_data/config.py'
    config.write_text(config.read_text() + 'train_cfg = dict(max_iters=40)\n')
    found = sources.read(
        [('fast', f) if 'fast' in f.name else ('stock', f) for f in folders]
    )
    assert found.gaps['fast', 'stock'].seeds == 2
    (note,) = found.notes
    assert note.startswith('Left out of means and differences: fast_seed2 ha')
    assert note in Page(report.render(*folders)).text


def test_a_run_that_is_not_done_is_in_no_mean(tmp_path):
    folders = two_arms(tmp_path, {0: 51.0, 1: 53.0})
    named = [('fast' if 'fast' in f.name else 'stock', f) for f in folders]

    def texts():
        shown = sources.read(named)
        rows = tables.arm_rows(shown, is_fair=True)
        (fast,) = (row for row in rows if row.name == 'fast')
        return {
            entry.label: (entry.text, entry.change) for entry in fast.entries
        }

    before = texts()
    assert before['samples trained on'][1] is not None
    late = fake(tmp_path / 'fast_seed2', 2, [10.0], seconds=9.0)
    config = last_start(late) / 'vis_data/config.py'
    config.write_text(config.read_text() + 'train_cfg = dict(max_iters=40)\n')
    named.append(('fast', late))
    assert texts() == before
    # Alone it is shown, and nothing is said of what it saves.
    named[:] = [each for each in named if each[0] == 'stock'] + named[-1:]
    alone = texts()
    assert alone['mIoU, last'][0] == '10.00'
    assert alone['samples trained on'][1] is None


def test_a_run_that_diverged_at_its_end_is_told_of(tmp_path):
    folders = two_arms(tmp_path, {0: 51.0, 1: math.nan})
    (note,) = sources.read([(None, f) for f in folders]).notes
    assert 'the last mIoU of fast_seed1 is not finite' in note


def test_a_metric_of_unknown_direction_is_told_of(tmp_path):
    folders = two_arms(tmp_path, {0: 0.5, 1: 0.6}, metric='rmse')
    (note,) = sources.read([(None, f) for f in folders]).notes
    assert note.startswith('More of rmse is taken to be better')


def test_runs_on_other_numbers_of_ranks_are_other_arms(tmp_path):
    folders = [
        fake(tmp_path / f'run_s{seed}', seed, [50.0]) for seed in (0, 1)
    ]
    start = last_start(folders[1])
    (start / f'{start.name}.log').write_text('    GPU number: 4\n')
    found = sources.read([(None, folder) for folder in folders])
    assert [arm.name for arm in found.arms] == ['run_s0', 'run_s1']


def test_a_run_without_a_config_is_named(tmp_path):
    folder = fake(tmp_path / 'run', 0, [50.0])
    (last_start(folder) / 'vis_data/config.py').unlink()
    with pytest.raises(FileNotFoundError, match=r'was given its parts'):
        sources.read([(None, folder)])


def test_a_broken_comparison_is_named(tmp_path):
    for text in '{"cells": [', '[]', '{"metric": "mIoU"}':
        (tmp_path / 'compare.json').write_text(text)
        with pytest.raises(ValueError, match=r'compare\.json is broken'):
            sources.read([(None, tmp_path)])


def test_a_validation_belongs_before_the_round_that_begins(tmp_path):
    old = [train_line(10), val_line(20), round_line(20), train_line(30)]
    write(tmp_path, old)
    new = [round_line(20), train_line(30)]
    write(tmp_path, new, start='20260101_000001', config='resume = True')
    assert read_run.scalars(tmp_path) == old[:2] + new


def test_training_time_is_that_of_the_logged_paces(tmp_path):
    write(
        tmp_path,
        [train_line(10, 0.5), val_line(15), train_line(20, 1.0), val_line(25)],
    )
    assert progress.train_seconds(tmp_path) == [10.0, 20.0]


def test_all_ranks_count(tmp_path):
    write(tmp_path, [train_line(10), val_line(10)])
    start = read_run.last_start(tmp_path)
    log = start / f'{start.name}.log'
    log.write_text('    Distributed training: True\n    GPU number: 3\n')
    assert progress.images_seen(tmp_path) == [60]


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
        self.cells = []  # (kind of the table, attributes of the cell)
        self.ids = []
        self.references = re.findall(r'@import|url\((?!#)', text)
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append((tag, attributes.get('class')))
        if tag == 'img' or attributes.get('role') == 'img':
            alt = attributes.get('aria-label')
            self.images.append({'src': '', 'alt': alt, **attributes})
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
            kind = next(k for t, k in self.open[::-1] if t == 'table')
            self.cells.append((kind, tag, attributes))
        if 'id' in attributes:
            self.ids.append(attributes['id'])
        for name, value in attributes.items():
            assert not name.startswith('on')
            if name in REFERENCES and not value.startswith(('data:', '#')):
                self.references.append(value)
        assert tag != 'script'

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        text = ' '.join(data.split())
        if not text:
            return
        tags = [tag for tag, _ in self.open]
        if tags[-1] == 'h2':
            self.parts.append(text)
        if 'td' in tags or 'th' in tags:
            self.rows[-1][-1] = f'{self.rows[-1][-1]} {text}'.strip()
        if self.open[-1][1] == 'missing':
            self.missing.append(text)

    def pictures(self, kind):
        """Return the contents of the images of a kind, as image/png."""
        start = f'data:{kind};base64,'
        return [
            base64.b64decode(image['src'].removeprefix(start))
            for image in self.images
            if image['src'].startswith(start)
        ]

    @property
    def charts(self):
        """The charts, each an element of the page."""
        return re.findall(r'<svg.*?</svg>', self.text, re.DOTALL)

    def row(self, name):
        """Return the first row of that name, by the heads of its table."""
        heads = None
        for cells in self.rows:
            if cells[0] in ('arm', 'class'):
                heads = cells
            elif cells[0].split(' ')[0] == name:
                return dict(zip(heads, cells, strict=True))
        raise LookupError(name)


def check(page):
    """A whole page that refers to nothing outside itself, in words too."""
    assert page.parts == PARTS
    assert page.references == []
    assert all(image['alt'] for image in page.images)
    assert all(reason.startswith('Left out') for reason in page.missing)
    assert len(page.ids) == len(set(page.ids))
    for image in page.pictures('image/png'):
        assert image.startswith(b'\x89PNG')
    check_narrow(page)
    check_dark(page)


def check_narrow(page):
    """At 390 pixels no cell is cut: tables stack, or scroll in their box."""
    for kind, tag, attributes in page.cells:
        assert kind in ('stack', 'sticky')
        if kind == 'stack' and tag == 'td':
            # Stacked, a cell has no head of a column above it.
            assert attributes['data-label']
    narrow = page.text.partition('@media (max-width')[2]
    assert re.search(r'\.stack td \{\s*display: grid', narrow)
    assert 'width=device-width' in page.text
    for table in re.findall(r'<div[^>]*>\s*<table', page.text):
        assert 'class="scroll"' in table


def check_dark(page):
    """Each colour is a variable, which both schemes set."""
    style = page.text[: page.text.index('</style>')]
    light, _, dark = style.partition('prefers-color-scheme: dark')
    used = set(re.findall(r'var\((--\w[\w-]*)\)', page.text))
    for scheme in (light, dark):
        assert used <= set(re.findall(r'(--\w[\w-]*):', scheme))
    for chart in page.charts:
        # An image within a chart holds its colours itself.
        text = re.sub(r'href="data:[^"]*"', '', chart)
        assert not re.search(r'(?:fill|stroke): #', text)
        assert not re.search(r'<text(?![^>]*fill: var)', text)


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
    charts = ['mIoU over samples', 'mIoU over training time']
    charts += ['mIoU over clock', 'learning rate', 'training loss']
    charts += ['kept share', 'weights by round', 'Heat map']
    charts += ['variance ratio', 'Histogram of 24 scores']
    assert len(page.charts) == len(charts)
    for alt, words in zip(alts, charts, strict=False):
        assert words in alt
    # Hardest and most pruned, each with its label map.
    samples = [alt for alt in alts if alt.startswith('Training image')]
    assert len(samples) == 16
    assert len(page.pictures('image/png')) == 32
    seen = records.read_summary(folder)['samples_seen']
    saved = f'{100 * (96 - seen) / 96:.1f}'
    costs = page.row('pruned_run')['samples trained on']
    assert costs == f'{seen} ▲ better {MINUS}{saved} %'
    assert page.row('stock_run')['samples trained on'] == '96'
    assert (
        'one seed: no verdict'
        in page.row('pruned_run')['difference to stock_run']
    )
    assert len(page.row('background')) == len(page.row('9')) == 3
    assert '<h1>pruned_run · InfoBatchPolicy(0.5 until 0.875)' in page.text
    assert 'MMEngine' in page.text
    assert 'train_dataloader' in page.text


def save(folder, time, scores):
    """Leave the checkpoint of a pruned run."""
    entry = dict(scores=torch.tensor(scores), round=1, total=len(scores))
    path = folder / 'iter_1.pth'
    torch.save(dict(meta=dict(time=time), infobatch=entry), path)
    (folder / 'last_checkpoint').write_text(str(path))


def test_the_scores_of_an_earlier_run_are_not_shown(tmp_path):
    write(tmp_path, [train_line(10)])
    save(tmp_path, '20260101_000030', [1.0, 2.0])
    assert samples.load_state(tmp_path).scores.tolist() == [1.0, 2.0]
    write(tmp_path, [train_line(10)], start='20260102_000000')
    with pytest.raises(ValueError, match='is that of an earlier one'):
        samples.load_state(tmp_path)
    assert 'is that of an earlier one' in report.gallery(tmp_path)
    # A start that goes on with the run has its checkpoint.
    write(tmp_path, [], start='20260103_000000', config='resume = True')
    save(tmp_path, '20260102_000030', [3.0, 4.0])
    assert samples.load_state(tmp_path).scores.tolist() == [3.0, 4.0]


def test_a_copied_folder_has_its_own_checkpoint(tmp_path):
    (tmp_path / 'run').mkdir()
    write(tmp_path / 'run', [train_line(10)])
    save(tmp_path / 'run', '20260101_000030', [1.0])
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    save(tmp_path / 'run', '20260101_000040', [2.0])
    assert samples.load_state(tmp_path / 'copy').scores.tolist() == [1.0]
    (tmp_path / 'copy/iter_1.pth').write_bytes(b'PK\x03\x04torn')
    with pytest.raises(ValueError, match='is no whole checkpoint'):
        samples.load_state(tmp_path / 'copy')
    (tmp_path / 'copy/iter_1.pth').unlink()
    (tmp_path / 'run/iter_1.pth').unlink()
    with pytest.raises(FileNotFoundError, match='iter_1.pth as its last'):
        samples.load_state(tmp_path / 'copy')


def test_a_run_that_goes_on_has_no_summary_yet(tmp_path):
    run_records = records.RunRecords(str(tmp_path))
    run_records.begin()
    run_records.add_round(dict(round=0))
    run_records.write_summary(dict(rounds=1))
    run_records.begin(1)
    assert records.read_summary(tmp_path) is None
    assert records.read_rounds(tmp_path) == [dict(round=0)]


def test_the_gallery_holds_the_extremes(tmp_path):
    save = save_at_end(config(tmp_path, epochs=8))
    save.default_hooks.checkpoint.interval = 8
    run(save)
    state = samples.load_state(tmp_path)
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


def test_the_gallery_shows_no_substitute(tmp_path, monkeypatch):
    save = save_at_end(config(tmp_path, epochs=8))
    save.default_hooks.checkpoint.interval = 8
    run(save)
    hardest = samples.load_state(tmp_path).hardest
    prepare = DigitScenes.prepare_data

    def prepare_data(self, idx):
        return None if idx == hardest[0] else prepare(self, idx)

    monkeypatch.setattr(DigitScenes, 'prepare_data', prepare_data)
    names = [card.name for card in report.gallery(tmp_path).hardest]
    assert names == [f'{index:05d}' for index in hardest[1:8]]


@pytest.mark.parametrize('place', ['default', 'custom'])
def test_the_policy_of_a_run_under_way_is_that_of_our_hook(tmp_path, place):
    cfg = config(tmp_path)
    hook = dict(cfg.custom_hooks.pop(), policy=dict(type='QuantilePolicy'))
    if place == 'default':
        cfg.default_hooks.prune = hook
    else:
        cfg.custom_hooks.append(hook)
    run(cfg, stop_at=9)
    assert results.policy_name(tmp_path) == 'QuantilePolicy'


def test_a_stock_run_says_what_it_lacks(stock):
    page = Page(report.render(stock))
    check(page)
    assert page.missing == [
        report.NO_SUMMARY,
        report.NO_ROUNDS,
        'Left out: the checkpoint is of a stock run, with no scores.',
    ]
    assert len(page.charts) == 5


def test_a_run_that_has_just_begun(tmp_path):
    write(tmp_path, [train_line(10)])
    page = Page(report.render(tmp_path))
    check(page)
    assert page.missing[0] == report.NO_VALIDATIONS
    assert len(page.charts) == 2


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
    assert len(page.charts) == 10


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


# Several runs and seeds, by arm: files with known numbers


SMALLER_BATCHES = '# The records say that this run has smaller batches.'


def fake(folder, seed, values, *, metric='mIoU', seconds=0.5, config=''):
    """Leave what a stock run of 10 iterations a validation would."""
    lines = []
    for step, value in enumerate(values, 1):
        lines.append(train_line(10 * step, seconds))
        found = {metric: value, 'data_time': 0.0, 'time': 0.1}
        lines.append({**found, 'step': 10 * step})
    seeded = f'randomness = dict(seed={seed})\n{config}'
    write(folder, lines, config=seeded)
    return folder


def two_arms(tmp_path, lasts, *, metric='mIoU', **settings):
    """Leave `fast` with these last values by seed beside `stock`."""
    folders = [
        fake(
            tmp_path / f'fast_seed{seed}',
            seed,
            [40.0, value],
            metric=metric,
            config='optimizer = dict(lr=0.2)',
            **settings,
        )
        for seed, value in lasts.items()
    ]
    stock = {0: 50.0, 1: 51.0, 2: 52.0}
    return folders + [
        fake(tmp_path / f'stock_seed{seed}', seed, [40, value], metric=metric)
        for seed, value in stock.items()
        if len(lasts) > 1 or seed == 0
    ]


# By hand: t(0.95, 2 degrees) = 2.91999, over the root of 3 seeds 1.68586
# standard deviations of the differences.
@pytest.mark.parametrize(
    ('lasts', 'metric', 'cell', 'words'),
    [
        (
            {0: 51.0, 1: 53.0, 2: 55.0},  # +1, +2, +3
            'mIoU',
            '▲ better +2.00 [+0.31, +3.69] better',
            '+2.00 mIoU over 3 seeds, 90% interval [+0.31, +3.69]: better.',
        ),
        (
            {0: 51.0, 1: 53.0, 2: 55.0},
            'val_loss',
            '▼ worse +2.00 [+0.31, +3.69] worse',
            'val_loss over 3 seeds, 90% interval [+0.31, +3.69]: worse.',
        ),
        (
            {0: 51.0, 1: 50.0, 2: 52.6},  # +1, -1, +0.6: 1.0583 apart
            'mIoU',
            f'△ better, may be chance +0.20 [{MINUS}1.58, +1.98] '
            'indistinguishable',
            'indistinguishable.',
        ),
        (
            {0: 49.0},
            'mIoU',
            f'▽ worse, may be chance {MINUS}1.00 one seed: no verdict',
            'fast_seed0 against stock_seed0, one seed: no verdict.',
        ),
        (
            {7: 60.0, 8: 61.0},
            'mIoU',
            'no seed in common that is done: no verdict',
            'fast against stock, no seed in common that is done: no verdict.',
        ),
    ],
    ids=['better', 'lower-is-better', 'indistinguishable', 'one', 'none'],
)
def test_arms_are_compared_by_their_seeds(
    tmp_path, lasts, metric, cell, words
):
    page = Page(report.render(*two_arms(tmp_path, lasts, metric=metric)))
    check(page)
    arm, base = (
        ('fast', 'stock')
        if len(lasts) > 1
        else (
            'fast_seed0',
            'stock_seed0',
        )
    )
    row = page.row(arm)
    assert row[f'difference to {base}'] == cell
    assert words in page.text
    last = f'{statistics.mean(lasts.values()):.2f}'
    assert row[f'{metric}, last'].startswith(last)
    assert page.row(base)[f'difference to {base}'] == ''


def test_of_a_metric_that_is_to_fall_the_best_is_the_lowest(tmp_path):
    folder = fake(tmp_path / 'run', 0, [3.5, 2.5, 3.0], metric='val_loss')
    row = Page(report.render(folder)).row('run')
    assert row['val_loss, last'] == '3.00'
    assert row['val_loss, best'] == '2.50'


def test_the_metric_is_that_of_save_best():
    line = dict(mIoU=1.0, mDice=2.0, rmse=3.0, step=1)
    checkpoint = dict(save_best=['rmse', 'mDice'], rule=['less', 'greater'])
    cfg = Config(dict(default_hooks=dict(checkpoint=checkpoint)))
    assert results.metric_of(cfg, line) == ('rmse', False, False)
    checkpoint.update(rule=None, less_keys=['rmse'])
    assert results.metric_of(cfg, line) == ('rmse', False, False)
    checkpoint.update(save_best='auto')
    cfg = Config(dict(default_hooks=dict(checkpoint=checkpoint)))
    assert results.metric_of(cfg, line) == ('mIoU', True, False)
    assert results.metric_of(Config(), dict(step=1, time=2.0)) is None


def test_controls_of_equal_cost_are_named_and_drawn(tmp_path):
    # Their configs differ from seed to seed, as the budget does.
    short = [
        fake(tmp_path / f's{seed}', seed, [50.0], config=f'budget = {seed}')
        for seed in (0, 1)
    ]
    fast = [
        fake(tmp_path / f'f{seed}', seed, [50.0 + seed], config='fast = True')
        for seed in (0, 1)
    ]
    full = [fake(tmp_path / f'a{seed}', seed, [9, 51.0]) for seed in (0, 1)]
    # The reference is the arm of most samples, wherever it stands.
    named = [('full', folder) for folder in full]
    named += [('infobatch', folder) for folder in fast]
    named += [('short', folder) for folder in short]
    page = Page(report.render(*named))
    check(page)
    over_samples = page.images[0]['alt']
    for name in ('full', 'infobatch', 'short'):
        assert f'{name} (2 seeds) from' in over_samples
    row = page.row('short')
    assert f' {MINUS}1.00 ' in row['difference to full']
    # +0 and +1: 0.7071 apart, and t(0.95, 1 degree) = 6.3138.
    assert f'+0.50 [{MINUS}2.66, +3.66]' in row['infobatch against it']
    assert page.row('full')['samples trained on'] == '40'
    assert row['samples trained on'] == f'20 ▲ better {MINUS}50.0 %'


def test_runs_are_never_mixed(tmp_path):
    one, other = (
        fake(tmp_path / f'run_s{seed}', seed, [50.0, 50.0]) for seed in (0, 1)
    )
    changed = fake(tmp_path / 'third', 0, [50.0], config='lr = 2')
    found = sources.read([(None, one), (None, other), (None, changed)])
    assert [(arm.name, len(arm.cells)) for arm in found.arms] == [
        ('run', 2),
        ('third', 1),
    ]
    with pytest.raises(ValueError, match='run_s0 is named twice'):
        report.render(one, other, one)
    again = fake(tmp_path / 'again', 0, [50.0, 50.0])
    with pytest.raises(ValueError, match='with seed 0: leave one out'):
        report.render(one, again)
    # Named as two arms they are compared, by the seed that both have.
    apart = sources.read([('a', one), ('b', again)])
    assert apart.gaps['a', 'b'].seeds == 1


def test_without_scipy_there_is_no_interval(tmp_path, monkeypatch):
    folders = two_arms(tmp_path, {0: 51.0, 1: 53.0, 2: 55.0})
    # As if no scipy were there.
    missing = partial(packages.require, 'no_such_package', 'compare')
    monkeypatch.setattr('infobatch_mm.compare.statistics._stats', missing)
    cell = Page(report.render(*folders)).row('fast')['difference to stock']
    assert cell.startswith('△ better, may be chance +2.00 no interval')
    assert 'pip install "infobatch_mm[compare]"' in cell


def test_the_title_names_the_config_and_the_policy(tmp_path):
    folder = tmp_path / 'run'
    hook = "dict(type='Hook', policy='no policy of ours'), "
    hook += "dict(type='PruneHook', policy=dict(type='my.QuantilePolicy'))"
    lines = [round_line(0), train_line(10), val_line(10)]
    write(folder, lines, config=f'custom_hooks = [{hook}]')
    text = (last_start(folder) / 'vis_data/config.py').read_text()
    (folder / 'another_runs.py').write_text('lr = 1\n')
    (folder / 'segformer_own.py').write_text(text)
    page = report.render(folder)
    assert '<h1>segformer_own · QuantilePolicy</h1>' in page
    assert '<title>segformer_own · QuantilePolicy' in page


def test_a_run_without_the_metric_of_the_others_is_named(tmp_path):
    folders = [fake(tmp_path / 'run', 0, [50.0])]
    folders.append(fake(tmp_path / 'odd', 0, [3.0], metric='rmse'))
    page = Page(report.render(('a', folders[0]), ('b', folders[1])))
    note = 'Left out of the results: odd has no mIoU at a validation.'
    assert note in page.text
    assert 'b ' not in page.images[0]['alt']


# Of 0.5 s an iteration; the stock runs beside them have that too.
@pytest.mark.parametrize(
    ('seconds', 'config', 'warns'),
    [
        (0.54, '', None),
        (0.6, '', '20%'),
        (0.4, '', '25%'),
        # What else a batch holds takes another time.
        (0.9, 'train_dataloader = dict(batch_size=4)', None),
        # ... or fewer samples, as with smaller batches.
        (0.3, SMALLER_BATCHES, None),
    ],
)
def test_times_that_differ_are_not_taken_for_gains(
    tmp_path, seconds, config, warns
):
    fast = fake(tmp_path / 'a', 0, [50.0], seconds=seconds, config=config)
    if config == SMALLER_BATCHES:
        line = dict(round=0, iter=0, total=20, kept=10, iters=10)
        line |= dict(mean_weight=1.0, threshold=1.0, seconds=3.0)
        (fast / 'infobatch.jsonl').write_text(f'{json.dumps(line)}\n')
        (scalars,) = fast.glob('*/vis_data/scalars.json')
        with scalars.open('a') as file:
            file.write('{"infobatch/kept_ratio": 0.5, "step": 0}\n')
    stock = fake(tmp_path / 'b', 0, [50.0, 50.0])
    shown = sources.read([('a', fast), ('b', stock)])
    warning = arms.pace_warning(shown.arms)
    assert (warns in warning) if warns else (warning is None)
    page = Page(report.render(('a', fast), ('b', stock)))
    assert ('Times differ.' in page.text) == bool(warns)
    change = f'{MINUS}{100 * (1 - seconds * 10 / 10):.1f} %'
    time_cell = page.row('a')['training time']
    assert time_cell.endswith(change)
    assert ('better' in time_cell) == (warns is None)


def test_the_clock_of_a_pruned_run_by_hand(tmp_path):
    rounds = [(0, 0, 20, 20), (20, 20, 15, 20), (35, 40, 15, 20)]
    lines = [
        {'infobatch/clock': clock, 'infobatch/kept_ratio': 1.0, 'step': step}
        for step, clock, *_ in rounds
    ]
    write(tmp_path, lines)
    # Half of a full round, all of it, 10 of 15 iterations that are worth 20
    # ticks, and 3 into the round that is under way at the same speed.
    clock = progress.clock_at(tmp_path, [10, 20, 30, 38])
    assert clock == pytest.approx([10, 20, 20 + 10 * 20 / 15, 40 + 4])
    assert progress.clock_at(fake(tmp_path / 'stock', 0, []), [7]) == [7]


def test_curves_over_the_clock_are_at_its_ticks(tmp_path):
    lines = [train_line(5), {**val_line(5), 'mIoU': 7.0}]
    for step, clock in ((5, 20), (10, 40)):
        scalars = {'infobatch/clock': clock, 'infobatch/kept_ratio': 0.5}
        lines.append({**scalars, 'step': step})
        lines += [train_line(step + 5), {**val_line(step + 5), 'mIoU': 9.0}]
    write(tmp_path, lines)
    alts = [i['alt'] for i in Page(report.render(tmp_path)).images]
    # The round under way goes on as fast as the one before.
    assert 'from 7 at 20 to 9 at 60' in alts[2]
    assert 'learning rate over clock' in alts[3]


def test_an_old_run_has_no_clock(tmp_path):
    write(tmp_path, [round_line(0), train_line(10), val_line(10)])
    page = Page(report.render(tmp_path))
    check(page)
    assert any('recorded without its clock' in text for text in page.missing)


CLASSWISE = (
    '2026/01/01 00:00:0{} - mmengine - INFO - Epoch(val) [{}][10/10]    '
    'accuracy/top1: 12.5000  single-label/precision_classwise: [{}, 0.0]  '
    'single-label/recall_classwise: [50.0, 100.0]  '
    'single-label/f1-score_classwise: [{}, nan]  data_time: 0.0018  '
    'time: 0.0087\n'
)


def test_classes_of_a_classification_run(tmp_path):
    folders = []
    for name, shift in (('a', 5.0), ('b', 0.0)):
        folder = fake(tmp_path / name, 0, [10.0, 20.0])
        start = last_start(folder)
        (start / f'{start.name}.log').write_text(
            CLASSWISE.format(1, 1, 1.0, 2.0)
            + CLASSWISE.format(2, 2, 13.75 + shift, 21.5 + shift)
        )
        folders.append((name, folder))
    assert read_run.per_class(folders[1][1])[1] == {
        '0': {'precision': 13.75, 'recall': 50.0, 'f1-score': 21.5},
        '1': pytest.approx(
            {'precision': 0.0, 'recall': 100.0, 'f1-score': math.nan},
            nan_ok=True,
        ),
    }
    page = Page(report.render(*folders))
    check(page)
    row = page.row('0')
    assert list(row.values())[1:] == [
        '△ better, may be chance +5.00',
        '21.50',
    ]
    dash = '\N{EN DASH}'
    assert list(page.row('1').values())[1:] == [dash, dash]
    # Of a run without any the page says how to get them.
    page = Page(report.render(fake(tmp_path / 'c', 0, [1.0])))
    [reason] = [text for text in page.missing if 'class' in text]
    assert 'SingleLabelMetric with average=None' in reason


def test_classes_that_a_comparison_logs():
    line = {'mIoU': 3.0, 'IoU/sky': 12.5, 'IoU/a/b': 1.0, 'step': 1}
    assert read_run.classes_in(line) == {
        'sky': {'IoU': 12.5},
        'a/b': {'IoU': 1.0},
    }


def test_scores_are_shown_without_their_tails():
    scores = torch.cat([torch.linspace(1, 2, 1000), torch.tensor([1e-6, 90])])
    scores = torch.cat([scores, torch.tensor([math.nan])])
    chart = round_figures.last_scores_chart(scores.numpy(), 1.5)
    assert 'Histogram of 1,002 scores, half of them below 1.5' in chart.alt
    # A half percent at each end: 5.005 of 1,001 steps.
    assert '12 of 1,002 samples lie beyond its ends, 1e-06 to 90' in (
        chart.caption
    )
    assert 'log axis' not in chart.caption
    wide = round_figures.last_scores_chart(
        torch.logspace(-3, 1, 500).numpy(), None
    )
    assert 'on a log axis' in wide.caption
    assert 'threshold' not in wide.svg


def test_long_curves_are_thinned_by_means():
    values = list(range(1000))
    thin = figures.thinned(figures.Curve(0, 'run', values, values))
    assert len(thin.values) == 200
    assert thin.values[0] == 2.0  # the mean of 0 to 4
    assert statistics.mean(thin.values) == statistics.mean(values)
    assert tables.cost_change(0.75).text == f'{MINUS}25.0 %'


# The page of `infobatch compare`


def compared(tmp_path, seeds=(0, 1), **changes):
    """Leave a comparison of three arms, one of them without its folders."""
    cells = []
    for seed in seeds:
        for arm, value, share, seconds in (
            ('full', 50.0, 1.0, 100.0),
            ('infobatch', 49.5 + seed, 0.75, 76.0),
            ('short', 48.0, 0.75, 75.0),
        ):
            folder = tmp_path / arm / str(seed)
            if arm != 'short':
                config = f'arm = {arm!r}'
                fake(folder, seed, [40.0, value], config=config)
            cells.append(
                dict(
                    arm=arm,
                    seed=seed,
                    work_dir=f'{arm}/{seed}',
                    value=value,
                    samples_share=share,
                    train_seconds=seconds,
                    at_cost_of='infobatch' if arm == 'short' else None,
                )
            )
    gaps = [('infobatch', 'full', 0.125), ('infobatch', 'short', 1.5)]
    gaps.append(('short', 'full', -2.0))
    found = dict(
        config='configs/own_segformer.py',
        metric='mIoU',
        higher_is_better=True,
        length=1.0,
        policy='InfoBatchPolicy(0.5 until 0.875)',
        verdict='Saves 25 % of the samples; as good as can be told.',
        cells=cells,
        # Not those of the cells: what the file says is shown.
        differences=[
            dict(arm=a, against=b, mean=m, n=len(seeds))
            | dict.fromkeys(('low', 'high'))
            | (dict(low=m - 1, high=m + 1) if len(seeds) > 1 else {})
            for a, b, m in gaps
        ],
    )
    (tmp_path / 'compare.json').write_text(json.dumps(found | changes))
    return tmp_path


def test_the_page_of_a_comparison(tmp_path, capsys):
    folder = compared(tmp_path)
    path = report.write_comparison(folder)
    assert path == folder / 'report.html'
    text = path.read_text()
    page = Page(text)
    check(page)
    title = 'own_segformer · InfoBatchPolicy(0.5 until 0.875)'
    assert f'<h1>{title}</h1>' in text
    assert 'Saves 25 % of the samples; as good as can be told.' in text
    row = page.row('infobatch')
    assert row['mIoU, last'] == '50.00 ± 0.71'
    assert f'+0.12 [{MINUS}0.88, +1.12]' in row['difference to full']
    assert row['samples trained on'] == f'75.0% ▲ better {MINUS}25.0 %'
    # The measured seconds, not the 10 s that the log adds up to.
    assert row['training time'] == f'76.0 s ▲ better {MINUS}24.0 %'
    assert 'at 76' in page.images[1]['alt']
    short = page.row('short')
    assert short['arm'].endswith('at the cost of infobatch')
    assert '▲ better +1.50 [+0.50, +2.50]' in short['infobatch against it']
    assert text.count('Left out of the curves: short with seed') == 2
    # The command finds the file, and the page is the same.
    command.main([str(folder)])
    assert 'report.html' in capsys.readouterr().out
    assert path.read_text() == text
    other = fake(tmp_path / 'other', 0, [1.0])
    assert 'name it alone' in refusal(capsys, str(folder), str(other))


def test_a_comparison_of_one_seed_has_no_verdict(tmp_path):
    compared(tmp_path, seeds=(0,), verdict=None, length=0.25)
    text = report.write_comparison(tmp_path).read_text()
    assert 'infobatch against full, one seed: no verdict.' in text
    assert 'A pilot on 25% of the schedule' in text


def test_arms_may_be_named_on_the_command_line(tmp_path, capsys):
    one = fake(tmp_path / 'x', 0, [50.0])
    other = fake(tmp_path / 'y=z', 0, [50.0])
    out = tmp_path / 'page.html'
    command.main([f'mine={one}', str(other), '--out', str(out)])
    page = Page(out.read_text())
    assert page.row('mine')['difference to y=z']


@pytest.mark.parametrize('ranks, seen', [(1, 12), (2, 16)])
def test_the_samples_of_a_round_are_dealt_to_each_rank(ranks, seen):
    line = dict(kept=32, total=40, iters=12)
    assert progress._images_of(line, 4, 40, ranks) == seen
    assert progress._images_of(line, 12, 40, ranks) == 32
