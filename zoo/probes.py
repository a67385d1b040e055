"""What is measured of a model that was trained with pruning."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from infobatch_mm.binding import find_heads
from zoo.package import BATCH, SAMPLES, WEIGHTS
from zoo.record import TOLERANCES, is_fault
from zoo.subject import (
    Subject,
    combine,
    compare_keys,
    copy_tensors,
    difference,
    distance,
    largest,
    lay_out,
    settle,
    to_double,
)

# Losses that are a mean over images, but for the settings that are looked at.
MEANS = ('CrossEntropyLoss', 'DiceLoss', 'LabelSmoothLoss')


def probe(runner: Runner, stock: Any) -> dict[str, Any]:
    """Measure the model of a pruned run against the stock one.

    Args:
        runner (Runner): The runner, at the end of its run.
        stock (dict): Config of the stock model.

    Returns:
        dict: Under ``probes`` the error of each probe (see TOLERANCES), or
        why it does not apply. Errors that rounding may explain are measured
        again in double precision; ``rounded`` holds what they were in single.
        With ``untrained`` the parameters are new ones, since those that were
        trained have no gradient left to measure.

    Raises:
        RuntimeError: If the state dict is not the stock model's.
    """
    twin = MODELS.build(stock)
    for model in (runner.model, twin):
        lay_out(model)
    batch = draw_batch(runner, SAMPLES)
    settle(runner.model, batch)
    untrained = not has_gradient(runner)
    if untrained:
        copy_tensors(twin, runner.model)
        settle(runner.model, batch)
    compare_keys(runner.model, twin)
    copy_tensors(runner.model, twin)
    found = measure(runner, twin)
    rounded = {
        name: error
        for name, error in found.items()
        if TOLERANCES[name] and is_fault(name, error)
    }
    if rounded:
        to_double(runner.model)
        to_double(twin)
        again = measure(runner, twin)
        found |= {name: again[name] for name in rounded}
    result: dict[str, Any] = dict(probes=found, rounded=rounded)
    return result | ({'untrained': True} if untrained else {})


def has_gradient(runner: Runner) -> bool:
    """Tell whether each of the images that are probed has a gradient.

    A linear probe with a learning rate of 12 soon brings its loss to zero.
    """
    subject, batch = Subject(runner.model), draw_batch(runner, BATCH)
    return all(
        largest(subject.step(batch, *weights).gradients) > 0
        for weights in torch.eye(BATCH).tolist()
    )


def measure(runner: Runner, twin: nn.Module) -> dict[str, Any]:
    """Return the errors of a pruned model against the stock one."""
    subject, reference = Subject(runner.model), Subject(twin)
    heads = find_heads(runner.model)
    batch = sound_batch(runner, reference)
    found = probe_weights(subject, reference, batch)
    layers = max(map(decoder_layers, heads.values()))
    if layers:
        step = subject.step(draw_batch(runner, layers), *[0.0] * layers)
        found['zeros_layers'] = largest(step.gradients)
    return found | probe_images(
        subject.without_dropout(),
        reference.without_dropout(),
        batch,
        list(heads),
    )


def draw_batch(runner: Runner, size: int) -> dict[str, Any]:
    """Return a training batch as it enters the model.

    Where images are mixed they are so already, and image_of() gives one.
    """
    dataset = runner.train_dataloader.dataset
    samples = [dataset[index % SAMPLES] for index in range(size)]
    batch = runner.train_dataloader.collate_fn(samples)
    batch = runner.model.data_preprocessor(batch, True)
    dtype = next(runner.model.parameters()).dtype
    return dict(batch, inputs=batch['inputs'].to(dtype))


@torch.no_grad()
def sound_batch(runner: Runner, reference: Subject) -> dict[str, Any]:
    """Draw a batch of which the stock losses are finite, also image by image.

    OhemCrossEntropy gives NaN where it finds no pixel to learn from.
    """
    for _ in range(20):
        batch = draw_batch(runner, BATCH)
        batches = [batch, *(image_of(batch, i) for i in range(BATCH))]
        if all(reference.loss(each).isfinite() for each in batches):
            return batch
    raise FloatingPointError('20 batches had stock losses that are not finite')


def decoder_layers(head: Any) -> int:
    """Return how many layers of a mask head give a loss, 0 for others.

    A batch of that size is one in which layers and images are easily mixed.
    """
    decoder = getattr(head, 'transformer_decoder', None)
    return getattr(decoder, 'num_layers', 0)


def probe_weights(
    subject: Subject, reference: Subject, batch: Any
) -> dict[str, Any]:
    """Probe how the gradients depend on the weights."""
    stock, ones = reference.step(batch), subject.step(batch, 1.0, 1.0)
    found: dict[str, Any] = dict(
        ones=difference(
            [ones.loss, *ones.gradients], [stock.loss, *stock.gradients]
        )
    )
    if torch.equal(reference.step(batch).random_state, stock.random_state):
        differs = not torch.equal(ones.random_state, stock.random_state)
        found['random_state'] = float(differs)
    else:  # RevViT
        found['random_state'] = 'n/a: stock seeds itself at random'
    first = subject.step(batch, 1.0, 0.0).gradients
    second = subject.step(batch, 0.0, 1.0).gradients
    weighted = subject.step(batch, *WEIGHTS).gradients
    found['linear'] = distance(weighted, combine(WEIGHTS, first, second))
    found['zeros'] = largest(subject.step(batch, 0.0, 0.0).gradients)
    return found


# The batch against each of its images alone


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
