"""Functions run in processes of their own, and what became of them.

A run that crashes or is out of memory so stops no other. The processes are
forked from one that has computed nothing yet.
"""

import gc
import multiprocessing
import os
import re
import signal
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable
from math import ceil
from multiprocessing.connection import Connection
from resource import (
    RLIMIT_CPU,
    RUSAGE_CHILDREN,
    RUSAGE_SELF,
    getrlimit,
    getrusage,
    setrlimit,
)

import torch

from zoo.record import Record

FORK = multiprocessing.get_context('fork')
WAIT = 10
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
