"""mmseg's IoUMetric with a scalar for each class, for runs of mmseg."""

from typing import Any

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's IoUMetric, which also returns `IoU/NAME` of each class."""

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Compute the metrics from the areas of all images."""
        metrics = super().compute_metrics(results)
        intersect, union, *_ = (
            sum(areas) for areas in zip(*results, strict=True)
        )
        iou = (100 * intersect / union).tolist()
        names = self.dataset_meta['classes']
        ours = {f'IoU/{n}': v for n, v in zip(names, iou, strict=True)}
        return metrics | ours
