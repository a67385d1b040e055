"""Each loss is credited to the sample that gave it, or to none."""

import json
import math

import numpy as np
import pytest
import torch
import toys
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, TRANSFORMS
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from torch import nn

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
        assert [planned.get(i) for i in SOME] == [1.0, 1.0]
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
        assert [planned.get(i) for i in SOME] == [1.0, 1.0]
    assert nonfinite_counts(runner) == [2, 2, 2]


def test_a_fully_ignored_image_scores_zero(tmp_path):
    runner = run(tmp_path, spoiled(12, label=255))
    check_scores(runner)
    assert toys.hook_of(runner).board.scores[list(SOME)].tolist() == [0, 0]
    assert nonfinite_counts(runner) == [0, 0, 0]
