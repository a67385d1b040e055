"""A package whose configs are checked, and how one is made small for a CPU.

What differs between the packages is in :class:`Package`: each has a module of
its name here, with a ``PACKAGE`` in it.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from infobatch_mm.host.packages import is_importable
from zoo.record import EXTRAS, Record, attempt, natural

# The sizes of a small run, and the weights that its model is probed at.
SAMPLES = 8
BATCH = 2
ROUNDS = 3
BUDGET = ROUNDS * SAMPLES // BATCH  # three full passes, in iterations
WEIGHTS = (0.5, 3.0)  # of a batch
# What is replaced by an OptimWrapper, and what it is called in the notes.
MIXED_PRECISION = dict(
    AmpOptimWrapper='AMP', DeepSpeedOptimWrapper='DeepSpeed'
)
# What the settings of an architecture call the numbers of its blocks.
DEPTHS = (
    'depths', 'depth', 'layers', 'num_layers', 'num_blocks', 'num_se_blocks',
    'blocks',
)  # fmt: skip
# A small config, and notes on what was changed beyond sizes and weights.
Small = tuple[Config, list[str]]


@dataclass(frozen=True)
class Package:
    """A package with a zoo of configs.

    Attributes:
        name (str): Its import name.
        weighted (dict): The type of the weighted head by the name under
            which a model holds its stock head.
        register (Callable): Registers its modules.
        describe (Callable): Returns, for the config of a model, the text that
            is the same for models with the same heads and losses.
        shrink (Callable): Makes a stock config small.
        write_images (Callable): Writes the synthetic images that the data
            set of a small config reads.
        first (str): Configs with it in their name are checked first.
        out_of_scope (Callable): Returns a status and a reason if a config
            is none that should prune. It is given the config's name, and the
            config itself, which is None where it cannot be loaded.
        refusals (tuple): What the package infobatch_mm refuses and says why,
            as it stands in the message.
        retries (dict): By what a record then has as an entry, other ways to
            make a config small, tried where upstream fails.
    """

    name: str
    weighted: Mapping[str, str]
    register: Callable[..., None]
    describe: Callable[[Any], str]
    shrink: Callable[[Config], Small]
    write_images: Callable[[Any], None]
    first: str = ''
    out_of_scope: Callable[[str, Config | None], tuple[str, str] | None] = (
        lambda name, cfg: None
    )
    refusals: tuple[str, ...] = ()
    retries: Mapping[str, Callable[[Config], Small]] = field(
        default_factory=dict
    )


def load_package(name: str) -> Package:
    """Return what is known of a package.

    Raises:
        ValueError: If it is not installed.
    """
    if not is_importable(name):
        names = (f'"infobatch_mm[{e}]"' for e in EXTRAS[name].values())
        raise ValueError(
            f'--package {name} was asked for, but {name} is not installed. '
            f'Run the check in an environment made with: pip install '
            f'{" or ".join(names)}'
        )
    return importlib.import_module(f'zoo.{name}').PACKAGE


# Its configs, and which of them to check


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


# What makes a config small, of whichever package


def small_config(
    cfg: Config,
    *,
    model: Any,
    loader: Mapping[str, Any],
    train_cfg: Mapping[str, Any],
    optim_wrapper: Any,
    param_scheduler: list[Any],
) -> Config:
    """Return the training part of a config, with its parts made small.

    Args:
        cfg (Config): The stock config.
        model (dict): Its model, made small.
        loader (dict): What the train dataloader has besides the sampler of
            the stock one and the size of a batch.
        train_cfg (dict): The loop, of few rounds.
        optim_wrapper (dict): The optimizer, in full precision.
        param_scheduler (list): The schedule, which fits the rounds.
    """
    small = dict(
        default_scope=cfg.default_scope,
        model=model,
        train_dataloader=dict(
            loader,
            batch_size=BATCH,
            num_workers=0,
            sampler=cfg.train_dataloader.sampler,
        ),
        train_cfg=train_cfg,
        optim_wrapper=optim_wrapper,
        param_scheduler=param_scheduler,
        custom_hooks=cfg.get('custom_hooks') or [],
        default_hooks=dict(checkpoint=None),
        log_processor=dict(by_epoch='max_epochs' in train_cfg),
        log_level='ERROR',
        randomness=dict(seed=0),
        work_dir='run',
    )
    return Config(small)


def fit_schedule(
    scheduler: Any,
    names: Sequence[str],
    *,
    budget: int,
    full: int,
    least: int,
) -> Any:
    """Return a scheduler whose warm-up and end fit a small budget.

    Args:
        scheduler (dict): Config of a stock scheduler.
        names (list[str]): Its settings that are a tick or several.
        budget (int): Ticks of the small run.
        full (int): Ticks of the stock run.
        least (int): What a tick that is not 0 becomes at least.
    """

    def scaled(tick: int) -> int:
        return min(budget, tick and max(least, tick * budget // full))

    scheduler = deepcopy(scheduler)
    for name in names:
        ticks = scheduler.get(name)
        if isinstance(ticks, int):
            scheduler[name] = scaled(ticks)
        elif ticks:
            scheduler[name] = [scaled(tick) for tick in ticks]
    return scheduler


def resized(transform: Any, sizes: Mapping[str, Any]) -> Any:
    """Return a transform with those of its sizes replaced that it has."""
    has = {name: size for name, size in sizes.items() if name in transform}
    return {**transform, **has}


def as_list(value: Any) -> list[Any]:
    """Return what may be None, one item or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def parts(config: Any) -> Iterator[Any]:
    """Yield all dicts within a config, the outer ones first."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for item in config:
            yield from parts(item)


def num_classes(model: Any) -> int:
    """Return the number of classes that a model's heads tell apart."""
    found = [p['num_classes'] for p in parts(model) if 'num_classes' in p]
    return max(found, default=2)


