"""The score of an image does not depend on the sizes of those beside it."""

import pytest
import torch
import toys
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from infobatch_mm.heads.padding import own_parts

CE = dict(type='CrossEntropyLoss')
LOSSES = dict(
    plain=[CE],
    two=[CE, dict(CE, loss_name='loss_b', avg_non_ignore=True)],
    dice=[CE, dict(type='DiceLoss')],
    sigmoid=[dict(CE, use_sigmoid=True)],
)
SIZES = [(32, 32), (64, 48), (32, 64)]


def images():
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=torch.randint(256, (3, *size), generator=generator),
            labels=torch.randint(11, (1, *size), generator=generator),
        )
        for size in SIZES
    ]


def padded(indices, **size):
    """Return what mmseg's preprocessor makes of some of the images."""
    kinds = dict(mean=[0.0] * 3, std=[1.0] * 3, seg_pad_val=255)
    preprocessor = MODELS.build(
        dict(type='SegDataPreProcessor', **kinds, **size)
    )
    chosen = [images()[i] for i in indices]
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=each['labels']))
        for each in chosen
    ]
    inputs = [each['inputs'] for each in chosen]
    return preprocessor(dict(inputs=inputs, data_samples=samples), True)


def logits_of(inputs):
    """Return logits that an image's own pixels decide, in full size."""
    channels = torch.linspace(-1, 1, 11).view(1, -1, 1, 1)
    return channels * inputs.mean(1, keepdim=True) / 64


def scores(loss, indices, balanced=False, **size):
    torch.manual_seed(0)
    head = MODELS.build(toys.weighted(toys.fcn_head(loss_decode=LOSSES[loss])))
    batch = padded(indices, **size)
    ledger = head.infobatch_ledger
    ledger.class_balanced = balanced
    ledger.open(torch.arange(len(indices)), torch.ones(len(indices)))
    head.loss_by_feat(logits_of(batch['inputs']), batch['data_samples'])
    return ledger.close()[1]


@pytest.mark.parametrize('size', [dict(size_divisor=32), dict(size=(96, 96))])
@pytest.mark.parametrize('loss', LOSSES)
def test_a_score_is_that_of_the_image_in_its_own_size(loss, size):
    together = scores(loss, [0, 1, 2], **size)
    alone = [scores(loss, [i], size_divisor=1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.unique().numel() == 3


def test_so_is_a_class_balanced_one():
    together = scores('plain', [0, 1, 2], balanced=True, size_divisor=32)
    alone = [scores('plain', [i], True, size_divisor=1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_parts_of_a_batch():
    samples = padded([0, 1], size_divisor=1)['data_samples']
    small, large = own_parts((None, samples), {})
    assert (small.share, large.share) == (32 * 32 / (64 * 48), 1.0)
    assert (small.rows, small.columns) == (slice(0, 32), slice(0, 32))
    assert own_parts((), dict(metas=[s.metainfo for s in samples]))
    same = padded([1, 1], size_divisor=1)['data_samples']
    assert own_parts((None, same), {}) is None
    assert own_parts((None, [SegDataSample()]), {}) is None
