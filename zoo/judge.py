"""What becomes of a config that is made small and run with pruning.

It fails if enabling it changes more than it should, if its run ends with an
error that the stock run does not end with, or if a probe finds a fault.
"""

import gc
import json
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from resource import (
    RLIMIT_CPU,
    RUSAGE_CHILDREN,
    RUSAGE_SELF,
    getrlimit,
    getrusage,
    setrlimit,
)
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import infobatch_mm
from zoo.package import SAMPLES, Package
from zoo.probes import probe
from zoo.record import Record, attempt, is_fault

FORK = multiprocessing.get_context('fork')
WAIT = 10


# What enabling a config changes


def check_enabled(stock: Config, weighted: Mapping[str, str]) -> None:
    """Raise an AssertionError unless enabling changes what it should alone.

    Args:
        stock (Config): A stock config.
        weighted (dict): The type of the weighted head by the name of the
            stock one, see :class:`Package`.
    """
    enabled = infobatch_mm.enable(stock)
    loader = enabled.train_dataloader
    assert loader.sampler.type == 'infobatch_mm.InfoBatchSampler'
    assert loader.dataset.type == 'infobatch_mm.IndexedDataset'
    assert enabled.train_cfg == pruned_loop(stock.train_cfg)
    assert enabled.custom_hooks[-1]['type'] == 'infobatch_mm.InfoBatchHook'
    assert enabled.custom_imports['imports'][-1] == 'infobatch_mm'
    check_undone(enabled, stock, weighted)
    with tempfile.TemporaryDirectory() as folder:
        enabled.dump(Path(folder, 'enabled.py'))
        again = Config.fromfile(Path(folder, 'enabled.py'))
    assert again.to_dict() == enabled.to_dict(), 'not the same when reloaded'


def check_undone(
    enabled: Config, stock: Config, weighted: Mapping[str, str]
) -> None:
    """Raise an AssertionError unless what is undone is the stock config."""
    undone, expected = enabled.to_dict(), stock.to_dict()
    loader = undone['train_dataloader']
    loader['dataset'] = loader['dataset']['dataset']
    loader['sampler']['type'] = stock.train_dataloader.sampler.type
    undone['train_cfg'] = expected['train_cfg']
    for name, kind in weighted.items():
        heads = undone['model'].get(name)
        if isinstance(heads, list):
            undone['model'][name] = [unwrapped(head, kind) for head in heads]
        elif heads:
            undone['model'][name] = unwrapped(heads, kind)
    for name in ('custom_hooks', 'custom_imports'):
        undone.pop(name), expected.pop(name, None)
    assert undone == expected, 'enable() changed more than it should'


def pruned_loop(train_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stock loop's config must become."""
    settings = dict(train_cfg)
    by_epoch = settings.pop('by_epoch', True)
    kind = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    kind = settings.get('type', kind)
    return dict(settings, type=f'infobatch_mm.InfoBatch{kind}')


def unwrapped(head: Any, kind: str) -> Any:
    """Return the stock head's config within that of a weighted head."""
    assert head['type'] == f'infobatch_mm.{kind}', f'{head["type"]} is stock'
    return head['head']


# The run of a small config


def train(cfg: Config, package: Package) -> Runner:
    """Train a small config, stock or pruned, in the working directory.

    Args:
        cfg (Config): The small config.
        package (Package): The package that it is of.

    Raises:
        FloatingPointError: If a loss was not finite.
    """
    cfg = deepcopy(cfg)
    cfg.experiment_name = cfg.train_cfg.get('type', 'stock')
    package.write_images(cfg.train_dataloader.dataset)
    if cfg.model.get('pretrained'):
        write_weights(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    if not np.isfinite(losses).all():
        raise FloatingPointError('the loss became NaN or infinite')
    return runner


def write_weights(cfg: Config) -> None:
    """Write the checkpoint that a model is to start from, random weights."""
    init_default_scope(cfg.default_scope)
    state = MODELS.build(deepcopy(cfg.model)).state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            is_norm = value.dim() == 1 and name.endswith('weight')
            state[name] = torch.randn(value.shape) * 0.02 + float(is_norm)
    torch.save(state, cfg.model.pretrained)


def prune(cfg: Config) -> Config:
    """Return a small config that prunes until its end."""
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.75)
    # As by default: its batches of two can be made no smaller.
    options = dict(policy=policy, delta=1.0, pacing='fewer_steps')
    return infobatch_mm.enable(cfg, **options)


def rounds_of(work_dir: str) -> list[int]:
    """Return how many samples each round of a run kept."""
    lines = Path(work_dir, 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line)['kept'] for line in lines]


