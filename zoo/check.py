"""Prove that every stock config of the installed mmseg or mmpretrain prunes.

tools/check_zoo.py [PATTERN ...] [--package mmpretrain] [--all] [--json OUT]

Each config is given to infobatch_mm.enable, which must change what it should
and nothing else. It is then made small (random weights, tiny images, all its
heads and losses as they are), trained for three rounds, and measured against
the stock model; zoo_probes.py says what is measured. A config that
fails is run without pruning too: only where the stock run fails alike is the
failure upstream's. Configs that are the same once they are small run once.

Without --all, only one config for each combination of heads and losses is
checked. What is in OUT already is not checked again.
"""

import infobatch_mm  # isort: skip

import argparse
import functools
import hashlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.config.config
from mmengine.config import Config
from yapf.yapflib import yapf_api

from zoo.judge import FORK, attempt, check, status_of
from zoo.package import EXTRAS, FAMILIES, Package, load_package
from zoo.tables import (
    OTHERWISE,
    Record,
    markdown,
    natural,
    print_report,
    read_records,
)

# The configs


def config_root(package: str) -> Path:
    """Return the folder of the configs of an installed package."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / '.mim' / 'configs'


def list_configs(root: Path, first: str) -> list[str]:
    """Return the configs below a folder, those named with `first` first."""
    names = [
        str(path.relative_to(root))
        for path in root.rglob('*.py')
        if '_base_' not in path.parts
    ]
    return sorted(names, key=lambda name: (first not in name, natural(name)))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name contains, or as a glob is, one of the patterns."""
    return not patterns or any(p in name or fnmatch(name, p) for p in patterns)


def describe_heads(path: Path, package: Package) -> str:
    """Return the types of a config's model, its heads and their losses."""

    def describe() -> Record:
        # Without the imports: a package that is missing does not matter.
        cfg = Config.fromfile(path, import_custom_modules=False)
        return dict(heads=package.describe(cfg.get('model')))

    described = attempt(describe)
    return described.get('heads') or f'not loaded: {described["error"]}'


def one_a_head(names: Iterable[str], heads: dict[str, str]) -> list[str]:
    """Return the first config of each combination of heads."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(heads[name], name)
    return list(first.values())


# What enable() changes


def check_enabled(stock: Config, weighted: Mapping[str, str]) -> None:
    """Raise an AssertionError unless enabling changes what it should alone.

    Args:
        stock (Config): A stock config.
        weighted (dict): See :class:`Package`.
    """
    enabled = infobatch_mm.enable(stock)
    loader = enabled.train_dataloader
    assert loader.sampler.type == 'InfoBatchSampler'
    assert loader.dataset.type == 'IndexedDataset'
    assert enabled.train_cfg == pruned_loop(stock.train_cfg)
    assert enabled.custom_hooks[-1]['type'] == 'InfoBatchHook'
    assert enabled.custom_imports['imports'][-1] == 'infobatch_mm'

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

    with tempfile.TemporaryDirectory() as folder:
        enabled.dump(Path(folder, 'enabled.py'))
        again = Config.fromfile(Path(folder, 'enabled.py'))
    assert again.to_dict() == enabled.to_dict(), 'not the same when reloaded'


def pruned_loop(train_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stock loop's config must become."""
    settings = dict(train_cfg)
    by_epoch = settings.pop('by_epoch', True)
    kind = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    return dict(settings, type=f'InfoBatch{settings.get("type", kind)}')


def unwrapped(head: Any, kind: str) -> Any:
    """Return the stock head's config within that of a weighted head."""
    assert head['type'] == kind, f'{head["type"]} is stock'
    return head['head']


# All configs


