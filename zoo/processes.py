"""Functions run in processes of their own, and what became of them.

A run that crashes or is out of memory so stops no other. The processes are
forked from one that has computed nothing yet.
"""

import gc
import multiprocessing
import os
import re
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from zoo.record import Record

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
