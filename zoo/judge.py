"""What becomes of a small config that is run with pruning: its status.

It fails if its run ends with an error that the stock run does not end with,
or if a probe finds a fault.
"""

import time
from functools import partial

from mmengine.config import Config

from zoo.package import Package
from zoo.probes import probe
from zoo.processes import in_process
from zoo.record import Record
from zoo.sizes import SAMPLES
from zoo.tolerances import is_fault
from zoo.training import prune, rounds_of, train


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
