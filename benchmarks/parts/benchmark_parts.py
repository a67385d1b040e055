"""``infobatch_mm.compare.parts`` under the name that our cells' digests hold.

The runs of our suites have this folder on their path. Cells of other studies
import the module of the package.
"""

from infobatch_mm.compare import parts as parts
