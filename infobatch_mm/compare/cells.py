"""Train a suite of the benchmark: arms x seeds, a JSON file a cell.

tools/benchmark.py SUITE [--arms ARM ...] [--seeds SEED ...] [--jobs 2]
tools/benchmark.py report

A cell that is finished is not run again, one that was cut off is resumed
from its last checkpoint. Cells lie under `benchmarks/cells`, what their runs
write under `work_dirs/benchmark`. `report` makes the tables and pictures.

Arms that must cost what pruning costs (`random`, `short`, ...) take their
budget from the cell of `infobatch` with the same seed, which runs first.
"""

import infobatch_mm  # isort: skip

import argparse
import copy
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    wait,
)
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / 'benchmarks/cells'
RUNS = ROOT / 'work_dirs/benchmark'

# Suites


class Suite(NamedTuple):
    """What the arms of a suite train.

    Attributes:
        config (str): The stock config, below the root of the project.
        metric (str): The metric that counts, in percent.
        options (dict): Settings that the suite changes in it.
        length (float): Factor on the length of its schedule.
        channels_last (bool): Whether the model's memory is laid out so,
            which makes some of them train faster on a CPU.
    """

    config: str
    metric: str
    options: dict[str, Any] = {}
    length: float = 1.0
    channels_last: bool = False


DIGITS = Suite('benchmarks/configs/digits.py', 'mIoU')
CIFAR_CONFIG = 'configs/cifar10/resnet18-w8_1xb{}-100e_cifar10-10k.py'
CIFAR = Suite(
    CIFAR_CONFIG.format('128'),
    'accuracy/top1',
    length=0.6,  # for four seeds of the core arms in a few hours
    channels_last=True,
)
SUITES = {
    'digits': DIGITS,
    'camvid': Suite(
        'configs/camvid/upernet_r18_1xb4-4k_camvid-120x160.py',
        'mIoU',
        # 233 images instead of 101, for a less noisy metric.
        options={
            'val_dataloader.dataset.data_prefix': dict(
                img_path='images/test', seg_map_path='annotations/test'
            )
        },
        length=3.0,
    ),
    'cifar10': CIFAR,
    'cifar10-lars': CIFAR._replace(config=CIFAR_CONFIG.format('512-lars')),
    'cifar10-lamb': CIFAR._replace(config=CIFAR_CONFIG.format('512-lamb')),
}
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
SUITES = MAP | SUITES  # where both have it, the plain `digits`
# One digit ten times rarer in training than the others.
SUITES['digits-rare'] = DIGITS._replace(
    options={'train_dataloader.dataset.digit_odds': [1.0] * 9 + [0.1]}
)
# For the time that pruning saves; shorter where a pair takes long.
SUITES['digits-paired'] = DIGITS
for _name in ('camvid', 'cifar10'):
    SUITES[f'{_name}-paired'] = SUITES[_name]._replace(
        length=SUITES[_name].length / 3
    )


def stock_config(suite: Suite) -> Config:
    """Return what a suite trains on all data, with the benchmark's parts."""
    cfg = Config.fromfile(ROOT / suite.config)
    cfg.merge_from_dict(suite.options)
    if suite.length != 1:
        stretch(cfg, suite.length)
    imports = list(cfg.get('custom_imports', {}).get('imports', []))
    imports.append('benchmark_parts')
    if suite.metric == 'mIoU':
        imports.append('class_iou')
        cfg.val_evaluator.type = cfg.test_evaluator.type = 'ClassIoUMetric'
    cfg.custom_imports = dict(imports=imports, allow_failed_imports=False)
    hook = dict(type='BenchmarkHook')
    if suite.channels_last:
        hook['channels_last'] = True
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]
    # One process a cell, as many cells as there are cores.
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].num_workers = 0
        cfg[name].persistent_workers = False
    return cfg


