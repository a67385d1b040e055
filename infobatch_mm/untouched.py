"""Run modules so that their state and the random state are as before.

The state of a module is all that it holds beside its parameters and children:
buffers and plain attributes, such as a counter, a list or an object with
running statistics. For the time of a block a module works on copies of what
can change in place; after it the originals are there again, which nobody has
touched.
"""

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from .ledger import Ledger

_OF_TORCH = frozenset(vars(nn.Module()))  # beside buffers: its bookkeeping
_NEVER_CHANGED = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    torch.dtype,
    torch.device,
    nn.Module,  # kept by itself, if at all
    nn.Parameter,
    ConfigDict,
    Ledger,
    FunctionType,
    MethodType,
    ModuleType,
)


def copied(value: Any, memo: dict[int, Any], *, objects: bool = True) -> Any:
    """Return a value in whose place changes may be made.

    Containers are copied with what is in them, and an object with its own
    containers. Objects within an object are shared, since that may be the
    whole run (a loss that knows the runner), and so is what cannot be copied.
    """
    if isinstance(value, _NEVER_CHANGED):
        return value
    if id(value) not in memo:
        memo[id(value)] = _copied(value, memo, objects)
    return memo[id(value)]


def _copied(value: Any, memo: dict[int, Any], objects: bool) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, (np.ndarray, np.random.Generator)):
        return copy.deepcopy(value)
    if type(value) is tuple:
        return tuple(copied(v, memo, objects=objects) for v in value)
    is_container = isinstance(value, (list, dict, set, deque))
    if not (objects or is_container):
        return value
    try:
        twin = copy.copy(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return value
    if isinstance(twin, dict):
        twin.update(
            {k: copied(v, memo, objects=objects) for k, v in twin.items()}
        )
    elif isinstance(twin, (list, deque)):
        for place, item in enumerate(twin):
            twin[place] = copied(item, memo, objects=objects)
    elif twin is not value and hasattr(twin, '__dict__'):
        own = vars(twin)
        own.update({k: copied(v, memo, objects=False) for k, v in own.items()})
    return twin


class _Kept:
    """The attributes of one object, by reference, for the time of a block."""

    def __init__(self, owner: Any) -> None:
        self.own = vars(owner)
        self.before = dict(self.own)
        self.tables = [
            name
            for name in ('_parameters', '_modules', '_buffers')
            if self.before.get(name)
        ]
        self.changing = [
            name
            for name, value in self.before.items()
            if name not in _OF_TORCH and not isinstance(value, _NEVER_CHANGED)
        ]

    def renew(self, memo: dict[int, Any]) -> None:
        """Let the object work on fresh copies."""
        own, before = self.own, self.before
        self.put_back()
        for name in self.tables:
            own[name] = before[name].copy()
        for name, buffer in before.get('_buffers', {}).items():
            own['_buffers'][name] = copied(buffer, memo)
        for name in self.changing:
            own[name] = copied(before[name], memo)

    def put_back(self) -> None:
        """Let the object have what it had."""
        self.own.clear()
        self.own.update(self.before)


class Untouched:
    """A block in which objects work on copies of their state.

    Args:
        owners (Iterable): Modules, or other objects.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        self._owners = [each for each in owners if not _is_stateless(each)]

    def __enter__(self) -> 'Untouched':
        self._kept = [_Kept(owner) for owner in self._owners]
        self.renew()
        return self

    def renew(self) -> None:
        """Begin anew from the state before the block."""
        memo: dict[int, Any] = {}
        for kept in self._kept:
            kept.renew(memo)

    def __exit__(self, *_: Any) -> None:
        for kept in self._kept:
            kept.put_back()


def _is_stateless(owner: Any) -> bool:
    """Tell whether it is a layer of PyTorch's own without a buffer."""
    return type(owner).__module__.startswith('torch.nn.modules.') and not (
        owner._buffers
    )


class UntouchedRandomness:
    """A block after which all random states are what they were before.

    Args:
        devices (Iterable[int]): The CUDA devices that may be drawn on.
    """

    def __init__(self, devices: Iterable[int]) -> None:
        self._devices = list(devices)

    def __enter__(self) -> 'UntouchedRandomness':
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(d) for d in self._devices]
        return self

    def renew(self) -> None:
        """Draw the same torch numbers again as from the block's start."""
        if not torch.equal(torch.get_rng_state(), self._cpu):
            torch.set_rng_state(self._cpu)
        for device, state in zip(self._devices, self._cuda, strict=True):
            torch.cuda.set_rng_state(state, device)

    def __exit__(self, *_: Any) -> None:
        self.renew()
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def every_module(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules of a model by name, hidden ones too.

    A module that is kept as a plain attribute, or in a list or a dict of
    them, is hidden from ``modules()``, and with it from checkpoints.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [('', model)]
    while waiting:
        root, module = waiting.pop()
        for name, part in module.named_modules(prefix=root):
            if id(part) in seen:
                continue
            seen.add(id(part))
            yield name, part
            for key, value in vars(part).items():
                if key not in _OF_TORCH:
                    prefix = f'{name}.{key}' if name else key
                    waiting += [(prefix, each) for each in _modules_in(value)]


def _modules_in(value: Any) -> list[nn.Module]:
    if isinstance(value, dict):
        value = list(value.values())
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, nn.Module)]
