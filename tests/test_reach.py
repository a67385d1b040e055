"""A loss that the weights do not reach is found before the first step."""

import random
from copy import deepcopy

import light
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import toys
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn

from infobatch_mm import InfoBatchHook
from infobatch_mm.heads import attach
from infobatch_mm.ledger import Ledger
from infobatch_mm.reach import refuse_unreached, unreached_parameters

LOOP = dict(type='EpochBasedTrainLoop', max_epochs=2)


@MODELS.register_module()
class TermBeside(light.LightModel):
    """Add a term of the given kind to the loss of the head."""

    def __init__(self, term, **kwargs):
        super().__init__(**kwargs)
        self.term = term
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))
        # As many do to keep a teacher out of checkpoints.
        object.__setattr__(self, 'teacher', nn.Linear(4, 3))
        self.teacher.requires_grad_(False)

    def forward(self, inputs, data_samples, mode):
        losses = super().forward(inputs, data_samples, mode)
        if mode == 'loss' and hasattr(self, f'add_{self.term}'):
            getattr(self, f'add_{self.term}')(losses, torch.stack(inputs))
        return losses

    def train_step(self, data, optim_wrapper):
        if self.term == 'own_step':
            penalty = self.head.fc.bias.pow(2).sum() + self.head.fc.bias.sum()
            with optim_wrapper.optim_context(self):
                losses = self._run_forward(data, mode='loss')
            loss, log_vars = self.parse_losses(losses)
            optim_wrapper.update_params(loss + penalty)
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


def test_a_run_that_prunes_nothing_is_stock_with_all_this_state(tmp_path):
    found = []
    for pruned in (False, True):
        cfg = light.config(tmp_path / str(pruned), LOOP, pruned=pruned)
        cfg.model = dict(type='BusyModel', weighted=pruned)
        if pruned:
            cfg.custom_hooks[0].policy = dict(type='NoPruningPolicy')
        random.seed(1)
        runner = toys.train(cfg)
        found.append(state_of(runner.model, dict(inputs=())))
        del found[-1]['gradients']
    found[1]['logged'] = [
        key for key in found[1]['logged'] if not key.startswith('infobatch')
    ]
    check_equal(*found)
    assert found[0]['plain']['calls'] == 14
