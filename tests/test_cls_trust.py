"""Classification heads: rows by the id of their sample, and no trace."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmpretrain')
import cls_toys
import test_cls_heads as heads
from mmengine.runner import Runner
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS

from infobatch_mm.heads import follow_samples
from infobatch_mm.ledger import Ledger

# mmpretrain says so of its own head.
pytestmark = pytest.mark.filterwarnings('ignore:MMPretrain cannot train')

IDS = [30, 10, 40]
WEIGHTS = [0.5, 2.0, 4 / 3]
# Rows of the head, as places in the batch.
ORDERS = dict(sorted=[1, 0, 2], repeated=[0, 1, 2, 0, 1, 2], fewer=[2, 0])


class Model(nn.Module):
    """What holds a head in a run."""

    def __init__(self, head):
        super().__init__()
        self.head = head


def opened(head, weights=WEIGHTS, ids=IDS):
    ledger = Ledger()
    for part in heads.weighted_parts(head):
        part.infobatch_ledger = ledger
    follow_samples(Model(head), ledger)
    places = torch.arange(len(weights))
    ledger.open(places, torch.tensor(weights), samples=ids, nowhere=9)
    return ledger


def samples_of(kind):
    samples = heads.samples_of(kind, 3)
    for sample, index in zip(samples, IDS, strict=True):
        sample.set_field(index, 'infobatch_index', field_type='metainfo')
    return samples


def rearrange(value, order):
    if isinstance(value, torch.Tensor):
        return value[order]
    return type(value)(rearrange(item, order) for item in value)


def weight_gradients(head, feats, samples):
    loss = heads.total_loss(head.loss(feats, samples))
    return torch.autograd.grad(loss, list(head.parameters()))


@pytest.mark.parametrize('order', ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize('kind', heads.HEADS)
def test_weights_and_scores_follow_the_samples(kind, order):
    """As if the batch had been opened in the order of the rows."""
    by_place, by_id = (
        heads.build(cls_toys.weighted(heads.head_config(kind)))
        for _ in range(2)
    )
    _, feats = heads.features(kind, 3)
    feats, samples = rearrange(feats, order), samples_of(kind)
    rows = [samples[i] for i in order]
    ledger = heads.open_ledger(by_place, [WEIGHTS[i] for i in order])
    used = [p for p in by_id.parameters()]
    expected = weight_gradients(by_place, feats, rows) if used else ()
    if not used:
        by_place.loss(feats, rows)
    alone = ledger.close()[1]
    ledger = opened(by_id)
    found = weight_gradients(by_id, feats, rows) if used else ()
    if not used:
        by_id.loss(feats, rows)
    where, scores = ledger.close()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for row, place in enumerate(order):
        torch.testing.assert_close(scores[place], alone[row])
    assert where.tolist() == [i if i in order else 9 for i in range(3)]


def test_a_sample_that_is_not_of_the_batch_is_an_error():
    head = heads.build(cls_toys.weighted(heads.head_config('LinearClsHead')))
    opened(head, ids=[30, 10, 7])
    _, feats = heads.features('LinearClsHead', 3)
    message = r'CrossEntropyLoss .* not of its batch: infobatch_index \[40\]'
    with pytest.raises(RuntimeError, match=message):
        head.loss(feats, samples_of('LinearClsHead'))


def test_a_sample_without_an_id_is_an_error():
    head = heads.build(cls_toys.weighted(heads.head_config('LinearClsHead')))
    opened(head)
    _, feats = heads.features('LinearClsHead', 3)
    with pytest.raises(RuntimeError, match='carry no infobatch_index'):
        head.loss(feats, heads.samples_of('LinearClsHead', 3))


@MODELS.register_module()
class SortingClassifier(ImageClassifier):
    """Sort the batch by label before the head."""

    def loss(self, inputs, data_samples):
        labels = [int(sample.gt_label) for sample in data_samples]
        order = sorted(range(len(labels)), key=labels.__getitem__)
        samples = [data_samples[i] for i in order]
        return super().loss(inputs[order], samples)


@pytest.mark.parametrize('loss', ['CrossEntropyLoss', 'CountingLoss'])
def test_a_run_of_a_classifier_that_sorts_its_batch(tmp_path, loss):
    """At a learning rate of zero scores are those of the plain one."""
    found = []
    for kind in ('ImageClassifier', 'SortingClassifier'):
        cfg = cls_toys.config(tmp_path / kind, epochs=2)
        cfg.model.type = kind
        cfg.model.head.head.loss = dict(type=loss)
        cfg.optim_wrapper.optimizer.lr = 0.0
        runner = Runner.from_cfg(cfg)
        nn.init.normal_(runner.model.head.fc.weight)
        for parameter in runner.model.backbone.parameters():
            torch.manual_seed(0)
            nn.init.normal_(parameter, std=0.1)
        runner.train()
        (hook,) = (h for h in runner.hooks if hasattr(h, 'board'))
        found.append(hook.board.scores)
    assert found[0].unique().numel() > 20
    torch.testing.assert_close(*found)


# No trace


@MODELS.register_module()
class CountingLoss(nn.Module):
    """A loss that keeps statistics of its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer('steps', torch.zeros(()))
        self.count, self.sizes = 0, []

    def forward(self, cls_score, target, avg_factor=None, **kwargs):
        self.steps += 1
        self.count += 1
        self.sizes.append(len(cls_score))
        losses = nn.functional.cross_entropy(
            cls_score, target, reduction='none'
        )
        return losses.sum() / (avg_factor or len(losses))


def test_a_loss_that_counts_its_calls_counts_the_steps(tmp_path):
    cfg = cls_toys.config(tmp_path, epochs=2)
    cfg.model.head.head.loss = dict(type='CountingLoss')
    runner = Runner.from_cfg(cfg)
    runner.train()
    loss = runner.model.head.loss_module
    assert loss.count == loss.steps == runner.iter
    assert loss.sizes == [4] * runner.iter
