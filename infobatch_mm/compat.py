"""The old path of what is in ``infobatch_mm.host`` now."""

from .host.config_bases import alias_config_bases
from .host.loading import allow_resuming, load_from_local
from .host.packages import is_importable, require_family

__all__ = [
    'alias_config_bases',
    'allow_resuming',
    'is_importable',
    'load_from_local',
    'require_family',
]
