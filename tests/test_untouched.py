"""Modules work on copies, and have what they had afterwards."""

import random
from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from infobatch_mm.host.untouched import (
    Untouched,
    UntouchedRandomness,
    every_module,
)


class Meter:
    def __init__(self):
        self.total, self.values = 0.0, []

    def update(self, value):
        self.total += value
        self.values.append(value)


CHANGES = dict(
    count=lambda m: setattr(m, 'count', m.count + 1),
    buffer_in_place=lambda m: m.steps.add_(1),
    buffer_set=lambda m: setattr(m, 'steps', m.steps + 1),
    list=lambda m: m.items.append(1),
    nested=lambda m: m.nested['of'][0].append(2),
    deque=lambda m: m.queue.append(3),
    default=lambda m: m.table['new'].append(4),
    array=lambda m: np.add(m.array, 1, out=m.array),
    tensor=lambda m: m.tensor.add_(1),
    tuple=lambda m: m.pair[0].append(5),
    object=lambda m: m.meter.update(6.0),
    objects=lambda m: m.meters[0].update(7.0),
    generator=lambda m: torch.rand(1, generator=m.generator),
    numpy_generator=lambda m: m.rng.random(),
    python_generator=lambda m: m.python.random(),
    new=lambda m: setattr(m, 'brand_new', 1),
    deleted=lambda m: delattr(m, 'count'),
    new_buffer=lambda m: m.register_buffer('late', torch.ones(1)),
    new_parameter=lambda m: m.register_parameter(
        'late', nn.Parameter(torch.ones(1))
    ),
    norm=lambda m: m.norm(torch.randn(3, 2)),
)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer('steps', torch.zeros(()))
        self.count, self.items = 0, []
        self.nested = OrderedDict(of=[[1]])
        self.queue, self.table = deque([1], maxlen=3), defaultdict(list)
        self.array, self.tensor = np.zeros(3), torch.zeros(3)
        self.pair, self.meter, self.meters = ([1], 2), Meter(), [Meter()]
        self.generator = torch.Generator().manual_seed(0)
        self.rng, self.python = np.random.default_rng(0), random.Random(0)


def seen(module):
    """Return what can be told of the state, as text."""
    meters = [module.meter, *module.meters]
    return repr(
        (
            {k: v for k, v in vars(module).items() if k != 'tensor'}.keys(),
            module.state_dict(),
            list(module._buffers),
            getattr(module, 'count', None),
            (module.items, module.nested, module.queue, module.table),
            (module.array, module.tensor, module.pair),
            [vars(meter) for meter in meters],
            module.generator.get_state().sum(),
            module.rng.bit_generator.state,
            module.python.getstate(),
        )
    )


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_what_changes_in_the_block_is_as_before_it(change):
    module = Stateful()
    held = dict(vars(module), **module._buffers)
    before = seen(module)
    with Untouched(module.modules()) as state:
        change(module)
        assert seen(module) != before
        state.renew()
        assert seen(module) == before
        change(module)
    assert seen(module) == before
    for name, value in held.items():
        assert getattr(module, name) is value, name
    change(module)
    assert seen(module) != before


def test_names_of_one_thing_stay_names_of_one_thing():
    module = Stateful()
    module.first = module.second = [1]
    with Untouched([module]):
        module.first.append(2)
        assert module.second == [1, 2]
    assert module.second == [1]


def test_the_modules_and_parameters_are_shared():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.context = SimpleNamespace(whole=module)
    with Untouched(module.modules()):
        assert module.context.whole is module
        module(torch.randn(3, 2)).sum().backward()
    assert module[0].weight.grad is not None
    assert module[1].num_batches_tracked == 0


def test_what_cannot_be_copied_is_shared():
    module = Stateful()
    module.stream = (i for i in range(3))
    with Untouched([module]):
        next(module.stream)
    assert next(module.stream) == 1


class Watcher:
    def __init__(self):
        self.seen = []

    def __call__(self, module, args):
        self.seen.append(len(args))

    def method(self, module, args):
        self.seen.append(len(args))


def test_what_hooks_note_is_as_before():
    module, noted, counts = Stateful(), [], 0
    watchers = [Watcher(), Watcher(), Watcher()]

    def note(module, args):
        nonlocal counts
        noted.append(len(args))
        counts += 1

    owner = watchers[2]
    for function in (
        watchers[0],
        watchers[1].method,
        note,
        lambda _, args: owner.seen.append(len(args)),
    ):
        module.norm.register_forward_pre_hook(function)
    with Untouched(module.modules()):
        module.norm(torch.randn(3, 2))
    assert noted == [] and counts == 0
    assert [watcher.seen for watcher in watchers] == [[], [], []]
    module.norm(torch.randn(3, 2))
    assert noted == [1] and counts == 1
    assert [watcher.seen for watcher in watchers] == [[1], [1], [1]]


def test_an_error_puts_the_state_back_too():
    module = Stateful()
    before = seen(module)
    with pytest.raises(KeyError), Untouched(module.modules()):
        CHANGES['count'](module)
        raise KeyError
    assert seen(module) == before


def test_random_states_are_as_before():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with UntouchedRandomness([]) as randomness:
        first = draw()
        randomness.renew()
        assert torch.rand(1).item() == first[2]
    assert draw() == first


def test_hidden_modules_are_found_by_name():
    model = nn.ModuleDict(dict(head=nn.Linear(1, 1)))
    vars(model)['teacher'] = nn.Sequential(nn.Linear(1, 1))
    vars(model['head'])['friends'] = [nn.ReLU(), model]
    names = dict(every_module(model))
    assert set(names) == {
        '',
        'head',
        'teacher',
        'teacher.0',
        'head.friends',
    }
    assert names['teacher'] is vars(model)['teacher']
