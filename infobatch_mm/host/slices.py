"""Look behind the slice that ``num_batch_per_epoch`` makes of a data set."""

from typing import Any

from mmengine.runner.runner import _SlicedDataset


def unsliced(dataset: Any) -> Any:
    """Return the data set of a dataloader, without mmengine's slice.

    ``Runner.build_dataloader`` wraps it in the private ``_SlicedDataset``,
    which gives the first samples of it alone, if
    ``train_dataloader.num_batch_per_epoch`` is set.
    """
    if isinstance(dataset, _SlicedDataset):
        return dataset._dataset
    return dataset
