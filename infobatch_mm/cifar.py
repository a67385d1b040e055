"""The old path of ``infobatch_mm.datasets.prepared_cifar``."""

from .datasets.prepared_cifar import PreparedCIFAR10

__all__ = [
    'PreparedCIFAR10',
]
