"""Only the training step weighs and records, and it reaches each loss."""

import json
import random
from collections import OrderedDict, defaultdict, deque
from copy import deepcopy
from types import SimpleNamespace

import light
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import toys
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import (
    DATASETS,
    HOOKS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from infobatch_mm import InfoBatchHook
from infobatch_mm.heads import attach, weighted
from infobatch_mm.host.untouched import (
    Untouched,
    UntouchedRandomness,
    every_module,
)
from infobatch_mm.ledger import Ledger
from infobatch_mm.reach import refuse_unreached, unreached_parameters

LOOPS = dict(
    epochs=dict(type='EpochBasedTrainLoop', max_epochs=3),
    iters=dict(type='InfoBatchIterBasedTrainLoop', max_iters=18),
)


@HOOKS.register_module()
class Onlooker(Hook):
    """Compute losses of other data around each step, in many ways."""

    def __init__(self, size, mode):
        self.size, self.mode = size, mode
        self.losses = []

    def before_train(self, runner):
        self.data = DATASETS.build(dict(type='LightData', size=9))

    def look(self, runner):
        model, ledger = runner.model, toys.hook_of(runner).ledger
        batch = pseudo_collate([self.data[i] for i in range(self.size)])
        before = ledger.losses
        model.train(self.mode == 'train')
        self.losses.append(sum(model(**batch, mode='loss').values()).item())
        model.train()
        assert ledger.losses is before

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.look(runner)

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.look(runner)


@HOOKS.register_module()
class Copier(Hook):
    """Copy the model where its train_step is bracketed."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        twin = deepcopy(runner.model)
        before = deepcopy(runner.model.state_dict())
        optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
        wrapper = type(runner.optim_wrapper)(optimizer)
        twin.train_step(data_batch, optim_wrapper=wrapper)
        assert not torch.equal(twin.head.fc.weight, before['head.fc.weight'])
        torch.testing.assert_close(
            runner.model.state_dict(), before, rtol=0, atol=0
        )
        assert toys.hook_of(runner).ledger.losses is None


def run(work_dir, loop, *hooks):
    """Return a run's scores, weights and plans."""
    cfg = light.config(work_dir, loop, samples=24)
    cfg.custom_hooks += hooks
    runner = toys.train(cfg)
    with open(work_dir / 'infobatch.jsonl') as file:
        plans = [json.loads(line)['digest'] for line in file]
    scores = toys.hook_of(runner).board.scores
    return scores, runner.model.state_dict(), plans, runner


def check_same(found, expected):
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
    assert found[2] == expected[2]


@pytest.mark.parametrize(
    'loop, size, mode, priority',
    [
        ('epochs', 4, 'train', 'VERY_HIGH'),
        ('epochs', 1, 'eval', 'LOWEST'),
        ('iters', 7, 'eval', 'NORMAL'),
        ('iters', 4, 'train', 'LOWEST'),
    ],
)
def test_a_loss_of_a_hook_is_a_stock_one(tmp_path, loop, size, mode, priority):
    onlooker = dict(type='Onlooker', size=size, mode=mode, priority=priority)
    *expected, _ = run(tmp_path / 'alone', LOOPS[loop])
    *found, runner = run(tmp_path / 'watched', LOOPS[loop], onlooker)
    check_same(found, expected)
    (hook,) = (h for h in runner.hooks if isinstance(h, Onlooker))
    assert len(hook.losses) == 2 * runner.iter and min(hook.losses) > 0


def test_a_copy_of_the_model_trains_itself(tmp_path):
    loop = LOOPS['epochs']
    *expected, _ = run(tmp_path / 'alone', loop)
    *found, runner = run(tmp_path / 'copied', loop, dict(type='Copier'))
    check_same(found, expected)
    assert 'train_step' not in vars(runner.model)


@HOOKS.register_module()
class OtherStep(Hook):
    """Train on other data before each step, as by a second data loader."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.data = DATASETS.build(dict(type='LightData', size=9))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        batch = pseudo_collate([self.data[i] for i in range(3)])
        runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        assert toys.hook_of(runner).ledger.losses is None


def test_a_step_on_other_data_is_a_stock_one(tmp_path):
    scores, _, plans, runner = run(
        tmp_path, LOOPS['epochs'], dict(type='OtherStep')
    )
    assert scores.isfinite().all() and len(plans) == 3


@MODELS.register_module()
class Adapted(nn.Module):
    """Hand all on to a model within, as mmpretrain's LoRAModel does."""

    def __init__(self):
        super().__init__()
        self.module = light.LightModel()

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


def test_a_model_may_hand_on_the_train_step_of_another(tmp_path):
    found = []
    for kind in ('LightModel', 'Adapted'):
        cfg = light.config(tmp_path / kind, LOOPS['epochs'])
        cfg.model = dict(type=kind)
        runner = toys.train(cfg)
        weight = runner.model.head.fc.weight
        found.append((weight, toys.hook_of(runner).board.scores))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert 'train_step' not in vars(runner.model)


def test_a_loop_that_goes_around_train_step_is_an_error(tmp_path, monkeypatch):
    """Its heads would be stock heads, and nothing would be weighted."""

    def run_iter(self, idx, data_batch):
        self.runner.call_hook(
            'before_train_iter', batch_idx=0, data_batch=data_batch
        )
        losses = self.runner.model(**data_batch, mode='loss')
        self.runner.optim_wrapper.update_params(sum(losses.values()))
        self.runner.call_hook(
            'after_train_iter', batch_idx=0, data_batch=data_batch
        )

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_iter', run_iter)
    with pytest.raises(RuntimeError, match='train_step'):
        run(tmp_path, LOOPS['epochs'])


# A loss that the weights do not reach is found before the first step

LOOP = dict(type='EpochBasedTrainLoop', max_epochs=2)


@MODELS.register_module()
class TermBeside(light.LightModel):
    """Add a term of the given kind to the loss of the head."""

    def __init__(self, term, **kwargs):
        super().__init__(**kwargs)
        self.term = term
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0
        # As many do to keep a teacher out of checkpoints.
        object.__setattr__(self, 'teacher', nn.Linear(4, 3))
        self.teacher.requires_grad_(False)

    def forward(self, inputs, data_samples, mode):
        losses = super().forward(inputs, data_samples, mode)
        if mode == 'loss' and hasattr(self, f'add_{self.term}'):
            getattr(self, f'add_{self.term}')(losses, torch.stack(inputs))
            self.calls += 1
        return losses

    def train_step(self, data, optim_wrapper):
        if self.term in ('own_step', 'cleared'):
            penalty = self.head.fc.bias.pow(2).sum() + self.head.fc.bias.sum()
            with optim_wrapper.optim_context(self):
                losses = self._run_forward(data, mode='loss')
            loss, log_vars = self.parse_losses(losses)
            optim_wrapper.update_params(loss + penalty)
            if self.term == 'cleared':  # for the step to come
                self.zero_grad()
            return log_vars
        return super().train_step(data, optim_wrapper)

    def add_feature(self, losses, points):
        losses['loss_feature'] = self.head.fc(points).pow(2).mean()

    def add_hidden_teacher(self, losses, points):
        wanted = self.teacher(points).softmax(1)
        found = self.head.fc(points).log_softmax(1)
        losses['loss_kd'] = F.kl_div(found, wanted, reduction='batchmean')

    def add_learned_weight(self, losses, points):
        losses['loss_ce'] = losses['loss_ce'] / self.scale + self.scale.log()

    def add_penalty(self, losses, points):
        losses['loss_penalty'] = self.head.fc.weight.pow(2).sum()

    def add_growing(self, losses, points):
        """Nothing at first, as a factor that is ramped up."""
        factor = self.calls / 10
        losses['loss_growing'] = factor * self.head.fc(points).pow(2).mean()

    # What is no such term.

    def add_zero(self, losses, points):
        """As is done to please DDP."""
        losses['loss_zero'] = 0 * sum(p.sum() for p in self.parameters())

    def add_constant(self, losses, points):
        losses['loss_constant'] = points.pow(2).mean()

    def add_detached(self, losses, points):
        losses['loss_detached'] = self.head.fc(points).detach().mean()


REFUSED = dict(
    feature='head.fc.weight, head.fc.bias',
    hidden_teacher='head.fc.weight, head.fc.bias',
    learned_weight='scale',
    penalty='head.fc.weight',
    own_step='head.fc.bias',
    cleared='head.fc.bias',
)
SERVED = ['none', 'zero', 'constant', 'detached']


def config(work_dir, term, **options):
    cfg = light.config(work_dir, LOOP, samples=24)
    cfg.model = dict(type='TermBeside', term=term)
    cfg.custom_hooks[0].update(options)
    return cfg


@pytest.mark.parametrize('term', REFUSED)
def test_a_term_beside_the_weights_is_refused(tmp_path, term):
    with pytest.raises(ValueError, match=f'gradient: {REFUSED[term]}. A part'):
        toys.train(config(tmp_path, term))


@pytest.mark.parametrize('term', SERVED)
def test_what_trains_nothing_is_not(tmp_path, term):
    runner = toys.train(config(tmp_path, term))
    assert toys.hook_of(runner).steps.has_looked


@pytest.mark.parametrize(
    'unweighted', ['allow', ['head.fc.weight'], ['head'], ['other', 'head.fc']]
)
def test_it_can_be_allowed(tmp_path, unweighted):
    toys.train(config(tmp_path, 'penalty', unweighted=unweighted))


def test_only_what_is_named_is_allowed(tmp_path):
    cfg = config(tmp_path, 'feature', unweighted=['head.fc.weight', 'hea'])
    with pytest.raises(ValueError, match=r'gradient: head\.fc\.bias\. A part'):
        toys.train(cfg)


@pytest.mark.parametrize('unweighted', ['ignore', 3, None, [1], True])
def test_an_unknown_setting_is_an_error(unweighted):
    with pytest.raises(ValueError, match='unweighted=.* is not'):
        InfoBatchHook(unweighted=unweighted)


def test_many_names_are_counted():
    names = [f'backbone.{k}' for k in range(20)]
    with pytest.raises(ValueError, match=r'backbone\.7 and 12 more\. A part'):
        refuse_unreached(names, ())
    refuse_unreached(names, ['backbone'])


def test_a_batch_without_a_finite_loss_puts_it_off(tmp_path):
    """Where the loss is NaN so are all gradients, and no one's fault."""
    cfg = config(tmp_path, 'penalty')
    cfg.optim_wrapper.optimizer.lr = 0.0
    cfg.train_dataloader.dataset.dataset.nan_at = tuple(range(24))
    runner = toys.train(cfg)
    assert not toys.hook_of(runner).steps.has_looked


class Tempered(light.LightHead):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def loss_by_feat(self, logits, data_samples):
        return super().loss_by_feat(logits / self.temperature, data_samples)


@MODELS.register_module()
class TemperedModel(light.LightModel):
    def __init__(self):
        super().__init__(weighted=False)
        self.head = Tempered()
        attach(self.head)


@pytest.mark.parametrize('is_frozen', [False, True])
def test_a_loss_with_a_parameter_that_trains_is_refused(tmp_path, is_frozen):
    """Its gradient is made of all images at once."""
    cfg = light.config(tmp_path, LOOP, samples=24)
    cfg.model = dict(type='TemperedModel')
    runner = Runner.from_cfg(cfg)
    runner.model.head.temperature.requires_grad_(not is_frozen)
    if is_frozen:
        runner.train()
        return
    with pytest.raises(ValueError, match=r'gradient: head\.temperature\. A'):
        runner.train()


class Rooted(light.LightHead):
    """Take a root at zero, whose gradient is not finite."""

    def loss_by_feat(self, logits, data_samples):
        losses = super().loss_by_feat(logits, data_samples)
        root = (logits - logits.detach()).square().sum().sqrt()
        return dict(loss=losses['loss_ce'] + root)


def test_a_batch_without_a_finite_gradient_puts_it_off():
    """Float16's scaler leaves such a step out, and nothing escapes."""
    model = light.LightModel()
    model.head = attach(Rooted())
    data = DATASETS.build(dict(type='LightData', size=4))
    batch = pseudo_collate([data[i] for i in range(4)])
    model.head.infobatch_ledger.open(torch.arange(4), torch.zeros(4))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    assert unreached_parameters(model, batch, wrapper) is None


@HOOKS.register_module()
class Rounds(Hook):
    """Note in which rounds a look is due, and what trained before."""

    priority = 'LOWEST'

    def __init__(self):
        self.due, self.weights = [], set()

    def before_train_epoch(self, runner):
        if not toys.hook_of(runner).steps.has_looked:
            self.due.append(runner.epoch)

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.weights |= set(toys.hook_of(runner).plan.weights.tolist())


def test_a_term_that_begins_later_is_refused_before_a_round_prunes(tmp_path):
    cfg = config(tmp_path, 'growing')
    cfg.custom_hooks.append(dict(type='Rounds'))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=r'gradient: head\.fc\.weight'):
        runner.train()
    (noted,) = (h for h in runner.hooks if isinstance(h, Rounds))
    assert runner.iter == 6 and noted.weights == {1.0}


