"""Runs of mmpretrain: stock when off, scored right, resumed exactly.

Mixup, CutMix and ResizeMix make an image of two. Its loss and its weight are
those of the sample in whose place of the batch it stands, its base; see
docs/classification.md.
"""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')
import cls_toys
from cls_toys import CLASSES
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from infobatch_mm import InfoBatchHook, InfoBatchPolicy

SMOOTH = dict(
    type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=CLASSES
)
AUGMENTS = dict(
    mixup=dict(type='Mixup', alpha=0.8),
    cutmix=dict(type='CutMix', alpha=1.0),
    resizemix=dict(type='ResizeMix', alpha=1.0),
)
EPOCHS = 3


@HOOKS.register_module()
class ClsRecorder(Hook):
    """Keep what the run logs and what enters the head, batch by batch."""

    def before_train(self, runner):
        self.log_vars, self.inputs = [], []
        runner.model.backbone.register_forward_pre_hook(
            lambda _, args: self.inputs.append(args[0].clone())
        )

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.log_vars.append({k: v.clone() for k, v in outputs.items()})


# With exact resuming, the default of a policy that prunes, draws are its own.
OFF = dict(
    no_pruning=dict(policy=dict(type='NoPruningPolicy')),
    ratio_of_zero=dict(
        policy=dict(type='InfoBatchPolicy', prune_ratio=0.0),
        exact_resume=False,
    ),
)


def train(work_dir, *, augment=None, exact_resume=None, **settings):
    cfg = cls_toys.config(work_dir, epochs=EPOCHS, samples=22, **settings)
    if exact_resume is not None:
        (hook,) = cfg.custom_hooks
        hook.exact_resume = exact_resume
    if augment:
        cfg.model.train_cfg = dict(augments=AUGMENTS[augment])
    cfg.custom_hooks.append(dict(type='ClsRecorder'))
    runner = Runner.from_cfg(cfg)
    np.random.seed(3)  # mmpretrain mixes by the global generators
    torch.manual_seed(3)
    runner.train()
    return runner


def recorder(runner):
    return next(h for h in runner.hooks if isinstance(h, ClsRecorder))


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, InfoBatchHook))


# Off is stock


@pytest.mark.parametrize(
    'head, augment, workers',
    [
        (None, None, 0),
        (None, None, 2),
        (cls_toys.linear_head(loss=SMOOTH), None, 0),
        (None, 'mixup', 0),
        (cls_toys.linear_head(loss=SMOOTH), 'cutmix', 0),
        (None, 'resizemix', 0),
    ],
)
@pytest.mark.parametrize('off', OFF)
def test_off_is_stock_bit_for_bit(tmp_path, head, augment, workers, off):
    settings = dict(head=head, augment=augment, workers=workers)
    stock = train(tmp_path / 'stock', pruned=False, **settings)
    ours = train(tmp_path / 'ours', **OFF[off], **settings)
    for found, expected in (
        (recorder(ours).log_vars, recorder(stock).log_vars),
        (recorder(ours).inputs, recorder(stock).inputs),
        (ours.model.state_dict(), stock.model.state_dict()),
    ):
        assert found
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_on_is_not(tmp_path):
    stock = train(tmp_path / 'stock', pruned=False)
    ours = train(tmp_path / 'ours')
    ours, stock = recorder(ours).log_vars, recorder(stock).log_vars
    assert ours[0] == stock[0] and ours[-1] != stock[-1]


def test_the_copy_of_an_ema_hook_does_not_record(tmp_path):
    cfg = cls_toys.config(tmp_path, samples=8, epochs=1)
    cfg.custom_hooks.append(dict(type='EMAHook'))
    runner = Runner.from_cfg(cfg)
    runner.train()
    ema = next(h for h in runner.hooks if isinstance(h, EMAHook)).ema_model
    ours, copy = runner.model.head.loss_module, ema.module.head.loss_module
    assert type(copy) is type(ours) and copy is not ours
    assert ours.infobatch_ledger is hook_of(runner).ledger
    assert copy.infobatch_ledger is not hook_of(runner).ledger


# Scores


@HOOKS.register_module()
class Frozen(Hook):
    """Keep the model as it is, so that its losses can be computed again."""

    priority = 'LOWEST'

    def before_train(self, runner):
        # Its classes are all alike at the start.
        nn.init.normal_(runner.model.head.fc.weight)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def frozen_run(work_dir, **settings):
    cfg = cls_toys.config(work_dir, samples=22, epochs=2, **settings)
    cfg.optim_wrapper.optimizer.lr = 0.0
    cfg.custom_hooks.append(dict(type='Frozen'))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('loss', [dict(type='CrossEntropyLoss'), SMOOTH])
