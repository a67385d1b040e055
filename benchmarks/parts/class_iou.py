"""The module of ``ClassIoUMetric`` under the name in our cells' digests."""

from infobatch_mm.compare import parts as parts
