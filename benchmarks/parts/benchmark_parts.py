"""What the runs of our suites import; this folder is on their path.

``infobatch_mm.compare.parts`` has the name here that our cells' digests hold;
cells of other studies import the module of the package.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from infobatch_mm.compare import parts as parts


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision on a CPU, where mmengine's AmpOptimWrapper refuses."""

    @contextmanager
    def optim_context(
        self, model: torch.nn.Module
    ) -> Generator[None, None, None]:
        """Let the model compute in bfloat16, the weights stay float32."""
        with super().optim_context(model), torch.autocast('cpu'):
            yield