def stretch(cfg: Config, factor: float) -> None:
    """Multiply the length of a schedule, its intervals and its schedulers."""
    loop = cfg.train_cfg
    key = 'max_epochs' if is_epoch_based(cfg) else 'max_iters'
    old = loop[key]
    loop[key] = round(old * factor)
    # As many validations as before; the last one, at the end, may come early.
    loop.val_interval = math.ceil(loop[key] / (old // loop.val_interval))
    scale = loop[key] / old
    for scheduler in cfg.param_scheduler:
        for edge in ('begin', 'end', 'T_max'):
            if edge in scheduler:
                scheduler[edge] = round(scheduler[edge] * scale)


def is_epoch_based(cfg: Config) -> bool:
    """Tell whether a config counts its schedule in epochs."""
    return 'max_epochs' in cfg.train_cfg


# Arms


class Budget(NamedTuple):
    """What the pruned run of the same seed has cost.

    Attributes:
        share (float): Samples seen over those of the full run.
        prune_ratio (float): The mean over the rounds that were pruned.
    """

    share: float
    prune_ratio: float


Arm = Callable[[Config, Budget | None, int], Config]


def pruned(policy: dict[str, Any], delta: float = 0.875) -> Arm:
    """Return the arm that prunes by a policy."""

    def arm(cfg: Config, budget: Budget | None, seed: int) -> Config:
        return infobatch_mm.enable(cfg, policy=policy, delta=delta)

    return arm


def infobatch(prune_ratio: Any = 0.5, delta: float = 0.875) -> Arm:
    """Return an arm of the paper's policy."""
    policy = dict(type='InfoBatchPolicy', prune_ratio=prune_ratio)
    return pruned(policy, delta)


def class_balanced(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """The paper's policy on scores to which all classes add alike."""
    return infobatch_mm.enable(cfg, score='class_balanced')


def full(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """All data."""
    return cfg


def random(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """Prune at random at the cost of InfoBatch, with rescaling."""
    assert budget is not None
    policy = dict(type='RandomPolicy', prune_ratio=budget.prune_ratio)
    return infobatch_mm.enable(cfg, policy=policy)


def random_unscaled(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """Prune at random at the cost of InfoBatch, without rescaling."""
    assert budget is not None
    policy = dict(type='RandomPolicy', prune_ratio=budget.prune_ratio)
    return infobatch_mm.enable(
        cfg, policy=dict(type='UnscaledPolicy', policy=policy)
    )


def short(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """All data, on a schedule shortened to the cost of InfoBatch."""
    assert budget is not None
    stretch(cfg, budget.share)
    return cfg


def short_lr(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """The short schedule, with a learning rate larger by as much."""
    cfg = short(cfg, budget, seed)
    assert budget is not None
    cfg.optim_wrapper.optimizer.lr /= budget.share
    return cfg


def infobatch_lr(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """InfoBatch with a learning rate larger by as much as it saves."""
    assert budget is not None
    cfg.optim_wrapper.optimizer.lr /= budget.share
    return infobatch()(cfg, None, seed)


def subset(cfg: Config, budget: Budget | None, seed: int) -> Config:
    """The same random part of the data all the time, at the same cost."""
    assert budget is not None
    kind = (
        'DefaultSubsetSampler'
        if is_epoch_based(cfg)
        else 'InfiniteSubsetSampler'
    )
    if not is_epoch_based(cfg):
        stretch(cfg, budget.share)
    cfg.train_dataloader.sampler.type = kind
    cfg.train_dataloader.sampler.update(share=budget.share, subset_seed=seed)
    return cfg


CORE: dict[str, Arm] = {
    'infobatch': infobatch(),
    'full': full,
    'random': random,
    'short': short,
}
EXPLORATORY: dict[str, Arm] = {
    'quantile': pruned(dict(type='QuantilePolicy')),
    'class-balanced': class_balanced,
    'random-unscaled': random_unscaled,
    'infobatch-unscaled': pruned(
        dict(type='UnscaledPolicy', policy=dict(type='InfoBatchPolicy'))
    ),
    'infobatch-no-annealing': infobatch(delta=1.0),
    'subset': subset,
    'short-lr': short_lr,
    'infobatch-lr': infobatch_lr,
    'ramp-up': infobatch(dict(type='linear', start=0.1, end=0.9)),
    'ramp-down': infobatch(dict(type='linear', start=0.9, end=0.1)),
    'ramp-up-0.99': infobatch(dict(type='linear', start=0.0, end=0.99)),
    'ramp-down-0.99': infobatch(dict(type='linear', start=0.99, end=0.0)),
    'infobatch-r0.1': infobatch(0.1),
    'infobatch-r0.3': infobatch(0.3),
    'infobatch-r0.7': infobatch(0.7),
}
ARMS = CORE | EXPLORATORY
NEEDS_BUDGET = {
    random,
    random_unscaled,
    short,
    short_lr,
    infobatch_lr,
    subset,
}

# Cells


class Cell(NamedTuple):
    """One run of the benchmark."""

    suite: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """str: Its name within the suite."""
        return f'{self.arm}-s{self.seed}'

    @property
    def file(self) -> Path:
        """Path: Where its result is kept."""
        return CELLS / self.suite / f'{self.name}.json'

    @property
    def work_dir(self) -> Path:
        """Path: Where its run writes."""
        return RUNS / self.suite / self.name

    @property
    def needs(self) -> 'Cell | None':
        """Cell | None: The cell that it takes its budget from."""
        takes = ARMS[self.arm] in NEEDS_BUDGET
        return self._replace(arm='infobatch') if takes else None

    @property
    def is_ready(self) -> bool:
        """bool: Whether it can be run now."""
        return self.needs is None or self.needs.file.exists()


def budget_of(cell: Cell) -> Budget:
    """Return what a finished cell has cost."""
    result = json.loads(cell.file.read_text())
    ratios = [
        1 - line['kept'] / line['total']
        for line in result['rounds']
        # A full round of an iteration loop leaves a remainder out.
        if line['variance_ratio'] > 0
    ]
    return Budget(
        share=result['samples_seen'] / result['samples_budget'],
        prune_ratio=sum(ratios) / len(ratios) if ratios else 0.0,
    )


def config_of(cell: Cell) -> Config:
    """Return the config of a cell; that which it needs must be finished."""
    cfg = stock_config(SUITES[cell.suite])
    budget = budget_of(cell.needs) if cell.needs else None
    cfg = ARMS[cell.arm](copy.deepcopy(cfg), budget, cell.seed)
    cfg.randomness = dict(seed=cell.seed)
    return cfg


def config_hash(cfg: Config) -> str:
    """Return a digest of a config."""
    text = json.dumps(cfg.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(cell: Cell) -> None:
    """Train a cell, or go on with it, and write its file.

    Raises:
        RuntimeError: If the run fails.
    """
    cfg = config_of(cell)
    cell.work_dir.mkdir(parents=True, exist_ok=True)
    config_file = cell.work_dir / 'cell.py'
    digest_file = cell.work_dir / 'cell.digest'
    digest = config_hash(cfg)
    is_same = digest_file.exists() and digest_file.read_text() == digest
    resume = is_same and (cell.work_dir / 'last_checkpoint').exists()
    cfg.dump(config_file)
    digest_file.write_text(digest)
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config_file)]
    command += ['--work-dir', str(cell.work_dir)]
    command += ['--resume'] if resume else []
    log = cell.work_dir / 'run.log'
    with log.open('a' if resume else 'w') as file:
        status = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        raise RuntimeError(f'{cell.name} failed; see {log}')
    result = read_result(cell, cfg)
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(json.dumps(result, indent=1) + '\n')


def read_result(cell: Cell, cfg: Config) -> dict[str, Any]:
    """Return what is kept of a run that has ended."""
    suite = SUITES[cell.suite]
    state = json.loads((cell.work_dir / 'benchmark.json').read_text())
    rounds = cell.work_dir / 'infobatch.jsonl'
    keys = ('total', 'kept', 'threshold', 'variance_ratio')
    lines = rounds.read_text().splitlines() if rounds.exists() else []
    last = state['validations'][-1]
    if last['iter'] != state['iters']:
        raise RuntimeError(
            f'{cell.name} ended without a last validation; delete '
            f'{cell.work_dir} to train it anew'
        )
    return dict(
        **cell._asdict(),
        metric=suite.metric,
        value=last[suite.metric],
        samples_budget=samples_budget(suite, state['dataset_size']),
        **state,
        rounds=[{k: json.loads(line)[k] for k in keys} for line in lines],
        config_hash=config_hash(cfg),
        versions=versions(),
    )


def samples_budget(suite: Suite, dataset_size: int) -> int:
    """Return how many samples the full run of a suite sees."""
    cfg = stock_config(suite)
    if is_epoch_based(cfg):
        return cfg.train_cfg.max_epochs * dataset_size
    return cfg.train_cfg.max_iters * cfg.train_dataloader.batch_size


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    names = ('mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain')
    names = ('torch', *names, *(f'onedl-{name}' for name in names))
    known = {d.name: d.version for d in metadata.distributions()}
    return {name: known[name] for name in names if name in known}


def check_same(cell: Cell) -> None:
    """Refuse a finished cell that another config has made."""
    known = json.loads(cell.file.read_text())['config_hash']
    now = config_hash(config_of(cell))
    if known != now:
        raise ValueError(
            f'{cell.file} was made by another config ({known}, now {now}): '
            'delete it to run it anew'
        )


def run_all(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Any]]:
    """Run cells side by side; yield each with its error, if there is one."""
    waiting = list(cells)
    running: dict[Future, Cell] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [cell for cell in waiting if cell.is_ready]
            for cell in ready[: jobs - len(running)]:
                waiting.remove(cell)
                running[pool.submit(run, cell)] = cell
            if not running:  # what they need has failed
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.exception()


# The command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('suite', choices=[*SUITES, 'report'])
    parser.add_argument(
        '--arms', nargs='+', choices=list(ARMS), default=list(CORE)
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--jobs', type=int, default=2)
    return parser.parse_args(argv)


def order(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells seed by seed, each after the one that it needs."""
    wanted = dict.fromkeys(
        each for cell in cells for each in (cell.needs, cell) if each
    )
    return sorted(wanted, key=lambda cell: cell.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; return 1 if a cell failed."""
    args = parse_args(argv)
    if args.suite == 'report':
        import benchmark_report

        benchmark_report.main()
        return 0
    cells = order(
        Cell(args.suite, arm, seed) for seed in args.seeds for arm in args.arms
    )
    for cell in cells:
        if cell.file.exists():
            check_same(cell)
    missing = [cell for cell in cells if not cell.file.exists()]
    print(f'{len(cells) - len(missing)} of {len(cells)} cells are finished')
    failed = 0
    for cell, error in run_all(missing, args.jobs):
        failed += error is not None
        if error:
            print(f'{cell.name}: {error}', file=sys.stderr)
        else:
            result = json.loads(cell.file.read_text())
            print(
                f'{cell.name}: {result["metric"]} {result["value"]:.2f}, '
                f'{result["samples_seen"] / result["samples_budget"]:.1%} of '
                f'the samples, {result["cpu_seconds"]:.0f} s',
                flush=True,
            )
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
