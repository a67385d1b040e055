"""What is measured of a model that was trained with pruning."""

from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from infobatch_mm.binding import find_heads
from zoo.image_probes import image_of, probe_images
from zoo.sizes import BATCH, SAMPLES, WEIGHTS
from zoo.subject import (
    Subject,
    compare_keys,
    copy_tensors,
    lay_out,
    settle,
    to_double,
)
from zoo.tolerances import TOLERANCES, is_fault
from zoo.vectors import combine, difference, distance, largest


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
    """Return the errors of a pruned model against its stock twin."""
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
