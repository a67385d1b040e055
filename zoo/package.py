"""What the check has to know of the package whose configs it checks.

Everything else is the same for all packages. Each has a module of its name
here, with a ``PACKAGE`` in it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from infobatch_mm.host.packages import is_importable
from zoo.environment import EXTRAS

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
