"""``infobatch_mm.compare.class_iou`` under the name in our cells' digests."""

from infobatch_mm.compare import class_iou as class_iou
