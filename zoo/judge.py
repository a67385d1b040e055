"""Run a small config with pruning, and judge what became of it.

Each run has a process of its own, so that a crash or a lack of memory stops
no other. The processes are forked from one that has computed nothing yet.
"""

import gc
import multiprocessing
import os
import re
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from mmengine.config import Config

from zoo.package import Package
from zoo.probes import is_fault, probe, prune, rounds_of, train
from zoo.tables import Record
from zoo.small import SAMPLES

FORK = multiprocessing.get_context('fork')
MISSING = re.compile(r"No module named '?([\w.]+)")


def attempt(function: Callable[[], Record]) -> Record:
    """Return a function's result, or the exception that it ended with."""
    try:
        return function()
    except Exception as error:
        text = traceback.format_exc()
        missing = MISSING.findall(text)
        # Records go from machine to machine, so they name no folder of one.
        reason = str(error).replace(f'{sysconfig.get_path("purelib")}/', '')
        reason = ' '.join(reason.split())[:300]
        if missing:
            reason = f'{missing[0]} is not installed'
        kind = type(error).__name__
        return dict(error=kind, reason=reason, traceback=text)


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


def in_process(function: Callable[[], Record], timeout: float) -> Record:
    """Run a function in a process and an empty folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_work, args=(function, folder, sender))
        process.start()
        sender.close()
        try:
            ended = receiver.poll(timeout)
            result: Record = receiver.recv() if ended else {}
        except EOFError:
            result, ended = {}, True
            process.join()
        if not ended:
            process.kill()
            result = dict(error='Timeout', reason=f'longer than {timeout:g} s')
        process.join()
        if process.exitcode and 'error' not in result:
            reason = f'ended by signal {-process.exitcode}'
            result = dict(error='Killed', reason=reason)
    return result


def _work(
    function: Callable[[], Record], folder: str, sender: Connection
) -> None:
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


def judge(small: Config, package: Package, timeout: float) -> Record:
    """Run a small config, and its stock twin where that fails."""
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
    if not min(result['rounds'][1:], default=8) < SAMPLES:
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
