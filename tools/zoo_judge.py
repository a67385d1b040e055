"""Run a small config with pruning, and judge what became of it.

Each run has a process of its own, so that a crash or a lack of memory stops
no other. The processes are forked from one that has computed nothing yet.
"""

import gc
import multiprocessing
import os
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from mmengine.config import Config
from zoo_probes import is_fault, probe, prune, rounds_of, train
from zoo_report import Record
from zoo_small import SAMPLES, shrink

FORK = multiprocessing.get_context('fork')
MISSING = re.compile(r"No module named '?([\w.]+)")


def attempt(function: Callable[..., Record], *args: Any) -> Record:
    """Return a function's result, or the exception that it ended with."""
    try:
        return function(*args)
    except Exception as error:
        text = traceback.format_exc()
        missing = MISSING.findall(text)
        reason = ' '.join(str(error).split())[:300]
        if missing:
            reason = f'{missing[0]} is not installed'
        kind = type(error).__name__
        return dict(error=kind, reason=reason, traceback=text)


def run_pruned(small: Config) -> Record:
    """Train a small config with pruning and probe its model."""
    runner = train(prune(small))
    trained = time.process_time()
    found = probe(runner, small.model)
    seconds = round(time.process_time() - trained, 1)
    rounds = rounds_of(runner.work_dir)
    return dict(found, rounds=rounds, probe_seconds=seconds)


def run_stock(small: Config) -> Record:
    """Train a small config as it is."""
    train(small)
    return {}


def in_process(
    function: Callable[[Config], Record], small: Config, timeout: float
) -> Record:
    """Run a function on a small config in a process and an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(
            target=_work, args=(function, small, folder, sender)
        )
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
    function: Callable[[Config], Record],
    small: Config,
    folder: str,
    sender: Connection,
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
    sender.send(attempt(function, small))


def judge(small: Config, timeout: float) -> Record:
    """Run a small config, and its stock twin where that fails."""
    result = in_process(run_pruned, small, timeout)
    if 'error' in result:
        stock = in_process(run_stock, small, timeout)
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


def check(cfg: Config, timeout: float) -> Record:
    """Check one config; return its status, and what was measured.

    Where upstream fails, it is tried on images without ignored pixels.
    """
    small, _ = shrink(cfg)
    result = judge(small, timeout)
    if result['status'] == 'upstream' and not was_killed(result):
        small, _ = shrink(cfg, ignored=False)
        again = judge(small, timeout)
        if again['status'] != 'upstream':
            return dict(again, no_ignored_pixels=result['reason'])
    return result
