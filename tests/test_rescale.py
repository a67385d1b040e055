"""scale_gradient: identity forward, weighted backward."""

from collections import namedtuple

import pytest
import torch

from infobatch_mm.rescale import scale_gradient

WEIGHTS = torch.tensor([2.0, 1.0, 0.0, 4 / 3])
Pair = namedtuple('Pair', 'logits boxes')


def leaf(*shape: int, dtype=torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(len(shape))
    values = torch.randn(shape, generator=rng).to(dtype)
    return values.requires_grad_()


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return (
        logits.double().sin() * torch.arange(logits.numel()).view_as(logits)
    ).sum()


def gradient(logits: torch.Tensor, weights=None, axis: int = 0):
    """Return the gradient of a loss, weighted if weights are given."""
    scaled = logits
    if weights is not None:
        scaled = scale_gradient(logits, weights, axis=axis)
    return torch.autograd.grad(loss_of(scaled), logits)[0]


@pytest.mark.parametrize('shape', [(4,), (4, 3), (4, 3, 5, 2)])
def test_the_value_is_untouched_and_the_gradient_weighted(shape):
    logits = leaf(*shape)
    scaled = scale_gradient(logits, WEIGHTS)
    assert scaled.requires_grad
    assert torch.equal(scaled, logits)
    expected = gradient(logits) * WEIGHTS.view(4, *[1] * (len(shape) - 1))
    assert torch.equal(gradient(logits, WEIGHTS), expected)


def test_it_is_the_weighted_sum_of_single_image_gradients():
    weight, images = (
        leaf(3, 5),
        torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),
    )

    def grad_of(losses):
        return torch.autograd.grad(losses.sum(), weight)[0]

    def losses(logits):
        return logits.logsumexp(1)

    got = grad_of(losses(scale_gradient(images @ weight.T, WEIGHTS)))
    single = [grad_of(losses(image[None] @ weight.T)) for image in images]
    expected = sum(w * g for w, g in zip(WEIGHTS, single, strict=True))
    torch.testing.assert_close(got, expected)


def test_the_batch_may_lie_on_another_axis():
    layers = leaf(2, 4, 3)
    expected = gradient(layers) * WEIGHTS.view(1, 4, 1)
    assert torch.equal(gradient(layers, WEIGHTS, axis=1), expected)


def test_a_weight_of_one_changes_no_bit():
    values = [-0.0, 1e-45, 1e-40, 1 / 3, 3e38, torch.inf]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.half):
        incoming = torch.tensor(values, dtype=torch.float64).to(dtype)
        logits = torch.zeros(6, dtype=dtype, requires_grad=True)
        scaled = scale_gradient(logits, torch.ones(6))
        (got,) = torch.autograd.grad(scaled, logits, incoming)
        assert got.dtype == dtype
        bits = torch.uint8
        assert torch.equal(got.view(bits), incoming.view(bits))


def test_a_weight_of_zero_leaves_no_gradient():
    assert gradient(leaf(4, 3), torch.zeros(4)).count_nonzero() == 0


def test_half_precision_is_weighted_in_float32_and_rounded_once():
    logits = leaf(4, 50, dtype=torch.bfloat16)
    weights = torch.tensor([4 / 3, 10 / 7, 1.1, 1.7])
    plain = gradient(logits)
    expected = (plain.float() * weights[:, None]).bfloat16()
    assert torch.equal(gradient(logits, weights), expected)
    # The check can fail: rounding the weight first gives another result.
    assert not torch.equal(plain * weights[:, None].bfloat16(), expected)


def test_it_works_under_autocast():
    logits, weight = leaf(4, 3), torch.eye(3)
    with torch.autocast('cpu', torch.bfloat16):
        scaled = scale_gradient(logits @ weight, WEIGHTS)
        assert scaled.dtype == torch.bfloat16
    (got,) = torch.autograd.grad(scaled.sum(), logits)
    expected = WEIGHTS.bfloat16().float()[:, None].expand(4, 3)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    'nest',
    [
        lambda a, b: (a, b),
        lambda a, b: [a, [b]],
        lambda a, b: dict(logits=a, more=dict(boxes=(b,))),
        lambda a, b: Pair(logits=a, boxes=[b]),
    ],
    ids=['tuple', 'list', 'dict', 'namedtuple'],
)
def test_nests_keep_their_shape_and_each_tensor_is_weighted(nest):
    a, b = leaf(4, 3), leaf(4, 3, 5)
    scaled = scale_gradient(nest(a, b), WEIGHTS)
    seen = []

    def compare(got, expected):
        assert type(got) is type(expected)
        if isinstance(got, torch.Tensor):
            seen.append(got)
            assert torch.equal(got, expected)
        elif isinstance(got, dict):
            assert got.keys() == expected.keys()
            compare(list(got.values()), list(expected.values()))
        else:
            for pair in zip(got, expected, strict=True):
                compare(*pair)

    compare(scaled, nest(a, b))
    grads = torch.autograd.grad(sum(map(loss_of, seen)), (a, b))
    for logits, got in zip((a, b), grads, strict=True):
        assert torch.equal(got, gradient(logits, WEIGHTS))


def test_what_carries_no_gradient_is_passed_through():
    labels, other = torch.zeros(7, dtype=torch.int64), object()
    assert scale_gradient(labels, WEIGHTS) is labels
    assert scale_gradient([other, None, 3], WEIGHTS) == [other, None, 3]


@pytest.mark.parametrize(
    ('shape', 'axis'), [((3, 4), 0), ((4, 3), 1), ((4,), 1), ((), 0)]
)
def test_a_tensor_without_the_batch_is_refused(shape, axis):
    with pytest.raises(ValueError, match=rf'axis {axis} .* 4 images'):
        scale_gradient([leaf(*shape)], WEIGHTS, axis=axis)


def test_it_does_not_wait_for_the_device():
    # A tensor on `meta` has no value: reading one raises.
    logits = torch.zeros(4, 3, device='meta', requires_grad=True)
    weights = torch.zeros(4, device='meta')
    scale_gradient(logits * 2, weights).sum().backward()
    assert logits.grad.is_meta