def test_each_loss_is_credited_to_its_sample(tmp_path, loss, workers):
    head = cls_toys.linear_head(loss=loss)
    runner = frozen_run(tmp_path, head=head, workers=workers)
    stock = dict(cls_toys.model(pruned=False, head=head), _scope_='mmpretrain')
    model = MODELS.build(stock).train()
    model.load_state_dict(runner.model.state_dict())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    dataset, losses = runner.train_dataloader.dataset, []
    for i in range(len(dataset)):
        batch = model.data_preprocessor(pseudo_collate([dataset[i]]), True)
        with torch.no_grad():
            losses.append(model(**batch, mode='loss')['loss'])
    expected = torch.stack(losses)
    assert expected.unique().numel() == len(dataset)
    torch.testing.assert_close(
        hook_of(runner).board.scores, expected, rtol=1e-5, atol=1e-5
    )


# Several tasks


def train_tasks(work_dir, **dataset):
    tasks = dict(
        first=cls_toys.linear_head(), second=cls_toys.linear_head(loss=SMOOTH)
    )
    cfg = cls_toys.config(
        work_dir, head=dict(type='MultiTaskHead', task_heads=tasks), epochs=3
    )
    cfg.train_dataloader.dataset.dataset = cls_toys.blobs(
        16, tasks=True, **dataset
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_tasks_with_all_labels_prune(tmp_path):
    runner = train_tasks(tmp_path)
    hook = hook_of(runner)
    assert list(hook.steps.heads) == [
        'head.task_heads.first',
        'head.task_heads.second',
    ]
    assert hook.samples_seen < 3 * 16
    # Both tasks are in the score: log(5) each at first.
    assert hook.board.scores.mean() > 2


def test_tasks_with_missing_labels_are_an_error(tmp_path):
    with pytest.raises(ValueError, match='every sample has a label for every'):
        train_tasks(tmp_path, unlabelled=(3,))


@MODELS.register_module()
class AbsoluteError(nn.Module):
    """Has a gradient of the same norm for every image."""

    def forward(self, cls_score, label, avg_factor):
        labels = nn.functional.one_hot(label, CLASSES)
        return (cls_score - labels).abs().sum() / avg_factor


@pytest.mark.parametrize('score', [None, 'image_mean'])
def test_a_run_with_equal_scores_says_so(tmp_path, score):
    cfg = cls_toys.config(
        tmp_path,
        epochs=2,
        hook=dict(score=score),
        head=cls_toys.linear_head(loss=dict(type='AbsoluteError')),
        log_level='WARNING',
    )
    Runner.from_cfg(cfg).train()
    (log,) = tmp_path.glob('*/*.log')
    says = 'round 1 keeps all samples, since all scores are the same'
    assert (says in log.read_text()) == (score is None)


# A run that was resumed


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def rounds(folder):
        lines = (tmp_path / folder / 'infobatch.jsonl').read_text()
        found = [json.loads(line) for line in lines.splitlines()]
        return [(line['kept'], line['digest']) for line in found]

    whole = train(tmp_path / 'whole')
    hooks = {'default_hooks.checkpoint.interval': 2}
    train(tmp_path / 'first', **hooks)
    checkpoint = str(tmp_path / 'first/epoch_2.pth')
    resumed = train(tmp_path / 'second', resume=True, load_from=checkpoint)
    assert rounds('second') == rounds('whole')[2:]
    torch.testing.assert_close(
        resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0
    )


# Images made of two


def preprocessor(augment, num_classes):
    return MODELS.build(
        dict(
            type='ClsDataPreprocessor',
            num_classes=num_classes,
            batch_augments=dict(augments=AUGMENTS[augment]),
        )
    )


@pytest.mark.parametrize('augment', AUGMENTS)
def test_score_and_weight_of_a_mixed_image_are_of_its_base(augment):
    """By hand: mixed once, then each image is a batch of its own."""
    torch.manual_seed(0)
    config = dict(cls_toys.model(pruned=True), _scope_='mmpretrain')
    model = MODELS.build(config).train()
    nn.init.normal_(model.head.fc.weight)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    np.random.seed(0)
    data = dict(inputs=images, data_samples=samples)
    batch = preprocessor(augment, CLASSES)(data, training=True)
    weights = torch.tensor([0.5, 2.0, 1.0, 4 / 3])
    parameters = list(model.parameters())

    def gradient(inputs, samples, scale=1.0):
        loss = model.loss(inputs, samples)['loss']
        return loss, torch.autograd.grad(loss * scale, parameters)

    alone = [
        gradient(batch['inputs'][i : i + 1], [sample], weights[i] / 4)
        for i, sample in enumerate(batch['data_samples'])
    ]
    ledger = model.head.loss_module.infobatch_ledger
    ledger.open(torch.arange(4), weights)
    _, found = gradient(batch['inputs'], batch['data_samples'])
    _, scores = ledger.close()
    losses, gradients = zip(*alone, strict=True)
    torch.testing.assert_close(scores, torch.stack(losses))
    expected = [sum(parts) for parts in zip(*gradients, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-5)


LOW, HIGH, KEPT = 6, 4, 3
SCORES = torch.tensor([0.1] * LOW + [1.0] * HIGH)


def mixing_weights(draws):
    """Return how much each sample was mixed into each base: (N, N).

    Each round is one batch of images that show only their own id, mixed half
    and half, so that the label tells base and partner.
    """
    total = LOW + HIGH
    mix = deepcopy(preprocessor('mixup', total).batch_augments)
    policy = InfoBatchPolicy(prune_ratio=1 - KEPT / LOW)
    sums = torch.zeros(total, total)
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        plan = policy.plan(SCORES, generator=generator)
        onehot = torch.eye(total)[plan.indices]
        _, mixed = mix(onehot, onehot)
        partners = (mixed - mixed * onehot).argmax(1)
        alone = (mixed * onehot).sum(1) > 1 - 1e-6
        partners = plan.indices.where(alone, partners)
        sums[plan.indices, partners] += plan.weights
    return sums / draws


def test_bases_are_unbiased_and_partners_are_not():
    """As derived in docs/classification.md."""
    torch.manual_seed(0)
    found = mixing_weights(draws=4000)
    kept, total = KEPT + HIGH, LOW + HIGH
    share = torch.tensor([KEPT / LOW] * LOW + [1.0] * HIGH)
    bases, partners = found.sum(1), found.sum(0)
    # In the stock run both are 1.
    torch.testing.assert_close(bases, torch.ones(total), rtol=0.05, atol=0)
    expected = share * total / kept
    torch.testing.assert_close(partners, expected, rtol=0.08, atol=0)
    assert partners[:LOW].mean() < 0.75 and partners[LOW:].mean() > 1.35


# Smaller batches

LAMB = dict(type='Lamb', lr=0.02, weight_decay=0.1)


def train_small(work_dir, *, policy=None, **settings):
    """Train 24 blobs in batches of 6 with LAMB; stock without a policy."""
    cfg = cls_toys.config(
        work_dir,
        pruned=policy is not None,
        batch_size=6,
        policy=policy,
        hook=dict(pacing='smaller_batches'),
        **settings,
    )
    cfg.optim_wrapper.optimizer = LAMB
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def assert_same_run(ours, theirs):
    for part in (lambda r: r.model, lambda r: r.optim_wrapper.optimizer):
        torch.testing.assert_close(
            part(ours).state_dict(), part(theirs).state_dict(), rtol=0, atol=0
        )


def test_lamb_with_nothing_pruned_is_the_stock_run(tmp_path):
    nothing = dict(type='InfoBatchPolicy', prune_ratio=0.0)
    ours = train_small(tmp_path / 'ours', policy=nothing)
    assert_same_run(ours, train_small(tmp_path / 'stock'))


def test_a_pruned_run_makes_all_steps_and_resumes_exactly(tmp_path):
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.5)
    saves = {
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.by_epoch': False,
    }
    whole = train_small(tmp_path / 'whole', policy=policy, **saves)
    assert whole.iter == whole.max_iters == 16
    summary = json.loads(
        (tmp_path / 'whole/infobatch_summary.json').read_text()
    )
    assert summary['iters_run'] == summary['iters_budget'] == 16
    assert summary['saved_ratio'] > 0.1
    # In the middle of the second round, which prunes.
    name = str(tmp_path / 'whole/iter_6.pth')
    resumed = train_small(
        tmp_path / 'again',
        policy=policy,
        resume=True,
        load_from=name,
        **saves,
    )
    assert_same_run(resumed, whole)
