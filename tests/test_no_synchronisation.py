"""A training step gets no device-to-host transfer from our functions.

On the meta device ``.item()``, ``.cpu()``, ``.tolist()`` and boolean indexing
raise by themselves.
"""

import pytest
import torch
from mmseg.models.losses import cross_entropy_loss

from infobatch_mm.heads.pixel_losses import (
    PixelLosses,
    class_balanced_means,
    image_means,
    keep_pixel_losses,
)
from infobatch_mm.ledger import Ledger
from infobatch_mm.rescale import scale_gradient
from infobatch_mm.scores import ScoreBoard

META = torch.device('meta')


@pytest.mark.parametrize(
    'work',
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t[t > 0],
        lambda t: t.cpu(),
    ],
)
def test_the_meta_device_notices_a_transfer(work):
    with pytest.raises((RuntimeError, NotImplementedError)):
        work(torch.ones(3, device=META))


@pytest.mark.parametrize('avg_non_ignore', [False, True])
@pytest.mark.parametrize('with_class_weight', [False, True])
def test_a_step(avg_non_ignore, with_class_weight):
    ids = torch.zeros(2, dtype=torch.int64, device=META)
    ledger, board = Ledger(), ScoreBoard(5, device=META)
    ledger.open(ids, torch.ones(2, device=META))
    logits = torch.randn(2, 3, 4, 4, device=META, requires_grad=True)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64, device=META)
    class_weight = torch.ones(3, device=META) if with_class_weight else None
    with keep_pixel_losses() as kept:
        scaled = scale_gradient(logits, ledger.weights)
        pixels = cross_entropy_loss.F.cross_entropy(
            scaled,
            labels,
            weight=class_weight,
            reduction='none',
            ignore_index=255,
        )
    pixels.mean().backward()
    (pixel_losses,) = kept
    assert isinstance(pixel_losses, PixelLosses)
    ledger.record('head', image_means(pixel_losses, avg_non_ignore))
    ledger.record('other head', class_balanced_means(pixel_losses))
    board.update(*ledger.close())
    assert logits.grad.shape == logits.shape
    assert board.scores.shape == (5,)
