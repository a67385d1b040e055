"""Our suites and their arms: what is trained, and where its cells are kept."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from infobatch_mm.compare import arms
from infobatch_mm.compare.arms import Arm
from infobatch_mm.compare.cells import Study
from infobatch_mm.compare.setup import Parts, Setup

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / 'benchmarks'
CELLS = HERE / 'cells'
RUNS = ROOT / 'work_dirs/benchmark'

# Suites

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
    'camvid': CAMVID,
    'cifar10': CIFAR,
    'cifar10-lars': CIFAR._replace(
        config=ROOT / CIFAR_CONFIG.format('512-lars')
    ),
    'cifar10-lamb': CIFAR._replace(
        config=ROOT / CIFAR_CONFIG.format('512-lamb')
    ),
    # From ImageNet weights; needs the extra finetune. No cells yet.
    'camvid-finetune': DIGITS._replace(
        config=ROOT / 'benchmarks/configs/camvid_finetune.py'
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


def prune_ratio(ratio: float | Mapping[str, object]) -> Arm:
    """Return an arm of the paper's policy at another prune ratio."""
    return arms.infobatch(
        policy=dict(type='InfoBatchPolicy', prune_ratio=ratio), delta=0.875
    )


def ramp(start: float, end: float) -> Arm:
    """Return an arm whose prune ratio goes from one value to another."""
    return prune_ratio(dict(type='linear', start=start, end=end))


PAPER = dict(policy=dict(type='InfoBatchPolicy', prune_ratio=0.5), delta=0.875)
INFOBATCH = dict(type='InfoBatchPolicy')
# With the options of the paper spelled out, as the digests of the cells hold
# them; those of `random` are the same by default.
CORE = arms.core() | dict(infobatch=arms.infobatch(**PAPER))
# Without what was run as exploratory first, and became a core arm for that.
PLANNED_ARMS = CORE.keys() - {'short-lr'}
EXPLORATORY: dict[str, Arm] = {
    'quantile': arms.infobatch(
        policy=dict(type='QuantilePolicy'), delta=0.875
    ),
    'class-balanced': arms.infobatch(score='class_balanced'),
    'random-unscaled': arms.random(rescaled=False),
    'infobatch-unscaled': arms.infobatch(
        policy=arms.unscaled(INFOBATCH), delta=0.875
    ),
    'infobatch-no-annealing': arms.infobatch(**PAPER | dict(delta=1.0)),
    'subset': arms.subset(),
    'infobatch-lr': arms.infobatch_lr(**PAPER),
    'ramp-up': ramp(0.1, 0.9),
    'ramp-down': ramp(0.9, 0.1),
    'ramp-up-0.99': ramp(0.0, 0.99),
    'ramp-down-0.99': ramp(0.99, 0.0),
    'infobatch-r0.1': prune_ratio(0.1),
    'infobatch-r0.3': prune_ratio(0.3),
    'infobatch-r0.7': prune_ratio(0.7),
}
ARMS = CORE | EXPLORATORY


def cells_file(suite: str) -> Path:
    """Return the file of a suite's finished cells, one for its data set."""
    return CELLS / f'{suite.partition("-")[0]}.jsonl'


def study(suite: str) -> Study:
    """Return a suite with its arms and its places."""
    path = [str(HERE / 'parts'), os.environ.get('PYTHONPATH', '')]
    return Study(
        suite,
        SUITES[suite],
        ARMS,
        results=cells_file(suite),
        work_dir=RUNS / suite,
        train=(sys.executable, str(ROOT / 'tools/train.py')),
        env=dict(
            OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(filter(None, path))
        ),
        cwd=ROOT,
    )
