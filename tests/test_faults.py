"""What goes wrong has a defined end; a loss is credited to its own sample."""

import itertools
import json
import math
import os
import time
from contextlib import suppress
from functools import partial

import light
import numpy as np
import pytest
import torch
import toys
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.runner import Runner
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from processes import Child
from torch import nn
from torch.utils.data import get_worker_info

from infobatch_mm.commands import train
from infobatch_mm.report import runs

EPOCHS = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=6)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=40)
LOOPS = pytest.mark.parametrize('loop', [EPOCHS, ITERS], ids=['epoch', 'iter'])
SAVES = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=1))


@DATASETS.register_module()
class DeadlyData(light.LightData):
    """Data that kills its worker when a file says so."""

    def __init__(self, flag: str, **kwargs) -> None:
        self.flag = flag
        super().__init__(**kwargs)

    def prepare_data(self, idx: int) -> dict:
        if os.path.exists(self.flag) and get_worker_info() is not None:
            os._exit(1)
        return super().prepare_data(idx)


def train_until_the_worker_dies(make_config, flag, progress):
    """Train; exit with success only if the death of the worker is reported."""
    runner = toys.Runner.from_cfg(make_config())

    class Poison(Hook):
        def after_train_iter(self, runner, batch_idx, **kwargs):
            if runner.iter == 9:
                flag.touch()

    runner.register_hook(Poison())
    # torch's own, or that of the queue on which it was being read; or the one
    # while the other is handled.
    errors, finished = (RuntimeError, OSError, EOFError), False
    with suppress(*errors), suppress(*errors):
        runner.train()
        finished = True
    assert not finished
    # Within that very iteration if the worker dies at once.
    assert 9 <= runner.iter < runner.max_iters


# In a process of its own: torch raises the error from a signal handler, so
# in whatever line Python is at when the worker dies, pytest's own included.
@LOOPS
def test_a_worker_that_dies(tmp_path, loop):
    flag = tmp_path / 'die'
    data = dict(type='DeadlyData', flag=str(flag))
    make_config = partial(
        light.config,
        tmp_path,
        loop,
        workers=1,
        default_hooks=SAVES,
        train_dataloader=dict(dataset=dict(dataset=data)),
    )
    child = Child(train_until_the_worker_dies, make_config, flag)
    assert child.join(timeout=300) == 0
    saved = (tmp_path / 'last_checkpoint').read_text()
    assert torch.load(saved, weights_only=False)['infobatch']['round'] >= 1
    flag.unlink()
    cfg = make_config()
    cfg.resume = True
    assert toys.hook_of(toys.train(cfg)).clock.done


@LOOPS
def test_an_empty_data_set(tmp_path, loop):
    with pytest.raises(ValueError, match=r'\b0 samples'):
        toys.train(light.config(tmp_path, loop, samples=0))


def test_no_batch_because_of_drop_last(tmp_path):
    cfg = light.config(
        tmp_path, EPOCHS, samples=3, train_dataloader=dict(drop_last=True)
    )
    with pytest.raises(ValueError, match='no batch.*3 samples.*drop_last'):
        toys.train(cfg)


@LOOPS
@pytest.mark.parametrize('samples', [4, 5, 7, 9])
def test_tiny_data_sets(tmp_path, loop, samples):
    runner = toys.train(light.config(tmp_path, loop, samples=samples))
    hook = toys.hook_of(runner)
    assert hook.clock.done
    assert hook.samples_seen <= hook.samples_budget


@LOOPS
def test_all_losses_nan(tmp_path, loop):
    nans = dict(nan_at=tuple(range(26)))
    cfg = light.config(
        tmp_path, loop, train_dataloader=dict(dataset=dict(dataset=nans))
    )
    hook = toys.hook_of(toys.train(cfg))
    assert hook.board.scores.isnan().all()
    assert hook.samples_seen == hook.samples_budget


def test_samples_without_data_samples(tmp_path):
    indexed = toys.DATASETS.build(
        dict(type='IndexedDataset', dataset=toys.scenes(2, pipeline=[]))
    )
    with pytest.raises(TypeError, match='data_samples.*DigitScenes'):
        indexed[0]


def test_a_state_of_another_version(tmp_path):
    cfg = light.config(tmp_path, ITERS, default_hooks=SAVES)
    toys.train(cfg)
    name = (tmp_path / 'last_checkpoint').read_text()
    checkpoint = torch.load(name, weights_only=False)
    checkpoint['infobatch']['version'] = 99
    torch.save(checkpoint, name)
    cfg = light.config(tmp_path, ITERS, default_hooks=SAVES)
    cfg.resume = True
    with pytest.raises(ValueError, match='version 99'):
        toys.train(cfg)


# Runs that are mistaken for each other: on resume, and in a work dir

PLAIN_EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=8)


class Stop(Hook):
    """Cut a run off at an iteration, or end it early after an epoch."""

    def __init__(self, iters=None, epochs=None):
        self.iters, self.epochs = iters, epochs

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iters:
            raise KeyboardInterrupt

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.epochs:
            runner.train_loop.stop_training = True


