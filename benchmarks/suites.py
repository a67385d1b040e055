"""Our suites and their arms: what is trained, and where its cells are kept."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from infobatch_mm.compare import arms
from infobatch_mm.compare.arms import Arm
from infobatch_mm.compare.cells import Study
from infobatch_mm.compare.setup import Parts, Setup, is_epoch_based, stretch
from infobatch_mm.pacing import SMALLER_BATCHES

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / 'benchmarks'
CELLS = HERE / 'cells'
RUNS = ROOT / 'work_dirs/benchmark'

# Suites


def tuned_to(first: Setup, batch: int, lr: float) -> Setup:
    """Return a suite at the best batch size and learning rate of its grid."""
    options = {**first.options, 'train_dataloader.batch_size': batch}
    if whole := options.get('optim_wrapper.optimizer'):
        options['optim_wrapper.optimizer'] = dict(whole, lr=lr)
    else:
        options['optim_wrapper.optimizer.lr'] = lr
    return first._replace(options=options)


def in_float32(first: Setup) -> Setup:
    """Return a suite whose runs take as long on any CPU."""
    options = dict(first.options)
    del options['optim_wrapper.type']
    return first._replace(options=options)


# One process a cell, as many cells as there are cores, so no workers; and the
# names under which the first cells imported their parts.
DIGITS = Setup(
    ROOT / 'benchmarks/configs/digits.py',
    'mIoU',
    num_workers=0,
    parts=Parts('benchmark_parts', 'class_iou'),
)
CIFAR_CONFIG = 'configs/cifar10/resnet18-w8_1xb{}-100e_cifar10-10k.py'
CIFAR = DIGITS._replace(
    config=ROOT / CIFAR_CONFIG.format('128'),
    metric='accuracy/top1',
    length=0.6,  # for four seeds of the core arms in a few hours
    channels_last=True,
)
TUNED_DIGITS = tuned_to(DIGITS, 16, 0.4)._replace(length=2.0)
# In bfloat16 an epoch takes two thirds of the time where the CPU has AMX, and
# more than twice the time where it has not. The grids are in bfloat16.
BFLOAT16 = {'optim_wrapper.type': 'BFloat16OptimWrapper'}
FAST_CIFAR = CIFAR._replace(options=BFLOAT16, length=0.3)
LARS_CIFAR, LAMB_CIFAR = (
    FAST_CIFAR._replace(config=ROOT / CIFAR_CONFIG.format(f'512-{name}'))
    for name in ('lars', 'lamb')
)
# On so long a schedule half the batch, for which there is no grid.
LONG_CIFAR = tuned_to(in_float32(FAST_CIFAR), 64, 0.1)._replace(length=3.0)
ADAMW = {
    'optim_wrapper.optimizer': dict(
        _delete_=True, type='AdamW', lr=0.004, weight_decay=0.05
    )
}
ADAMW_CIFAR = FAST_CIFAR._replace(options={**BFLOAT16, **ADAMW})
SGD = {
    'optim_wrapper.optimizer': dict(
        _delete_=True, type='SGD', lr=0.02, momentum=0.9, weight_decay=5e-4
    )
}
# As mmseg's U-Nets have it.
CE_DICE = [
    dict(type='CrossEntropyLoss', loss_name='loss_ce', loss_weight=1.0),
    dict(type='DiceLoss', loss_name='loss_dice', loss_weight=3.0),
]
# From ImageNet weights, on pictures of twice the size.
LARGER = dict(type='Resize', scale=64)
LITE0 = {
    'data_preprocessor': dict(mean=[127.0] * 3, std=[128.0] * 3),
    'train_dataloader.dataset.pipeline': [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        LARGER,
        dict(type='PackInputs'),
    ],
    'val_dataloader.dataset.pipeline': [LARGER, dict(type='PackInputs')],
    'test_dataloader.dataset.pipeline': [LARGER, dict(type='PackInputs')],
    'model.backbone': dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        out_indices=(4,),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/tf_efficientnet_lite0.pth',
        ),
    ),
    'model.head.in_channels': 320,
    'train_dataloader.batch_size': 64,
    'train_dataloader.dataset.indices': 5000,
    'optim_wrapper.optimizer.lr': 0.02,
    'train_cfg.val_interval': 25,
}
FINETUNED_CIFAR = CIFAR._replace(options=LITE0, length=0.12)
FINETUNED_CAMVID = DIGITS._replace(
    config=ROOT / 'benchmarks/configs/camvid_finetune.py',
    length=0.5,
    channels_last=True,
)
FINETUNED_CAMVID_SGD = FINETUNED_CAMVID._replace(options=SGD)
CAMVID = DIGITS._replace(
    config=ROOT / 'configs/camvid/upernet_r18_1xb4-4k_camvid-120x160.py',
    # 233 images instead of 101, for a less noisy metric.
    options={
        'val_dataloader.dataset.data_prefix': dict(
            img_path='images/test', seg_map_path='annotations/test'
        )
    },
    length=3.0,
)

# Where pruning pays: redundancy of the data x length of training. Without
# near duplicates and at the usual length it is `digits` itself.
NEAR = (0, 50, 90)  # percent
LENGTHS = {'third': 1 / 3, 'one': 1.0, 'three': 3.0}


def near_suite(percent: int, length: str) -> str:
    """Return the name of a suite of the map."""
    if (percent, length) == (0, 'one'):
        return 'digits'
    return f'digits-near{percent}-{length}'


MAP = {
    near_suite(percent, length): DIGITS._replace(
        options={'train_dataloader.dataset.near_duplicates': percent / 100},
        length=factor,
    )
    for percent in NEAR
    for length, factor in LENGTHS.items()
}
SUITES: dict[str, Setup] = MAP | {
    'digits': DIGITS,  # in place of the map's, whose digest is another
    # With the best of the grid of stocks, as many samples in twice the steps.
    'digits-tuned': TUNED_DIGITS,
    'digits-tuned-three': TUNED_DIGITS._replace(length=6.0),
    'camvid': CAMVID,
    'cifar10': CIFAR,
    'cifar10-lars': CIFAR._replace(
        config=ROOT / CIFAR_CONFIG.format('512-lars')
    ),
    'cifar10-lamb': CIFAR._replace(
        config=ROOT / CIFAR_CONFIG.format('512-lamb')
    ),
    # First stocks, whose grids the others are tuned by.
    'cifar10-adamw': ADAMW_CIFAR,
    'cifar10-lars-30e': LARS_CIFAR,
    'cifar10-lamb-30e': LAMB_CIFAR,
    'cifar10-finetune': FINETUNED_CIFAR,
    'camvid-finetune': FINETUNED_CAMVID,
    'camvid-finetune-sgd': FINETUNED_CAMVID_SGD,
    'cifar10-tuned': tuned_to(FAST_CIFAR, 32, 0.1),
    'cifar10-tuned-float32': tuned_to(in_float32(FAST_CIFAR), 32, 0.1),
    'cifar10-adamw-tuned': tuned_to(in_float32(ADAMW_CIFAR), 32, 0.004),
    'cifar10-lars-tuned': tuned_to(in_float32(LARS_CIFAR), 128, 4.8),
    'cifar10-lamb-tuned': tuned_to(in_float32(LAMB_CIFAR), 128, 0.02),
    # The paper's regime: all data gains little from training longer.
    'cifar10-long': LONG_CIFAR,
    'cifar10-longer': LONG_CIFAR._replace(length=6.0),
    'camvid-adamw': CAMVID._replace(
        config=ROOT / 'configs/camvid/upernet_r18_1xb4-50e_camvid-120x160.py',
        length=1.0,
    ),
    # From ImageNet weights; these need the extra finetune.
    'cifar10-finetune-tuned': tuned_to(FINETUNED_CIFAR, 32, 0.01),
    'camvid-finetune-tuned': tuned_to(
        FINETUNED_CAMVID._replace(length=1.0), 4, 0.008
    ),
    'camvid-finetune-sgd-tuned': tuned_to(
        FINETUNED_CAMVID_SGD._replace(length=1.0), 8, 0.32
    ),
    # A loss that cannot be scored in one call.
    'digits-dice': DIGITS._replace(
        options={'model.decode_head.loss_decode': CE_DICE}
    ),
    # One digit ten times rarer in training than the others.
    'digits-rare': DIGITS._replace(
        options={'train_dataloader.dataset.digit_odds': [1.0] * 9 + [0.1]}
    ),
    # For the time that pruning saves; shorter where a pair takes long.
    'digits-paired': DIGITS,
    'camvid-paired': CAMVID._replace(length=CAMVID.length / 3),
    'cifar10-paired': CIFAR._replace(length=CIFAR.length / 3),
}

# Arms


paper = arms.infobatch_fewer_steps


def prune_ratio(ratio: float | Mapping[str, object]) -> Arm:
    """Return an arm of the paper's policy at another prune ratio."""
    return paper(
        policy=dict(type='InfoBatchPolicy', prune_ratio=ratio), delta=0.875
    )