def test_looks_are_as_rare_as_they_may_be(tmp_path):
    cfg = config(tmp_path, 'none', delta=1.0)
    cfg.train_cfg.max_epochs = 12
    cfg.custom_hooks.append(dict(type='Rounds'))
    runner = toys.train(cfg)
    (noted,) = (h for h in runner.hooks if isinstance(h, Rounds))
    # The first pruned round is that of epoch 1.
    assert noted.due == [0, 1, 2, 4, 8]


@HOOKS.register_module()
class Unfreeze(Hook):
    """Train a layer from an epoch on."""

    def before_train(self, runner):
        runner.model.extra.requires_grad_(False)

    def before_train_epoch(self, runner):
        runner.model.extra.requires_grad_(runner.epoch >= 3)


@MODELS.register_module()
class LateTerm(light.LightModel):
    """Add a term of a layer that is frozen at first."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(4, 1)

    def forward(self, inputs, data_samples, mode):
        losses = super().forward(inputs, data_samples, mode)
        losses['loss_extra'] = self.extra(torch.stack(inputs)).pow(2).mean()
        return losses


def test_it_looks_again_when_other_parameters_train(tmp_path):
    cfg = light.config(tmp_path, dict(LOOP, max_epochs=9), delta=1.0)
    cfg.model = dict(type='LateTerm')
    cfg.custom_hooks.append(dict(type='Unfreeze'))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=r'gradient: extra\.weight'):
        runner.train()
    assert runner.epoch == 3  # the third pruned round, which is not due


def test_it_looks_again_when_a_run_is_resumed(tmp_path):
    every = {'default_hooks.checkpoint.interval': 1}
    cfg = config(tmp_path, 'none')
    cfg.merge_from_dict(every)
    cfg.train_cfg.max_epochs = 1
    toys.train(cfg)
    cfg = config(tmp_path, 'feature')
    cfg.resume = True
    with pytest.raises(ValueError, match='still get a gradient'):
        toys.train(cfg)


@MODELS.register_module()
class Teaching(light.LightModel):
    """Learn from labels that a frozen teacher with a head corrects."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.teacher = light.LightHead().requires_grad_(False)

    def forward(self, inputs, data_samples, mode):
        with torch.no_grad():
            self.teacher.fc(torch.stack(inputs))
        return super().forward(inputs, data_samples, mode)