def config_file(folder, *, pruned):
    """Write a config of the light run, for the command line."""
    cfg = light.config(
        folder / 'run',
        PLAIN_EPOCHS,
        pruned=pruned,
        default_hooks=dict(checkpoint=dict(interval=2)),
    )
    file = folder / f'{"pruned" if pruned else "stock"}.py'
    cfg.dump(file)
    return file


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A pruned run that was stopped within its fourth epoch."""
    folder = tmp_path_factory.mktemp('mix')
    cfg = light.config(
        folder / 'run',
        PLAIN_EPOCHS,
        default_hooks=dict(checkpoint=dict(interval=2)),
    )
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop(iters=20))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    return folder


def test_a_pruned_run_is_not_resumed_without_pruning(stopped, capsys):
    file = config_file(stopped, pruned=False)
    with pytest.raises(SystemExit) as end:
        train.main([str(file), '--resume'])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert 'checkpoint is that of a pruned run' in line
    assert '--resume-unpruned' in line
    file = config_file(stopped, pruned=False)  # another name for the run
    train.main([str(file), '--resume', '--resume-unpruned'])


def test_records_of_another_run_are_kept_and_not_mixed(tmp_path, monkeypatch):
    """A pruned run, a stock run and a pruned run in one work dir."""
    found = []
    # mmengine names the folder of a start after its second.
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(time, 'time', lambda: float(next(seconds)))
    for pruned in (True, False, True):
        cfg = toys.config(tmp_path, epochs=3, pruned=pruned, log_level='INFO')
        toys.train(cfg)
        found.append((runs.prunes(tmp_path), len(runs.rounds(tmp_path))))
    assert found == [(True, 3), (False, 0), (True, 3)]
    assert runs.summary(tmp_path) is not None
    kept = (tmp_path / 'infobatch.jsonl.1').read_text().splitlines()
    assert [json.loads(line)['round'] for line in kept] == [0, 1, 2]
    assert (tmp_path / 'infobatch_summary.json.1').exists()


def test_what_an_early_stop_leaves_out_is_not_saved(tmp_path):
    cfg = light.config(tmp_path, dict(PLAIN_EPOCHS, max_epochs=16))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop(epochs=4))
    runner.train()
    summary = json.loads((tmp_path / 'infobatch_summary.json').read_text())
    lines = (tmp_path / 'infobatch.jsonl').read_text().splitlines()
    kept = sum(json.loads(line)['kept'] for line in lines)
    assert len(lines) == 4
    assert summary['samples_budget'] == 4 * 26
    assert summary['samples_seen'] == kept < 4 * 26
    assert summary['saved_ratio'] == pytest.approx(1 - kept / (4 * 26))


# Each loss is credited to the sample that gave it, or to none

SOME = (1, 6)
PRUNE_MOST = dict(
    type='QuantilePolicy', quantiles=(0.8,), prune_ratios=(0.75,)
)


@OPTIM_WRAPPERS.register_module()
class NoStep(OptimWrapper):
    """Leave the weights alone, even where the gradient is NaN."""

    def step(self, **kwargs):
        pass


def freeze_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@HOOKS.register_module()
class Witness(Hook):
    """Make the loss of an image reveal it; note what each round trains on.

    With norms frozen it depends on no other image, and with larger logits it
    differs from theirs.
    """

    priority = 'LOWEST'

    def before_train(self, runner):
        self.planned, self.trained = [], []
        with torch.no_grad():
            runner.model.decode_head.conv_seg.weight.mul_(300)

    def before_train_epoch(self, runner):
        plan = toys.hook_of(runner).plan
        ids, weights = plan.indices.tolist(), plan.weights.tolist()
        self.planned.append(dict(zip(ids, weights, strict=True)))
        self.trained.append([])

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        freeze_norms(runner.model)
        weights = toys.hook_of(runner).ledger.weights.tolist()
        ids = [s.infobatch_index for s in data_batch['data_samples']]
        self.trained[-1].extend(zip(ids, weights, strict=True))


@TRANSFORMS.register_module()
class Spoil:
    """Fill the image or the label map of some samples with one value."""

    def __init__(self, image=None, label=None):
        self.image, self.label = image, label

    def __call__(self, results):
        if results['sample_idx'] in SOME:
            if self.image is not None:
                shape = results['img'].shape
                results['img'] = np.full(shape, self.image, np.float32)
            if self.label is not None:
                results['gt_seg_map'][:] = self.label
        return results


@MODELS.register_module()
class OverflowingLoss(CrossEntropyLoss):
    """Infinite if a whole image is of class 10."""

    def forward(self, logits, label, **kwargs):
        overflows = (label == 10).flatten(1).all(1).any()
        loss = super().forward(logits, label, **kwargs)
        return loss.where(~overflows, math.inf)


def run(work_dir, dataset, *, workers=0, **overrides):
    """Train three rounds, of which all but the first are pruned."""
    cfg = toys.config(
        work_dir, epochs=3, workers=workers, delta=1.0, policy=PRUNE_MOST
    )
    cfg.merge_from_dict(overrides)
    cfg.train_dataloader.dataset.dataset = dataset
    cfg.optim_wrapper.type = 'NoStep'
    cfg.param_scheduler = []
    cfg.custom_hooks[0].score = 'image_mean'
    cfg.custom_hooks.append(dict(type='Witness'))
    return toys.train(cfg)


def spoiled(num_scenes, **settings):
    pipeline = [dict(type='Spoil', **settings), dict(type='PackSegInputs')]
    return toys.scenes(num_scenes, pipeline=pipeline)


@torch.no_grad()
def losses_alone(runner):
    """Return the stock loss of each sample as a batch of its own."""
    stock = dict(toys.model(pruned=False), _scope_='mmseg')
    model = MODELS.build(stock).train()
    freeze_norms(model)
    model.load_state_dict(runner.model.state_dict())
    dataset, losses = runner.train_dataloader.dataset, []
    for i in range(len(dataset)):
        batch = model.data_preprocessor(pseudo_collate([dataset[i]]), True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        losses.append(loss)
    return torch.stack(losses)


def check_scores(runner, unscored=()):
    """Assert that every sample has its own loss, and some have none."""
    expected = losses_alone(runner)
    expected[list(unscored)] = math.nan
    different = expected[expected.isfinite()].unique().diff()
    assert different.min() > 1e-3
    scores = toys.hook_of(runner).board.scores
    torch.testing.assert_close(
        scores, expected, rtol=1e-5, atol=1e-5, equal_nan=True
    )


def check_rounds(runner):
    """Assert that the plan is what was trained on; return its rounds."""
    witness = next(h for h in runner.hooks if isinstance(h, Witness))
    for planned, trained in zip(witness.planned, witness.trained, strict=True):
        assert planned == dict(trained) and len(planned) == len(trained)
    sizes = [len(planned) for planned in witness.planned]
    assert sizes[0] == len(runner.train_dataloader.dataset) > max(sizes[1:])
    return witness.planned


def weight_of_one(runner, planned):
    """Return the weight of a sample that stands for itself alone."""
    if toys.hook_of(runner).run.pacing == 'fewer_steps':
        return 1.0
    return pytest.approx(len(planned) / 12)


def nonfinite_counts(runner):
    with open(f'{runner.work_dir}/infobatch.jsonl') as file:
        return [json.loads(line)['nonfinite'] for line in file]


@pytest.mark.parametrize(
    'loading',
    [
        dict(workers=0),
        dict(workers=2),
        {'workers': 2, 'train_dataloader.persistent_workers': False},
        {'workers': 2, 'train_dataloader.prefetch_factor': 4},
    ],
    ids=['main', 'persistent', 'fresh', 'prefetching'],
)
def test_whatever_loads_the_data(tmp_path, loading):
    runner = run(tmp_path, toys.scenes(14), **loading)
    check_scores(runner)
    check_rounds(runner)


def test_over_concat(tmp_path):
    parts = [toys.scenes(5), toys.scenes(6, seed=1)]
    runner = run(tmp_path, dict(type='ConcatDataset', datasets=parts))
    check_scores(runner)
    check_rounds(runner)


def test_over_repeat(tmp_path):
    dataset = dict(type='RepeatDataset', times=2, dataset=toys.scenes(6))
    runner = run(tmp_path, dataset)
    check_scores(runner)
    check_rounds(runner)


def test_a_last_batch_of_one(tmp_path):
    keep_all = dict(type='NoPruningPolicy')
    cfg = {'custom_hooks': [dict(type='InfoBatchHook', policy=keep_all)]}
    runner = run(tmp_path, toys.scenes(9), **cfg)
    assert runner.iter == 9
    check_scores(runner)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_refetched_sample_stays_unscored(tmp_path, workers):
    dataset = dict(toys.scenes(12), type='FlakyScenes', broken=SOME)
    runner = run(tmp_path, dataset, workers=workers)
    check_scores(runner, unscored=SOME)
    for planned in check_rounds(runner):
        assert [planned.get(i) for i in SOME] == [
            weight_of_one(runner, planned)
        ] * 2
    assert nonfinite_counts(runner) == [0, 0, 0]


@pytest.mark.parametrize(
    'spoil, loss',
    [
        (dict(image=math.nan), 'CrossEntropyLoss'),
        (dict(label=10), 'OverflowingLoss'),
    ],
    ids=['nan', 'inf'],
)
def test_a_loss_that_is_not_finite_is_no_score(tmp_path, spoil, loss):
    settings = {'model.decode_head.head.loss_decode.type': loss}
    runner = run(tmp_path, spoiled(12, **spoil), **settings)
    check_scores(runner, unscored=SOME)
    for planned in check_rounds(runner):
        assert [planned.get(i) for i in SOME] == [
            weight_of_one(runner, planned)
        ] * 2
    assert nonfinite_counts(runner) == [2, 2, 2]


def test_a_fully_ignored_image_scores_zero(tmp_path):
    runner = run(tmp_path, spoiled(12, label=255))
    check_scores(runner)
    assert toys.hook_of(runner).board.scores[list(SOME)].tolist() == [0, 0]
    assert nonfinite_counts(runner) == [0, 0, 0]
