"""What the types within a config name: classes, by their registries."""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry


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