def prepare(
    name: str, heads: str, package: Package
) -> tuple[Record, Config | None]:
    """Do for a config what needs no process of its own.

    Returns:
        tuple[dict, Config | None]: What is known of it, with the digest of
        its small config; and the config if it is to be run.
    """
    record: Record = dict(config=name, heads=heads, versions=versions())

    def load() -> Record:
        return dict(cfg=Config.fromfile(config_root(package.name) / name))

    def enable() -> Record:
        check_enabled(loaded['cfg'], package.weighted)
        small, notes = package.shrink(loaded['cfg'])
        text = json.dumps(small.to_dict(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return dict(digest=digest, notes=notes)

    loaded = attempt(load)
    if 'error' in loaded:
        reason = f'{loaded["error"]}: {loaded["reason"]}'
        status = status_of(reason)  # pruning had no part in it yet
        return dict(record, status=status, reason=reason), None
    outside = package.out_of_scope(name, loaded['cfg'])
    if outside:
        status, reason = outside
        return dict(record, status=status, reason=reason), None
    enabled = attempt(enable)
    if 'error' in enabled:
        reason = f'{enabled["error"]}: {enabled["reason"]}'
        if any(text in reason for text in package.refusals):
            return dict(record, status='refused', reason=reason), None
        return dict(record, enabled, status='FAILED', reason=reason), None
    return record | enabled, loaded['cfg']


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    names = ('mmengine', 'mmcv', 'mmsegmentation', 'mmdet', 'mmpretrain')
    known = {d.name: d.version for d in metadata.distributions()}
    wanted = [*names, *(f'onedl-{name}' for name in names), 'torch']
    return {name: known[name] for name in wanted if name in known}


def installed_family() -> str:
    """Return the family of the packages of this environment."""
    return 'onedl' if 'onedl-mmengine' in versions() else 'openmmlab'


def check_family(wanted: str | None, package: str) -> None:
    """Raise a ValueError if the packages are not of the family asked for."""
    installed = installed_family()
    if wanted not in (None, installed):
        raise ValueError(
            f'--family {wanted} was asked for, but the packages of this '
            f'environment are of the family {installed}. Run the tool in an '
            'environment made with: pip install '
            f'"infobatch_mm[{EXTRAS[package][wanted]}]"'
        )


class Running(NamedTuple):
    """A config that is being checked, and those that are the same."""

    process: Any
    began: float
    records: list[Record]


def check_all(
    names: Sequence[str],
    heads: dict[str, str],
    known: dict[str, Record],
    package: Package,
    *,
    jobs: int,
    timeout: float,
) -> Iterator[Record]:
    """Yield the record of each config as soon as there is one.

    Args:
        names (Sequence[str]): The configs.
        heads (dict): Their heads, see :func:`describe_heads`.
        package (Package): The package that they are of.
        known (dict): Records by digest; those that come are added.
        jobs (int): How many are run at a time.
        timeout (float): Seconds that a run may take.
    """
    running: dict[Any, Running] = {}
    for name in names:
        record, cfg = prepare(name, heads[name], package)
        digest = record.get('digest')
        twins = [r.records for r in running.values()]
        twins = [t for t in twins if t[0]['digest'] == digest]
        if cfg is None:
            yield record
        elif digest in known:
            yield same_as(known[digest], record)
        elif twins:
            twins[0].append(record)
        else:
            while len(running) >= jobs:
                yield from collect(running, known)
            work = functools.partial(check, cfg, package, timeout)
            start(work, record, running)
    while running:
        yield from collect(running, known)


def start(
    work: Callable[[], Record], record: Record, running: dict[Any, Running]
) -> None:
    """Begin to check a config."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(attempt(work)))
    process.start()
    sender.close()
    running[receiver] = Running(process, time.monotonic(), [record])


def collect(
    running: dict[Any, Running], known: dict[str, Record]
) -> Iterator[Record]:
    """Wait until a check ends, and yield what it found."""
    for receiver in wait(list(running)):
        process, began, (record, *twins) = running.pop(receiver)
        try:
            result = receiver.recv()
        except EOFError:
            result = dict(status='FAILED', reason='the check was killed')
        process.join()
        if 'status' not in result:  # check() itself failed
            result |= dict(status='FAILED', reason=result['traceback'])
        seconds = round(time.monotonic() - began, 1)
        record = known[record['digest']] = (
            record | result | dict(seconds=seconds)
        )
        yield record
        for twin in twins:
            yield same_as(record, twin)


def same_as(known: Record, record: Record) -> Record:
    """Return the record of a config whose small config has been run."""
    shared = ('status', 'reason', *OTHERWISE)
    result = {name: known[name] for name in shared if name in known}
    return record | result | dict(same_as=known['config'])


# The command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        'patterns',
        nargs='*',
        metavar='PATTERN',
        help='part of the path of a config, or a glob (default: all configs)',
    )
    parser.add_argument(
        '--package',
        choices=list(EXTRAS),
        default='mmseg',
        help='whose configs are checked (default: %(default)s)',
    )
    parser.add_argument(
        '--family',
        choices=FAMILIES,
        help='refuse an environment of the other family (default: take '
        'whichever is installed)',
    )
    parser.add_argument(
        '--all',
        action='store_true',
        help='not only one config for each combination of heads and losses',
    )
    parser.add_argument(
        '--json', type=Path, metavar='OUT', help='a line for each config'
    )
    parser.add_argument(
        '--markdown', type=Path, metavar='OUT', help='write tables'
    )
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='check nothing, report what the --json file holds',
    )
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument(
        '--timeout', type=float, default=300, help='seconds (default: 300)'
    )
    return parser.parse_args(argv)


def warm_up(package: Package) -> None:
    """Import what the runs need, once for all; nothing is computed."""
    package.register(init_default_scope=False)
    # What optimizers and visualizers import when they are first used.
    for name in ('torch._dynamo', 'matplotlib.pyplot'):
        importlib.import_module(name)


def skip_layout() -> None:
    """Leave out yapf, with which mmengine takes a second for each text."""

    def unchanged(text: str, **_: Any) -> tuple[str, bool]:
        return text, False

    yapf_api.FormatCode = unchanged
    mmengine.config.config.FormatCode = unchanged


def main(argv: Sequence[str] | None = None) -> int:
    """Check, write and print; return 1 if a config failed."""
    args = parse_args(argv)
    check_family(args.family, args.package)
    skip_layout()
    package = load_package(args.package)
    warm_up(package)
    records = read_records(args.json) if args.json else []
    if not args.report_only:
        records += check_selected(args, package, records)
    if args.markdown:
        args.markdown.write_text(markdown(records))
    print_report(records)
    return int(any(record['status'] == 'FAILED' for record in records))


def check_selected(
    args: argparse.Namespace, package: Package, records: list[Record]
) -> list[Record]:
    """Check what the command line names and the records lack."""
    root = config_root(package.name)
    names = list_configs(root, package.first)
    names = [name for name in names if matches(name, args.patterns)]
    heads = {name: describe_heads(root / name, package) for name in names}
    if not args.all:
        names = one_a_head(names, heads)
    done = {record['config'] for record in records}
    names = [name for name in names if name not in done]
    known = {
        r['digest']: r for r in records if 'digest' in r and 'same_as' not in r
    }
    found = []
    for record in check_all(
        names, heads, known, package, jobs=args.jobs, timeout=args.timeout
    ):
        found.append(record)
        print(
            f'{len(found)}/{len(names)} {record["config"]}: '
            f'{record["status"]} {record["reason"]}',
            flush=True,
        )
        if args.json:
            with args.json.open('a') as file:
                file.write(json.dumps(record) + '\n')
    return found


if __name__ == '__main__':
    sys.exit(main())