# Its verdict


def run_pruned(small: Config, package: Package) -> Record:
    """Train a small config with pruning and probe its model."""
    runner = train(prune(small), package)
    trained = time.process_time()
    found = probe(runner, small.model)
    seconds = round(time.process_time() - trained, 1)
    rounds = rounds_of(runner.work_dir)
    return dict(found, rounds=rounds, probe_seconds=seconds)


def run_stock(small: Config, package: Package) -> Record:
    """Train a small config as it is."""
    train(small, package)
    return {}


def judge(small: Config, package: Package, timeout: float) -> Record:
    """Run a small config pruned, and unpruned where that fails."""
    result = in_process(partial(run_pruned, small, package), timeout)
    if 'error' in result:
        stock = in_process(partial(run_stock, small, package), timeout)
        reason = f'{result["error"]}: {result["reason"]}'
        if stock.get('error') != result['error']:
            return dict(result, status='FAILED', reason=reason)
        return dict(status=status_of(reason), reason=reason)
    faults = faults_of(result)
    status = 'FAILED' if faults else 'passed'
    return dict(result, status=status, reason='; '.join(faults))


def status_of(reason: str) -> str:
    """Return the status of a config that fails without pruning too."""
    # 'mmdet is not installed', 'please install required packages'
    return 'missing' if 'install' in reason else 'upstream'


def was_killed(result: Record) -> bool:
    """Tell whether a run ended without an exception of its own."""
    return result['reason'].startswith(('Killed', 'Timeout'))


def faults_of(result: Record) -> list[str]:
    """Return what is wrong with the rounds and the probes of a run."""
    faults = [
        f'{name}: {error:.2g}'
        for name, error in result['probes'].items()
        if is_fault(name, error)
    ]
    if not min(result['rounds'][1:], default=SAMPLES) < SAMPLES:
        faults.append(f'no round was pruned: {result["rounds"]}')
    return faults


def check(cfg: Config, package: Package, timeout: float) -> Record:
    """Check one config; return its status, and what was measured.

    Where upstream fails, the package's other small configs are tried.
    """
    small, _ = package.shrink(cfg)
    result = judge(small, package, timeout)
    for name, shrink in package.retries.items():
        if result['status'] != 'upstream' or was_killed(result):
            break
        small, _ = shrink(cfg)
        again = judge(small, package, timeout)
        if again['status'] != 'upstream':
            return dict(again, **{name: result['reason']})
    return result


# Functions run in processes of their own. A run that crashes or is out of
# memory so stops no other; they are forked from one that has computed nothing.


def with_cpu_seconds(function: Callable[[], Record]) -> Record:
    """Return what became of a function, and the CPU time of this process.

    Processes that it started and waited for are included.
    """
    result = attempt(function)
    usages = map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN))
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return result | dict(cpu_seconds=round(seconds, 1))


def in_process(function: Callable[[], Record], timeout: float) -> Record:
    """Run a function in a process and an empty folder of its own.

    Args:
        function (Callable): The function.
        timeout (float): Seconds of CPU time that it may take, so that a busy
            machine fails none. What hangs is given WAIT times as many seconds
            of the clock.
    """
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(
            target=_work, args=(function, folder, timeout, sender)
        )
        process.start()
        sender.close()
        try:
            ended = receiver.poll(WAIT * timeout)
            result: Record = receiver.recv() if ended else {}
        except EOFError:
            result, ended = {}, True
            process.join()
        if not ended:
            process.kill()
        process.join()
        if not ended or process.exitcode == -signal.SIGXCPU:
            result = dict(error='Timeout', reason=f'longer than {timeout:g} s')
        elif process.exitcode and 'error' not in result:
            reason = f'ended by signal {-process.exitcode}'
            result = dict(error='Killed', reason=reason)
    return result


def _work(
    function: Callable[[], Record],
    folder: str,
    timeout: float,
    sender: Connection,
) -> None:
    setrlimit(RLIMIT_CPU, (ceil(timeout), getrlimit(RLIMIT_CPU)[1]))
    # mmengine collects garbage for each data set; what is inherited is none.
    gc.freeze()
    warnings.simplefilter('ignore')
    os.chdir(folder)
    log = os.open('log', os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(1)
    # Its layouts cost more than they gain on images of few pixels.
    torch.backends.mkldnn.set_flags(False)
    sender.send(attempt(function))
