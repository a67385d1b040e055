"""Real processes for the tests: forked, so that they start in no time."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context('fork')
# Of runs whose test does not say: the default pacing, or that which the
# environment asks for (make test PACING=fewer_steps).
PACING = {'pacing': os.environ['PACING']} if 'PACING' in os.environ else {}


def _child(function: Callable[..., Any], args: tuple, progress: Any) -> None:
    import torch

    torch.set_num_threads(1)
    function(*args, progress)


def run_code(code: str, folder: Path) -> None:
    """Run code in a new interpreter, within the folder that it is given.

    It gets as many threads as this process has: to the bit, a result may
    depend on their number.
    """
    import torch

    threads = dict(OMP_NUM_THREADS=str(torch.get_num_threads()))
    subprocess.run(
        [sys.executable, '-c', code, str(folder)],
        check=True,
        capture_output=True,
        cwd=folder,
        env=os.environ | threads,
    )


class Child:
    """A process that runs a function and can be killed at any moment.

    The function gets its arguments and then a counter to report progress by.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.progress = FORK.Value('i', 0)
        self.process = FORK.Process(
            target=_child, args=(function, args, self.progress)
        )
        self.process.start()

    def kill_after(self, count: int, delay: float, timeout: float) -> bool:
        """SIGKILL it ``delay`` s after its progress reached ``count``.

        Returns:
            bool: False if it ended by itself before.
        """
        end = time.monotonic() + timeout
        while self.progress.value < count and self.process.is_alive():
            assert time.monotonic() < end, 'no progress'
            time.sleep(0.001)
        time.sleep(delay)
        if not self.process.is_alive():
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        return True

    def join(self, timeout: float) -> int:
        """Wait for its end and return its exit code."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f'still running after {timeout} s')
        return self.process.exitcode


def _rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    args: tuple,
    is_counted: bool,
    progress: Any,
) -> None:
    import torch.distributed as dist

    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        OMP_NUM_THREADS='1',
        MKL_NUM_THREADS='1',
    )
    dist.init_process_group('gloo', rank=rank, world_size=world_size)
    try:
        function(*args, *[progress] * is_counted)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def start_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    is_counted: bool = False,
) -> list[Child]:
    """Run a function on several gloo ranks.

    It gets a counter to report progress by if ``is_counted``.
    """
    port = _free_port()
    return [
        Child(_rank, function, rank, world_size, port, args, is_counted)
        for rank in range(world_size)
    ]


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 300,
) -> list[int]:
    """Run a function on several gloo ranks; return their exit codes."""
    children = start_ranks(world_size, function, *args)
    return [child.join(timeout) for child in children]
