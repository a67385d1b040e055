"""Train a small config with pruning, and measure its model.

What tools/check_zoo.py does within a process of its own. The model that was
trained is compared with one that the stock config builds, both with the same
weights, frozen batch statistics and equal random numbers.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from infobatch_mm import enable
from infobatch_mm.binding import find_heads
from infobatch_mm.ledger import Ledger
from zoo.package import Package
from zoo.small import BATCH, SAMPLES

BATCH_NORM = nn.modules.batchnorm._BatchNorm
WEIGHTS = (0.5, 3.0)
# Losses that are a mean over images, but for the settings that are looked at.
MEANS = ('CrossEntropyLoss', 'DiceLoss', 'LabelSmoothLoss')

# The largest error of each probe; relative where it is not zero.
TOLERANCES = dict(
    ones=0.0,
    linear=1e-4,
    zeros=0.0,
    zeros_layers=0.0,
    random_state=0.0,
    scores=1e-4,
    scores_alone=1e-3,
    single_images=1e-4,
)

# The run


def train(cfg: Config, package: Package) -> Runner:
    """Train a small config, stock or pruned, in the working directory.

    Args:
        cfg (Config): The small config.
        package (Package): The package that it is of.

    Raises:
        FloatingPointError: If a loss was not finite.
    """
    cfg = deepcopy(cfg)
    cfg.experiment_name = cfg.train_cfg.get('type', 'stock')
    package.write_images(cfg.train_dataloader.dataset)
    if cfg.model.get('pretrained'):
        write_weights(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    if not np.isfinite(losses).all():
        raise FloatingPointError('the loss became NaN or infinite')
    return runner


def write_weights(cfg: Config) -> None:
    """Write the checkpoint that a model is to start from, random weights."""
    init_default_scope(cfg.default_scope)
    state = MODELS.build(deepcopy(cfg.model)).state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            is_norm = value.dim() == 1 and name.endswith('weight')
            state[name] = torch.randn(value.shape) * 0.02 + float(is_norm)
    torch.save(state, cfg.model.pretrained)


def prune(cfg: Config) -> Config:
    """Return a small config that prunes until its end."""
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.75)
    return enable(cfg, policy=policy, delta=1.0)


def rounds_of(work_dir: str) -> list[int]:
    """Return how many samples each round of a run kept."""
    lines = Path(work_dir, 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line)['kept'] for line in lines]


# The probes


class Step(NamedTuple):
    """What a forward and backward pass gave."""

    loss: Tensor
    gradients: list[Tensor | None]
    scores: Tensor | None
    random_state: Tensor


class Subject:
    """A model of frozen statistics, each step of which starts the same.

    Args:
        model (nn.Module): The model, stock or with weighted heads.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.train()
        for module in model.modules():
            if isinstance(module, BATCH_NORM):
                module.eval()
        self.buffers = {
            name: buffer.clone() for name, buffer in model.named_buffers()
        }
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def without_dropout(self) -> 'Subject':
        """Switch off what draws a random number for each image."""
        for module in self.model.modules():
            if 'Drop' in type(module).__name__:
                module.eval()
        return self

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a batch under seed 0."""
        for name, value in self.buffers.items():
            # EMAHead learns its bases in the forward pass.
            self.model.get_buffer(name).copy_(value)
        torch.manual_seed(0)
        losses = self.model(**deepcopy(batch), mode='loss')
        return self.model.parse_losses(losses)[0]

    def step(self, batch: dict[str, Any], *weights: float) -> Step:
        """Return the gradients of a batch, weighted if weights are given."""
        ledger, scores = Ledger(), None
        if weights:
            for head in find_heads(self.model).values():
                head.infobatch_ledger = ledger
            ledger.open(torch.arange(len(weights)), torch.tensor(weights))
        loss = self.loss(batch)
        state = torch.get_rng_state()
        if weights:
            scores = ledger.close()[1]
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True
        )
        return Step(loss.detach(), list(gradients), scores, state)


def lay_out(model: nn.Module) -> None:
    """Give batch norms their input and their gradient in the usual layout.

    PyTorch 2.13 and 2.15 get gradients wrong on the CPU where one of the two
    belongs to a single image that was transposed to or from (B, HW, C), and
    the other does not.
    """

    def before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].contiguous(),)

    def after(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(Tensor.contiguous)

    for module in model.modules():
        if isinstance(module, BATCH_NORM):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)


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


def compare_keys(model: nn.Module, twin: nn.Module) -> None:
    """Raise RuntimeError if a key or a shape is not that of the stock model.

    It is not loaded: Swin V2 leaves out some of its own keys as it loads.
    """
    first, second = (
        {name: tuple(value.shape) for name, value in each.state_dict().items()}
        for each in (model, twin)
    )
    different = sorted(first.items() ^ second.items())
    if different:
        raise RuntimeError(f"not the stock model's state dict: {different}")


@torch.no_grad()
def copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers, also those that LoRA saves not."""
    for kind in ('named_parameters', 'named_buffers'):
        values = dict(getattr(source, kind)())
        for name, tensor in getattr(target, kind)():
            tensor.copy_(values[name])


def to_double(model: nn.Module) -> None:
    """Let a model compute in double precision, in place.

    XCiT makes positions in single precision and gives them to a convolution.
    """
    for module in model.double().modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, args: (args[0].to(module.weight.dtype),)
            )


def is_fault(name: str, error: float | str) -> bool:
    """Tell whether the error of a probe is too large, or NaN."""
    return not isinstance(error, str) and not error <= TOLERANCES[name]


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


@torch.no_grad()
def settle(model: nn.Module, batch: dict[str, Any]) -> None:
    """Set the running statistics of batch norms to those of a batch.

    After few iterations they are far from them, and what comes out of a deep
    model of frozen statistics can be so large that rounding rules it.
    """
    for module in model.modules():
        if isinstance(module, BATCH_NORM):
            module.momentum = 1.0
    model.train()(**deepcopy(batch), mode='loss')


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


def image_of(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a batch of one image of a batch."""
    return {name: value[index : index + 1] for name, value in batch.items()}


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


# Arithmetic on lists of tensors, None among them


def difference(found: list, expected: list) -> float:
    """Return the largest absolute difference; 0 only if all is equal."""
    if [f is None for f in found] != [e is None for e in expected]:
        return float('inf')
    pairs = zip(found, expected, strict=True)
    return largest(
        [f - e for f, e in pairs if f is not None and not torch.equal(f, e)]
    )


def largest(tensors: list) -> float:
    """Return the largest absolute value, NaN if there is one."""
    values = [t.abs().max().double() for t in tensors if t is not None]
    return float(torch.stack(values).max()) if values else 0.0


def distance(found: list, expected: list) -> float:
    """Return the norm of the difference over that of what is expected."""
    pairs = zip(found, expected, strict=True)
    return norm([f - e for f, e in pairs if f is not None]) / norm(expected)


def norm(tensors: list) -> float:
    """Return the Euclidean norm of tensors taken together."""
    norms = [torch.linalg.vector_norm(t) for t in tensors if t is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def combine(factors: Any, first: list, second: list) -> list:
    """Return a linear combination of two lists of gradients."""
    return [
        None if a is None else factors[0] * a + factors[1] * b
        for a, b in zip(first, second, strict=True)
    ]