@pytest.mark.parametrize('weighted', [False, True])
def test_a_frozen_head_may_be_silent(tmp_path, weighted):
    cfg = light.config(tmp_path, LOOP)
    cfg.model.type = 'Teaching'
    runner = Runner.from_cfg(cfg)
    if weighted:
        attach(runner.model.teacher)
    runner.train()
    assert toys.hook_of(runner).board.scores.isfinite().all()


def test_a_silent_head_that_trains_is_an_error(tmp_path):
    cfg = light.config(tmp_path, LOOP)
    cfg.model.type = 'Teaching'
    runner = Runner.from_cfg(cfg)
    attach(runner.model.teacher).requires_grad_()
    with pytest.raises(RuntimeError, match='no part in the loss: teacher$'):
        runner.train()


# It leaves no trace


@MODELS.register_module()
class TwoHeads(light.LightModel):
    """Two heads, of which the second is given what the first has weighted."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.second = attach(light.LightHead())

    def forward(self, inputs, data_samples, mode):
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        points, (first, second) = torch.stack(inputs), (self.head, self.second)
        losses = first.loss_by_feat(first.fc(points), data_samples)
        logits = second.fc(points) + first.kept
        more = second.loss_by_feat(logits, data_samples)
        return dict(loss_first=losses['loss_ce'], loss_second=more['loss_ce'])


class Keeping(light.LightHead):
    def loss_by_feat(self, logits, data_samples):
        self.kept = logits
        return super().loss_by_feat(logits, data_samples)


@pytest.mark.parametrize('unweighted', ['refuse', 'allow', 'prunes nothing'])
def test_what_two_losses_weight_is_refused(tmp_path, monkeypatch, unweighted):
    monkeypatch.setattr(light, 'LightHead', Keeping)
    cfg = light.config(tmp_path, LOOP, samples=24)
    cfg.model = dict(type='TwoHeads')
    if unweighted == 'prunes nothing':
        cfg.custom_hooks[0].policy = dict(type='NoPruningPolicy')
        toys.train(cfg)
        return
    cfg.custom_hooks[0].unweighted = unweighted
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match='weighted a second time'):
        runner.train()
    assert runner.iter == 0


def test_the_graph_is_looked_through_no_more_than_needed(
    tmp_path, monkeypatch
):
    walks = []

    def are_weighted(tensors):
        walks.append(len(tensors))
        return False

    monkeypatch.setattr(weighted, 'are_weighted', are_weighted)
    counts = {}
    for unweighted in ('refuse', 'allow'):
        walks.clear()
        cfg = light.config(tmp_path, LOOP, samples=24)
        cfg.custom_hooks[0].unweighted = unweighted
        runner = toys.train(cfg)
        counts[unweighted] = len(walks)
    assert runner.iter > 6
    # Before the first step and before the first pruned one, or in the first.
    assert counts == dict(refuse=2, allow=1)


class Busy(nn.Module):
    """A neck with every kind of state, that draws from every generator."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer('steps', torch.zeros(()))
        self.teacher = nn.Linear(4, 4).requires_grad_(False)
        self.calls, self.means, self.log = 0, [], {}

    def forward(self, points):
        self.calls += 1
        self.steps += 1
        self.means.append(points.mean())
        self.log['calls'] = self.calls
        self.log.setdefault('all', []).append(self.calls)
        self.newly_made = self.calls
        with torch.no_grad():  # as of a moving average
            self.teacher.weight.mul_(0.9)
        noise = random.random() + np.random.rand() + torch.rand(1)
        MessageHub.get_current_instance().update_scalar('busy', self.calls)
        return self.drop(self.norm(points)) + noise


