"""Classes: those that a config names, and one in the place of another."""

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from mmengine.registry import Registry
from torch import nn

# What the types within a config name


def type_name(config: Mapping[str, Any]) -> str:
    """Return the name of a config's type, without scope or module."""
    kind = config['type']
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2]


def find_class(
    registry: Registry, config: Mapping[str, Any], scope: str
) -> type | None:
    """Return the class that a config's type names, if there is one.

    Args:
        registry (Registry): The one at the root.
        config (dict): What would be built.
        scope (str): The scope in which it would be built.
    """
    kind = config['type']
    if isinstance(kind, str):
        scope = config.get('_scope_') or scope
        with registry.switch_scope_and_registry(scope) as scoped:
            kind = scoped.get(kind)
    return kind if isinstance(kind, type) else None


def is_of(package: str, kind: type) -> bool:
    """Tell whether a class is of a package."""
    return kind.__module__.partition('.')[0] == package


def imported_modules(custom_imports: Any) -> list[str]:
    """Return the modules that a config's custom_imports name."""
    imports = (custom_imports or {}).get('imports') or []
    return [imports] if isinstance(imports, str) else list(imports)


# A subclass of an object's class, made on the spot


class Swapped:
    """Base of the mixins that :func:`swap_class` puts before a stock class.

    Attributes:
        infobatch_stock (type): The stock class of the module.
        infobatch_noted (tuple): Methods of the stock class whose calls are
            noted: see :meth:`infobatch_note`.
    """

    infobatch_stock: type
    infobatch_noted: tuple[str, ...] = ()

    def infobatch_note(self, args: Any, kwargs: Any) -> Any:
        """Return the context in which a noted method runs."""
        return nullcontext()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles name the stock class, since the class made by
        # swap_class() is not importable. Its state is what it would have.
        getstate = getattr(self, '__getstate__', None)  # from Python 3.11 on
        state = getstate() if getstate else self.__dict__
        return _blank_copy, type(self).__bases__, state


def swap_class(module: nn.Module, mixin: Any) -> None:
    """Give a stock module a subclass of its class, in place.

    Setting ``__class__`` is the one way to wrap a method for which
    parameters, attributes, state-dict keys, ``repr``, ``isinstance`` and
    copies of the module stay what they were. A wrapper module around it would
    change the keys, and a function set on the instance would, in a copy (an
    EMAHook makes one), call the original.
    """
    stock: Any = type(module)
    module.__class__ = _swapped_class(mixin, stock)


@functools.cache
def _swapped_class(mixin: Any, stock: Any) -> Any:
    """Return the subclass of a stock class that has a mixin."""
    noted = {
        name: _noting(getattr(stock, name))
        for name in mixin.infobatch_noted
        if callable(getattr(stock, name, None))
    }
    names = {
        '__module__': stock.__module__,
        '__doc__': stock.__doc__,
        'infobatch_stock': stock,
    }
    return type(stock.__name__, (mixin, stock), noted | names)


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that runs the stock one and notes its arguments."""

    @functools.wraps(method)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.infobatch_note(args, kwargs):
            return method(self, *args, **kwargs)

    return noted


def _blank_copy(mixin: Any, stock: Any) -> nn.Module:
    swapped = _swapped_class(mixin, stock)
    return swapped.__new__(swapped)
