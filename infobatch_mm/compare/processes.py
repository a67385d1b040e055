"""The processes of a comparison: how they start, where, and what one takes."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from mmengine.config import Config

from ..host.checkpoint_files import last_checkpoint
from .cells import Study
from .parts import PROBE_FILE, PROBE_ITERS, ProbeHook
from .setup import config_hash, stock_config

DIGEST_FILE = 'cell.digest'

# How and where


def train_command(launcher: str, gpus: int) -> list[str]:
    """Return the command that trains a config file."""
    ours = ['-m', 'infobatch_mm', 'train']
    if launcher == 'none':
        if gpus > 1:
            raise ValueError(
                f'--gpus {gpus} needs --launcher pytorch, which starts as '
                'many processes for each run'
            )
        return [sys.executable, *ours]
    torchrun = ['-m', 'torch.distributed.run', '--standalone']
    torchrun += [f'--nproc-per-node={gpus}']
    return [sys.executable, *torchrun, *ours, '--launcher', 'pytorch']


def devices(jobs: int, gpus: int) -> list[str]:
    """Return the GPUs of each of the runs at a time, if it matters."""
    count = torch.cuda.device_count()
    if jobs == 1 or not count:
        return []
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else [*map(str, range(count))]
    numbers = range(jobs * gpus)
    given = [names[number % len(names)] for number in numbers]
    return [
        ','.join(given[job * gpus : (job + 1) * gpus]) for job in range(jobs)
    ]


def threads(jobs: int) -> dict[str, str]:
    """Share the cores out among runs at a time, where there is no GPU."""
    if jobs == 1 or torch.cuda.is_available():
        return {}
    each = max(1, (os.cpu_count() or 1) // jobs)
    return {'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', str(each))}


@dataclass(eq=False)
class Place:
    """Where cells run one after the other: their devices, their process.

    Attributes:
        env (Mapping): Environment variables that name its devices.
        process (subprocess.Popen | None): What runs there, or ran last.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    _lock: Lock = field(default_factory=Lock)
    _is_closed: bool = False

    def start(self, command: Sequence[str], **options: Any) -> int:
        """Run a command to its end, and return its status.

        Args:
            command (Sequence): The command.
            **options: Those of :class:`subprocess.Popen`.

        Raises:
            RuntimeError: If the place is closed.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError('stopped before it began')
            self.process = subprocess.Popen(command, **options)
        try:
            return self.process.wait()
        finally:
            self._end()

    def close(self) -> None:
        """End what runs there, which can be resumed; nothing begins there."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


def places_of(study: Study, jobs: int) -> list[Place]:
    """Return the places at which so many cells are trained at a time."""
    if not study.devices:
        return [Place() for _ in range(jobs)]
    return [Place({'CUDA_VISIBLE_DEVICES': each}) for each in study.devices]


# A run


def train(
    study: Study, cfg: Config, work_dir: Path, place: Place, writes: str
) -> int:
    """Train a config in a folder, unless that is done; return the status.

    Args:
        study (Study): Has the command.
        cfg (Config): The config.
        work_dir (Path): The work directory of the run.
        place (Place): Where it runs.
        writes (str): The file that its end leaves there.
    """
    with _held(work_dir) as lock:
        made = work_dir / writes
        config_file, is_same, last = write_config(study, cfg, work_dir, made)
        if is_same and made.exists():
            return 0  # it ended after whoever had started it
        command = [*study.train, str(config_file)]
        command += ['--work-dir', str(work_dir)]
        # By its name, since a config's load_from would come before it.
        command += ['--resume', last] if last else []
        with (work_dir / 'run.log').open('a' if last else 'w') as log:
            return place.start(
                command,
                cwd=study.cwd,
                env={**os.environ, **study.env, **place.env},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
            )


def forget(work_dir: Path) -> None:
    """Let no later run take a folder's for its own: its result is recorded.

    Who deletes that record wants another, on other data or of other code.
    """
    (work_dir / DIGEST_FILE).unlink(missing_ok=True)


def failure_text(work_dir: Path) -> str:
    """Say what a run that has failed said last, and where the rest is."""
    log = work_dir / 'run.log'
    lines = log.read_text(errors='replace').split('\n')
    last = next((line for line in reversed(lines) if line.strip()), 'nothing')
    return f'failed, and said last: {last:.300}; see {log}'


@contextmanager
def _held(work_dir: Path) -> Iterator[int]:
    """Keep a work directory to this process and the run that it starts.

    The run inherits the lock, and keeps it if this process is killed.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'cell.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f'another process trains in {work_dir}: wait for its end, or '
                'stop it'
            ) from None
        yield file.fileno()


def write_config(
    study: Study, cfg: Config, work_dir: Path, made: Path
) -> tuple[Path, bool, str]:
    """Write the config of a run.

    Args:
        study (Study): What it belongs to.
        cfg (Config): The config.
        work_dir (Path): The work directory of the run.
        made (Path): The file that its end leaves there.

    Returns:
        tuple[Path, bool, str]: Its file, whether it is that of the run which
        was there before, and the checkpoint from which that one can be
        resumed, if any.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    config_file, digest_file = work_dir / 'cell.py', work_dir / DIGEST_FILE
    last = work_dir / 'last_checkpoint'
    digest = config_hash(cfg)
    if study.processes > 1:
        digest += f' x {study.processes}'
    is_same = digest_file.exists() and digest_file.read_text() == digest
    if not is_same:
        for stale in (last, made):  # before the digest makes them its own
            stale.unlink(missing_ok=True)
    cfg.dump(config_file)
    digest_file.write_text(digest)
    found = str(last_checkpoint(work_dir)) if last.exists() else ''
    return config_file, is_same, found


# A first run, which is cut short


def probe(study: Study) -> dict[str, Any]:
    """Train a few iterations of the run on all data, and validate once.

    That is done once, in a folder of its own.

    Returns:
        dict: What :class:`ProbeHook` has written, and `start_seconds`: what
        a run takes beside its iterations and validations, to start above all.

    Raises:
        RuntimeError: If that fails.
    """
    cfg = stock_config(study.setup)
    cfg.custom_hooks.append(dict(type=ProbeHook.__name__))
    work_dir = study.work_dir / 'probe'
    if not (work_dir / PROBE_FILE).exists():
        print('Timing ten iterations and a validation ...', file=sys.stderr)
    began = time.perf_counter()
    train(study, cfg, work_dir, places_of(study, 1)[0], PROBE_FILE)
    elapsed = time.perf_counter() - began
    try:
        probed = json.loads((work_dir / PROBE_FILE).read_text())
    except FileNotFoundError:
        raise RuntimeError(
            'the config does not train and validate as it is: ten iterations '
            f'{failure_text(work_dir)}'
        ) from None
    if 'start_seconds' not in probed:
        iters = min(PROBE_ITERS, probed['iters'])
        known = iters * probed['seconds'] + probed['val_seconds']
        probed['start_seconds'] = max(0.0, elapsed - known)
        (work_dir / PROBE_FILE).write_text(json.dumps(probed))
    return probed