@MODELS.register_module()
class BusyModel(light.LightModel):
    """A light model with a busy neck."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.neck = Busy()

    def forward(self, inputs, data_samples, mode):
        return super().forward(
            list(self.neck(torch.stack(inputs))), data_samples, mode
        )


def state_of(model, batch):
    hub = MessageHub.get_current_instance()
    return dict(
        weights=model.state_dict(),
        gradients=[parameter.grad for parameter in model.parameters()],
        plain={
            key: value
            for key, value in vars(model.neck).items()
            if key in ('calls', 'means', 'log')
        },
        points=batch['inputs'],
        python=torch.tensor(hash(random.getstate())),
        numpy=torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
        torch=torch.get_rng_state(),
        logged=sorted(hub.log_scalars),
    )


def check_equal(found, expected):
    for key, value in expected.items():
        if key == 'logged':
            assert found[key] == value
            continue
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key)


def test_a_model_is_left_as_it_was():
    MessageHub.get_instance('reach')
    torch.manual_seed(0)
    model = BusyModel()
    model.head.infobatch_ledger = ledger = Ledger()
    data = DATASETS.build(dict(type='LightData', size=4))
    batch = pseudo_collate([data[i] for i in range(4)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OptimWrapper(optimizer, accumulative_counts=2)
    model.train_step(batch, wrapper)  # half of a group: gradients are kept
    ledger.open(torch.arange(4), torch.zeros(4))
    before = deepcopy(state_of(model, batch))
    counts = dict(vars(wrapper))
    assert any(g is not None and g.any() for g in before['gradients'])
    assert unreached_parameters(model, batch, wrapper) == []
    check_equal(state_of(model, batch), before)
    assert vars(wrapper) == counts


def test_so_is_one_whose_step_raises():
    model = BusyModel()
    model.head.infobatch_ledger.open(torch.arange(4), torch.zeros(4))
    data = DATASETS.build(dict(type='LightData', size=3))
    batch = pseudo_collate([data[i] for i in range(3)])
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = deepcopy(state_of(model, batch))
    with pytest.raises(ValueError, match='not the batch of 4'):
        unreached_parameters(model, batch, wrapper)
    check_equal(state_of(model, batch), before)


# A run that looks, and prunes nothing. NoPruningPolicy does not look.
LOOKS = dict(delta=0.0, exact_resume=False)


@MODELS.register_module()
class OwnSteps(light.LightModel):
    """Go around the wrapper in its train_step, as models of adversaries do."""

    def __init__(self, way, **kwargs):
        super().__init__(**kwargs)
        self.way = way

    def train_step(self, data, optim_wrapper):
        assert isinstance(optim_wrapper, OptimWrapperDict)
        assert 'all' in optim_wrapper and len(optim_wrapper) == 1
        wrapper = dict(
            optimizer=lambda: optim_wrapper['all'].optimizer,
            values=lambda: next(iter(optim_wrapper.values())),
            items=lambda: dict(optim_wrapper.items())['all'],
            within=lambda: optim_wrapper['all'].optimizer.base,  # as SAM has
        )[self.way]()
        wrapper.zero_grad()
        losses = self._run_forward(data, mode='loss')
        self.parse_losses(losses)[0].backward()
        wrapper.step()
        return {}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OneOfMany:
    """Build a dict of one wrapper."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.optimizer = optim_wrapper_cfg['optimizer']

    def __call__(self, model):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        optimizer.base = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
        )
        return OptimWrapperDict(all=OptimWrapper(optimizer))