def ramp(start: float, end: float) -> Arm:
    """Return an arm whose prune ratio goes from one value to another."""
    return prune_ratio(dict(type='linear', start=start, end=end))


def tuned(batch: float, lr: float) -> Arm:
    """Return all data at another batch size and learning rate.

    As many samples are seen, in more or fewer steps.

    Args:
        batch (float): Factor on the batch size.
        lr (float): Factor on every learning rate.
    """

    def change(cfg: Config, budget: arms.Budget, seed: int) -> Config:
        loader = cfg.train_dataloader
        loader.batch_size = round(loader.batch_size * batch)
        by_epoch = is_epoch_based(cfg)
        stretch(cfg, 1 if by_epoch else 1 / batch, of_iters=1 / batch)
        arms.raise_lr(cfg, 1 / lr)
        return cfg

    return Arm(change)


PAPER = dict(policy=dict(type='InfoBatchPolicy', prune_ratio=0.5), delta=0.875)
ALL_STEPS = arms.PAPER | dict(pacing=SMALLER_BATCHES)
INFOBATCH = dict(type='InfoBatchPolicy')


def core(**options: object) -> dict[str, Arm]:
    """Return the core arms: both pacings of InfoBatch, and their controls."""
    named = arms.core(**options, **arms.PAPER)
    del named['infobatch-fewer-steps']  # here it is `infobatch`
    smaller = arms.infobatch(**options, **ALL_STEPS)
    return named | {'infobatch-small-batch': smaller}


