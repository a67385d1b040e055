"""The old path of ``infobatch_mm.datasets.digit_scenes``."""

from .datasets.digit_scenes import DigitScenes

__all__ = [
    'DigitScenes',
]