@pytest.mark.parametrize('way', ['optimizer', 'values', 'items', 'within'])
def test_an_optimizer_makes_no_step_while_it_looks(tmp_path, way):
    found = []
    for pruned in (False, True):
        cfg = light.config(tmp_path / str(pruned), LOOP, pruned=pruned)
        cfg.model = dict(type='OwnSteps', way=way, weighted=pruned)
        cfg.optim_wrapper.constructor = 'OneOfMany'
        cfg.log_processor.custom_cfg = []
        if pruned:
            cfg.custom_hooks[0].update(LOOKS)
        runner = toys.train(cfg)
        optimizer = runner.optim_wrapper['all'].optimizer
        found.append((runner.model.state_dict(), optimizer.state_dict()))
    torch.testing.assert_close(*found, rtol=0, atol=0)


class ScaledWrapper(OptimWrapper):
    """Train in float16 as ``AmpOptimWrapper`` does, but on a CPU."""

    def __init__(self, optimizer, scale):
        super().__init__(optimizer)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)


@MODELS.register_module()
class SmallTerm(light.LightModel):
    """Add a term whose gradient float16 rounds to nothing."""

    def forward(self, inputs, data_samples, mode):
        losses = super().forward(inputs, data_samples, mode)
        halves = self.head.fc(torch.stack(inputs)).half()
        losses['loss_small'] = halves.float().pow(2).mean() * 1e-9
        return losses