# With the options of the paper spelled out, as the digests of the cells hold
# them; those of the others are the same by default.
CORE = core() | dict(infobatch=paper(**PAPER))


def at_cost(named: Mapping[str, Arm], percent: int) -> dict[str, Arm]:
    """Return arms at another cost, by name.

    Args:
        named (Mapping): The arms.
        percent (int): What they see of the samples of all data, nearly.
    """
    return {
        f'{name}-{percent}': arm._replace(
            at_cost_of=arm.at_cost_of and f'{arm.at_cost_of}-{percent}'
        )
        for name, arm in named.items()
        if name != 'full'
    }


def keeping(share: float) -> dict[str, Any]:
    """Return the options of a run that keeps a share in pruned rounds."""
    policy = dict(type='InfoBatchPolicy', keep=share)
    return dict(policy=policy, delta=0.875)


# Beside the paper's ratio, which sees about 70 to 73 % of the samples. For
# these a pruned round keeps less, as a seventh of the rounds is not pruned.
COSTS = (50, 33)
HALF, THIRD = keeping(0.42), keeping(0.22)
AT_COSTS = at_cost(core(**HALF), 50) | at_cost(core(**THIRD), 33)
# Without what was run as exploratory first, and became a core arm for that.
PLANNED_ARMS = (CORE | AT_COSTS).keys() - {'short-lr'}


def never_annealed(kind: str = 'InfoBatchPolicy', **options: Any) -> Arm:
    """Return an arm in all steps that prunes up to the end.

    Args:
        kind (str): The type of its policy.
        **options: Those of the policy, such as ``keep``.
    """
    policy = dict(type=kind, **options)
    return arms.infobatch(policy=policy, delta=1.0, **ALL_STEPS)


