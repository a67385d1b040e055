"""The old path of what is in ``infobatch_mm.host`` now."""

from .host.checkpoint import allow_resuming, load_from_local
from .host.packages import alias_config_bases, is_importable, require_family

__all__ = [
    'alias_config_bases',
    'allow_resuming',
    'is_importable',
    'load_from_local',
    'require_family',
]