@pytest.mark.parametrize(
    'scale, found', [(1.0, []), (2.0**16, ['weight', 'bias'])]
)
def test_small_gradients_are_looked_for_as_they_train(scale, found):
    model = SmallTerm()
    data = DATASETS.build(dict(type='LightData', size=4))
    batch = pseudo_collate([data[i] for i in range(4)])
    model.head.infobatch_ledger.open(torch.arange(4), torch.zeros(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = ScaledWrapper(optimizer, scale)
    names = unreached_parameters(model, batch, wrapper)
    assert names == [f'head.fc.{name}' for name in found]
    # A scale at which gradients are infinite is for the scaler to lower.
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
    assert unreached_parameters(model, batch, wrapper) == []


def test_a_run_that_prunes_nothing_is_stock_with_all_this_state(tmp_path):
    found = []
    for pruned in (False, True):
        cfg = light.config(tmp_path / str(pruned), LOOP, pruned=pruned)
        cfg.model = dict(type='BusyModel', weighted=pruned)
        if pruned:
            cfg.custom_hooks[0].update(LOOKS)
        random.seed(1)
        runner = toys.train(cfg)
        found.append(state_of(runner.model, dict(inputs=())))
        del found[-1]['gradients']
    found[1]['logged'] = [
        key for key in found[1]['logged'] if not key.startswith('infobatch')
    ]
    check_equal(*found)
    assert found[0]['plain']['calls'] == 14


# Modules work on copies, and have what they had afterwards


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


class Proxy:
    """Hand on attributes, also those that its copy is asked for too early."""

    def __init__(self, inner):
        self.__dict__['inner'] = inner

    def __getattr__(self, name):
        return getattr(self.__dict__['inner'], name)


def test_what_cannot_be_copied_is_shared():
    module = Stateful()
    module.stream = (i for i in range(3))
    module.proxy = proxy = Proxy([])
    with Untouched([module]):
        next(module.stream)
        assert module.proxy is proxy
    assert next(module.stream) == 1


def test_a_module_of_torch_script_has_its_buffers_again():
    """As a teacher may be that was saved as one."""
    teacher = torch.jit.script(nn.Sequential(nn.BatchNorm1d(2)))
    module = nn.ModuleDict(dict(teacher=teacher))
    before = deepcopy(module.state_dict())
    with Untouched(module.modules()) as state:
        teacher(torch.randn(3, 2))
        state.renew()
        teacher(torch.randn(3, 2))
        assert module.state_dict()['teacher.0.num_batches_tracked'] == 1
    check_equal(module.state_dict(), before)


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
    model.holder = SimpleNamespace(ema=nn.Linear(1, 1), model=model)
    names = dict(every_module(model))
    assert set(names) == {
        '',
        'head',
        'teacher',
        'teacher.0',
        'head.friends',
        'holder',
    }
    assert names['teacher'] is vars(model)['teacher']


# Losses that train nothing, heads that drop out, batches of others' making


@MODELS.register_module()
class Watching(light.LightModel):
    """Watch a loss without gradients, or leave a second head out late."""

    def __init__(self, watches=False, leaves_out=False):
        super().__init__()
        self.watches, self.leaves_out = watches, leaves_out
        if leaves_out:
            self.other = attach(light.LightHead())
        self.steps = 0

    def forward(self, inputs, data_samples, mode):
        losses = super().forward(inputs, data_samples, mode)
        if self.watches:
            with torch.no_grad():
                logits = self.head.fc(torch.stack(inputs) + 1)
                watched = self.head.loss_by_feat(logits, data_samples)
            losses['watched'] = watched['loss_ce']
        if self.leaves_out and self.steps < 18:
            logits = self.other.fc(torch.stack(inputs))
            losses['loss_other'] = self.other.loss_by_feat(
                logits, data_samples
            )['loss_ce']
        if self.leaves_out == 'unweighted' and self.steps >= 18:
            outputs = self.other.fc(torch.stack(inputs))
            losses['loss_other'] = outputs.square().mean()
        return losses

    def train_step(self, data, *, optim_wrapper):
        self.steps += 1
        return super().train_step(data, optim_wrapper)


def watching(tmp_path, **settings):
    loop = dict(type='EpochBasedTrainLoop', max_epochs=6)
    cfg = light.config(tmp_path, loop)
    cfg.model = dict(type='Watching', **settings)
    return cfg


def test_a_loss_without_gradients_is_not_scored(tmp_path):
    scores = [
        toys.hook_of(toys.train(watching(tmp_path / str(n), watches=n)))
        for n in (False, True)
    ]
    assert torch.equal(scores[0].board.scores, scores[1].board.scores)


@pytest.mark.parametrize('option', ['looks', 'allows', 'prunes nothing'])
def test_a_head_may_drop_out_of_the_loss(tmp_path, option):
    cfg = watching(tmp_path, leaves_out=True)
    if option == 'allows':
        cfg.custom_hooks[0].unweighted = 'allow'
    if option == 'prunes nothing':
        cfg.custom_hooks[0].policy = dict(type='NoPruningPolicy')
    runner = toys.train(cfg)
    assert runner.epoch == 6 and toys.hook_of(runner).summary(runner)


def test_a_head_that_goes_on_past_its_loss_is_refused(tmp_path):
    runner = Runner.from_cfg(watching(tmp_path, leaves_out='unweighted'))
    with pytest.raises(ValueError, match=r'gradient: other\.fc\.weight'):
        runner.train()


def without_samples(batch):
    """Collate into data samples of its own."""
    batch = pseudo_collate(batch)
    samples = [SimpleNamespace(label=0) for _ in batch['data_samples']]
    return dict(inputs=batch['inputs'], data_samples=samples)


@pytest.mark.parametrize(
    'collate', [without_samples, tuple, lambda batch: dict(x=batch)]
)
def test_a_batch_without_its_data_samples_is_an_error(tmp_path, collate):
    runner = Runner.from_cfg(light.config(tmp_path, LOOP))
    runner.train_loop  # builds the dataloader  # noqa: B018
    runner.train_dataloader.collate_fn = collate
    with pytest.raises(TypeError, match='collate_fn keep them'):
        runner.train()


@HOOKS.register_module()
class Meddling(Hook):
    """Change what a round is made of, behind the back of its plan."""

    priority = 'LOWEST'

    def __init__(self, what):
        self.what = what

    def before_train_epoch(self, runner):
        loader = runner.train_dataloader
        if self.what == 'epoch':
            loader.sampler.set_epoch(runner.epoch + 1000)

    def after_train_epoch(self, runner):
        if self.what == 'batch':
            runner.train_dataloader.batch_sampler.batch_size = 8


@pytest.mark.parametrize(
    'what, message', [('epoch', 'not in the plan'), ('batch', 'is 8, and was')]
)
def test_what_is_behind_the_plan_is_an_error(tmp_path, what, message):
    cfg = light.config(tmp_path, LOOP, delta=1.0)
    cfg.custom_hooks.append(dict(type='Meddling', what=what))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(RuntimeError, match=message):
        runner.train()


@HOOKS.register_module()
class EverySecond(ParamSchedulerHook):
    """Step the schedulers in every second iteration."""

    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        if runner.iter % 2:
            super().after_train_iter(runner, batch_idx, *args, **kwargs)


@pytest.mark.parametrize('pacing', ['smaller_batches', 'fewer_steps'])
def test_a_rule_of_the_users_for_schedulers(tmp_path, pacing):
    cfg = light.config(tmp_path, LOOP, pacing=pacing)
    cfg.default_hooks.param_scheduler = dict(type='EverySecond')
    runner = Runner.from_cfg(cfg)
    if pacing == 'smaller_batches':
        runner.train()
        return
    with pytest.raises(ValueError, match="EverySecond.*'smaller_batches'"):
        runner.train()
