"""The probes that compare a batch with each of its images alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.sizes import BATCH, WEIGHTS
from zoo.subject import Subject
from zoo.vectors import combine, distance

# Losses that are a mean over images, but for the settings that are looked at.
MEANS = ('CrossEntropyLoss', 'DiceLoss', 'LabelSmoothLoss')


def image_of(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a batch of one image of a batch."""
    return {name: value[index : index + 1] for name, value in batch.items()}


def probe_images(
    subject: Subject, reference: Subject, batch: Any, heads: list[str]
) -> dict[str, Any]:
    """Probe scores and gradients against those of each image alone."""
    weighted = subject.step(batch, *WEIGHTS)
    modules = [reference.model.get_submodule(name) for name in heads]
    expected, forward_draws = expected_scores(reference, modules, batch)
    found: dict[str, Any] = dict(
        scores=distance([weighted.scores], [expected])
    )
    if forward_draws:
        reason = 'n/a: the forward pass draws random numbers'
        return found | dict(scores_alone=reason, single_images=reason)
    try:
        first, second = (
            reference.step(image_of(batch, index)) for index in range(BATCH)
        )
    except RuntimeError as error:  # LeNet5 squeezes its features
        reason = f'n/a: stock, on one image: {error}'
        return found | dict(scores_alone=reason, single_images=reason)
    alone = torch.stack([first.loss, second.loss])
    found['scores_alone'] = distance([weighted.scores], [alone])
    reason = not_a_mean(modules)
    if reason:
        return found | dict(single_images=f'n/a: {reason}')
    factors = [weight / BATCH for weight in WEIGHTS]
    mean = combine(factors, first.gradients, second.gradients)
    found['single_images'] = distance(weighted.gradients, mean)
    return found


def expected_scores(
    reference: Subject, heads: list[Any], batch: Any
) -> tuple[Tensor, bool]:
    """Return the stock loss of each image's own logits.

    A loss that draws random numbers draws the same for each image.

    Returns:
        tuple[Tensor, bool]: The losses, shape (B,), and whether random
        numbers were drawn before a loss was entered.
    """
    scores, states = torch.zeros(BATCH), []

    def watched(stock: Callable[..., Any]) -> Callable[..., Any]:
        def loss(*args: Any, **kwargs: Any) -> Any:
            # Where a loss is told how many images to divide by, it is one.
            one = dict(avg_factor=1) if 'avg_factor' in kwargs else {}
            states.append(torch.get_rng_state())
            for image in range(BATCH):
                with torch.random.fork_rng(devices=[]):
                    losses = stock(
                        *[cut(value, image) for value in args],
                        **{k: cut(v, image) for k, v in kwargs.items()} | one,
                    )
                if isinstance(losses, Tensor):  # of a loss module
                    losses = dict(loss=losses)
                scores[image] += reference.model.parse_losses(losses)[0]
            return stock(*args, **kwargs)

        return loss

    seams = [loss_call(head) for head in heads]
    for module, name in seams:
        setattr(module, name, watched(getattr(module, name)))
    with torch.no_grad():
        reference.loss(batch)
    for module, name in seams:
        delattr(module, name)
    torch.manual_seed(0)
    start = torch.get_rng_state()
    return scores, not all(torch.equal(state, start) for state in states)


def loss_call(head: Any) -> tuple[nn.Module, str]:
    """Return the module and the name of the method that is a head's loss."""
    if hasattr(head, 'loss_by_feat'):
        return head, 'loss_by_feat'
    return head.loss_module, 'forward'


def cut(value: Any, image: int) -> Any:
    """Cut an argument of a loss down to one image.

    It knows less than the package's own: the batch is the first axis of size
    BATCH, and a list of anything but tensors has an item an image.
    """
    if isinstance(value, Tensor):
        return value.narrow(value.shape.index(BATCH), image, 1)
    if isinstance(value, (list, tuple)):
        if isinstance(value[0], (Tensor, list, tuple)):
            return type(value)(cut(item, image) for item in value)
        return value[image : image + 1]
    return value


def not_a_mean(heads: list[nn.Module]) -> str:
    """Say which loss is not a plain mean over images; '' if all are."""
    for module in (m for head in heads for m in head.modules()):
        name = type(module).__name__
        if getattr(module, 'sampler', None) is not None:
            return f'{type(module.sampler).__name__} picks pixels'
        if 'Loss' in name and name not in MEANS:
            return name
        if getattr(module, 'class_weight', None) is not None:
            return f'{name} with class_weight'
        if getattr(module, 'avg_non_ignore', False):
            return f'{name} with avg_non_ignore'
        if name.startswith('Ohem'):
            return name
    return ''
