"""CIFAR from files whose bytes are not the official ones.

Not imported by the package itself: name it in ``custom_imports``. It needs
mmpretrain.
"""

from typing import Any

from mmpretrain.datasets import CIFAR10
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class PreparedCIFAR10(CIFAR10):
    """CIFAR-10 as ``infobatch prepare`` has written and checked it.

    It differs from mmpretrain's ``CIFAR10`` in that it compares no md5 sums,
    which tell how a file was written and not only what is in it, and in that
    it never downloads.

    Args:
        data_root (str): The folder that holds ``cifar-10-batches-py``.
        split (str): ``'train'`` or ``'test'``.
        **kwargs: Settings of mmpretrain's ``CIFAR10``.
    """

    train_list = [[name, None] for name, _ in CIFAR10.train_list]
    test_list = [[name, None] for name, _ in CIFAR10.test_list]
    meta = dict(CIFAR10.meta, md5=None)

    def __init__(
        self, data_root: str, split: str = 'train', **kwargs: Any
    ) -> None:
        kwargs = dict(kwargs, download=False)
        super().__init__(data_root=data_root, split=split, **kwargs)
