"""Run modules so that their state and the random state are as before.

The state of a module is all that it holds beside its parameters and children:
buffers and plain attributes, such as a counter, a list or an object with
running statistics. For the time of a block a module works on copies of what
can change in place; after it the originals are there again, which nobody has
touched. PyTorch has no public way to give a module other buffers and put the
old ones back, so the tables ``_buffers``, ``_parameters``, ``_modules``,
``_forward_hooks`` and ``_forward_pre_hooks`` of ``nn.Module`` are used here.
"""

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..ledger import Ledger

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
    # One that cleans up when it goes would do so for the original.
    if not (objects or is_container) or hasattr(type(value), '__del__'):
        return value
    try:
        twin = copy.copy(value)
    except Exception:  # whatever its class makes of it
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
            if name in self.before
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


class _KeptScript:
    """The buffers of a module of TorchScript, which knows no tables."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.buffers = [each.data for each in module.buffers(recurse=False)]
        self.before = [buffer.clone() for buffer in self.buffers]

    def renew(self, memo: dict[int, Any]) -> None:
        """Let the module have what it had, which it works on itself."""
        self.put_back()

    def put_back(self) -> None:
        """Let the module have what it had."""
        for buffer, value in zip(self.buffers, self.before, strict=True):
            buffer.copy_(value)


class _KeptCell:
    """A variable that a function shares with where it was defined."""

    def __init__(self, cell: CellType) -> None:
        self.cell, self.before = cell, cell.cell_contents

    def renew(self, memo: dict[int, Any]) -> None:
        """Let the function work on a fresh copy."""
        self.cell.cell_contents = copied(self.before, memo, objects=False)

    def put_back(self) -> None:
        """Let the function have what it had."""
        self.cell.cell_contents = self.before


class Untouched:
    """A block in which objects work on copies of their state.

    Args:
        owners (Iterable): Modules, or other objects. What the hooks of the
            modules write to is kept with them.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        self._owners = list(owners)

    def __enter__(self) -> 'Untouched':
        unique = {id(each): each for each in self._owners}
        cells: dict[int, CellType] = {}
        for module in self._owners:
            for function in _hooks_of(module):
                unique.update((id(o), o) for o in _objects_of(function))
                cells.update((id(c), c) for c in _cells_of(function))
        self._kept: list[_Kept | _KeptScript | _KeptCell] = [
            _KeptScript(owner)
            if isinstance(owner, torch.jit.ScriptModule)
            else _Kept(owner)
            for owner in unique.values()
            if not _is_stateless(owner)
        ]
        self._kept += [_KeptCell(cell) for cell in cells.values()]
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
    is_of_torch = type(owner).__module__.startswith('torch.nn.modules.')
    return is_of_torch and not owner._buffers


def _hooks_of(module: Any) -> list[Any]:
    """Return the functions that are called when a module is."""
    if not isinstance(module, nn.Module):
        return []
    tables = (module._forward_pre_hooks, module._forward_hooks)
    return [function for table in tables for function in table.values()]


def _variables_of(function: Any) -> list[tuple[CellType, Any]]:
    """Return the variables of a function from outside, and their values."""
    found = []
    for cell in getattr(function, '__closure__', None) or ():
        try:
            found.append((cell, cell.cell_contents))
        except ValueError:  # not set so far
            continue
    return found


def _cells_of(function: Any) -> list[CellType]:
    """Return the variables of a function from outside that may change."""
    return [
        cell
        for cell, value in _variables_of(function)
        if isinstance(value, (list, dict, set, deque, int))
    ]


def _objects_of(function: Any) -> list[Any]:
    """Return what a function, a method or a callable object can write to."""
    reached = [function, getattr(function, '__self__', None)]
    reached += [value for _, value in _variables_of(function)]
    return [
        each
        for each in reached
        if hasattr(each, '__dict__')
        and not isinstance(each, (*_NEVER_CHANGED, Tensor, dict, list))
    ]


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

    A module that is kept as a plain attribute, in a list or a dict of them,
    or as an attribute of an object that is, is hidden from ``modules()``, and
    with it from checkpoints.
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
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    for each in list(items):  # one that keeps a teacher, say
        if hasattr(each, '__dict__') and not isinstance(each, _NEVER_CHANGED):
            items += vars(each).values()
    return [item for item in items if isinstance(item, nn.Module)]