def settings_of(kind: Any, arch: str) -> Any:
    """Return the settings of an architecture, its name if they do not do."""
    known = getattr(kind, 'arch_zoo', None) or kind.arch_settings
    settings = known.get(arch, known.get(arch.lower()))
    if not isinstance(settings, Mapping) or settings.get('group_layer_map'):
        return arch  # that map counts the layers
    return deepcopy(settings)


def cut_depths(settings: Any) -> None:
    """Leave at most two blocks a stage, in place."""
    if not isinstance(settings, dict):
        return
    for name in DEPTHS:
        depth = settings.get(name)
        if isinstance(depth, int):
            settings[name] = min(2, depth)
        elif depth:
            settings[name] = [min(2, number) for number in depth]
    if 'downscale_indices' in settings:  # MViT has its stages in one row
        settings.update(num_layers=4, downscale_indices=[1, 2, 3])


def drop_pretrained(part: Any) -> None:
    """Remove the checkpoint that a part of a model starts from, in place."""
    init = as_list(part.get('init_cfg'))
    if any(str(i['type']).startswith('Pretrained') for i in init):
        del part['init_cfg']


def unsync_norm(part: Any) -> None:
    """Make a batch norm over all devices one of a single device, in place."""
    if part.get('type') == 'SyncBN':
        part['type'] = 'BN'


def full_precision(optim_wrapper: Any) -> tuple[Any, list[str]]:
    """Return an optimizer wrapper of full precision, and notes on it."""
    optim_wrapper = deepcopy(optim_wrapper)
    mixed = MIXED_PRECISION.get(optim_wrapper.get('type'))
    if not mixed:
        return optim_wrapper, []
    optim_wrapper.type = 'OptimWrapper'
    for name in ('loss_scale', 'dtype'):
        optim_wrapper.pop(name, None)
    return optim_wrapper, [f'full precision instead of {mixed}']