PROPORTIONAL = 'ProportionalPolicy'  # of benchmarks/parts
RANDOM_SMALL_BATCH = {'random-small-batch': arms.random(**ALL_STEPS)}
EXPLORATORY: dict[str, Arm] = {
    'quantile': paper(policy=dict(type='QuantilePolicy'), delta=0.875),
    'class-balanced': paper(score='class_balanced'),
    'gradient-norm': paper(**PAPER, score='gradient_norm'),
    # All steps at the same costs, without full batches at the end.
    'infobatch-small-batch-no-annealing': never_annealed(keep=0.725),
    'infobatch-small-batch-no-annealing-50': never_annealed(keep=0.493),
    # And with other choices than by the mean.
    'quantile-small-batch': never_annealed('QuantilePolicy', keep=0.725),
    'quantile-small-batch-50': never_annealed('QuantilePolicy', keep=0.493),
    'proportional-small-batch': never_annealed(PROPORTIONAL, keep=0.725),
    'proportional-small-batch-50': never_annealed(PROPORTIONAL, keep=0.493),
    'ramp-up-small-batch': never_annealed(
        prune_ratio=dict(type='linear', start=0.0, end=0.9)
    ),
    **RANDOM_SMALL_BATCH,
    **at_cost(RANDOM_SMALL_BATCH, 50),
    'random-unscaled': arms.random(rescaled=False, **arms.PAPER),
    'infobatch-unscaled': paper(policy=arms.unscaled(INFOBATCH), delta=0.875),
    'infobatch-no-annealing': paper(**PAPER | dict(delta=1.0)),
    'subset': arms.subset(),
    'infobatch-lr': arms.infobatch_lr(**PAPER, **arms.PAPER),
    'ramp-up': ramp(0.1, 0.9),
    'ramp-down': ramp(0.9, 0.1),
    'ramp-up-0.99': ramp(0.0, 0.99),
    'ramp-down-0.99': ramp(0.99, 0.0),
    'infobatch-r0.1': prune_ratio(0.1),
    'infobatch-r0.3': prune_ratio(0.3),
    'infobatch-r0.7': prune_ratio(0.7),
}
# Is the stock run a fair one? All data, by factors on batch and learning rate.
BATCHES, LRS = (1.0, 0.5, 0.25), tuple(2.0**power for power in range(-3, 5))
GRID = {
    (batch, lr): f'full-b{batch:g}-lr{lr:g}' for batch in BATCHES for lr in LRS
} | {(1.0, 1.0): 'full'}
TUNED = {
    name: tuned(*factors) for factors, name in GRID.items() if name != 'full'
}
ARMS = CORE | AT_COSTS | TUNED | EXPLORATORY


# What costs as much as `infobatch`: on short schedules the first round, which
# is full, is more of the samples; on long ones more lie below the mean.
KEEPS = {
    'cifar10-finetune-tuned': 0.682,
    'cifar10-tuned-float32': 0.711,
    'cifar10-adamw-tuned': 0.709,
    'cifar10-lars-tuned': 0.713,
    'cifar10-lamb-tuned': 0.714,
    'cifar10-long': 0.659,
}


def arms_of(suite: str) -> dict[str, Arm]:
    """Return the arms of a suite, at its costs."""
    arm = never_annealed(keep=KEEPS.get(suite, 0.725))
    return ARMS | {'infobatch-small-batch-no-annealing': arm}


def cells_file(suite: str) -> Path:
    """Return the file of a suite's finished cells, one for its data set."""
    return CELLS / f'{suite.partition("-")[0]}.jsonl'


def study(suite: str) -> Study:
    """Return a suite with its arms and its places."""
    path = [str(HERE / 'parts'), os.environ.get('PYTHONPATH', '')]
    return Study(
        suite,
        SUITES[suite],
        arms_of(suite),
        results=cells_file(suite),
        work_dir=RUNS / suite,
        train=(sys.executable, str(ROOT / 'tools/train.py')),
        env=dict(
            OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(filter(None, path))
        ),
        cwd=ROOT,
    )
