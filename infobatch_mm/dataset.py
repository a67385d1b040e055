"""The old place of :class:`infobatch_mm.datasets.indexed.IndexedDataset`."""

from .datasets.indexed import IndexedDataset

__all__ = ['IndexedDataset']
