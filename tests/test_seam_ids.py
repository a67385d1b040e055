"""Rows of a head are matched by the id of their sample."""

import light
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import toys
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from infobatch_mm.heads import attach
from infobatch_mm.ledger import Ledger

IDS = [30, 10, 40, 20]
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 4 / 3])
# Rows of the head, as places in the batch.
ORDERS = dict(
    own=[0, 1, 2, 3],
    sorted=[1, 3, 0, 2],
    repeated=[0, 1, 2, 3, 0, 1, 2, 3],
    once_more=[2, 0, 1, 1, 3],
    left_out=[3, 1],
)


def batch():
    """Return points and their samples."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(len(IDS), 4, generator=generator)
    samples = [
        BaseDataElement(
            metainfo=dict(label=k % 3, shift=0.0, infobatch_index=index)
        )
        for k, index in enumerate(IDS)
    ]
    return points, samples


def opened(head):
    head.infobatch_ledger = ledger = Ledger()
    places = torch.arange(len(IDS))
    ledger.open(places, WEIGHTS, samples=IDS, nowhere=99)
    return ledger


@pytest.mark.parametrize('order', ORDERS.values(), ids=ORDERS)
def test_weights_and_scores_follow_the_samples(order):
    points, samples = batch()
    head = attach(light.LightHead())
    ledger = opened(head)
    rows = points[order]
    loss = head.loss_by_feat(head.fc(rows), [samples[i] for i in order])
    (gradient,) = torch.autograd.grad(loss['loss_ce'], head.fc.weight)
    where, scores = ledger.close()

    labels = torch.tensor([samples[i].label for i in order])
    losses = F.cross_entropy(head.fc(rows), labels, reduction='none')
    expected = (WEIGHTS[order] * losses).mean()
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, head.fc.weight)[0]
    )
    labels = torch.tensor([sample.label for sample in samples])
    alone = F.cross_entropy(head.fc(points), labels, reduction='none')
    seen = [i in order for i in range(4)]
    torch.testing.assert_close(scores[seen], alone.detach()[seen])
    assert where.tolist() == [i if s else 99 for i, s in enumerate(seen)]


def test_the_score_of_a_repeated_sample_is_the_mean_over_its_rows():
    points, samples = batch()
    head = attach(light.LightHead())
    ledger = opened(head)
    views = torch.cat([points, 2 * points])
    head.loss_by_feat(head.fc(views), samples + samples)
    labels = torch.tensor([sample.label for sample in samples * 2])
    losses = F.cross_entropy(head.fc(views), labels, reduction='none')
    expected = losses.detach().view(2, 4).mean(0)
    torch.testing.assert_close(ledger.close()[1], expected)


def test_two_losses_of_one_step_add_up():
    points, samples = batch()
    head = attach(light.LightHead())
    ledger = opened(head)
    head.loss_by_feat(head.fc(points), samples)
    once = ledger.losses
    head.loss_by_feat(head.fc(points.flip(0)), samples[::-1])
    torch.testing.assert_close(ledger.close()[1], 2 * once)


@pytest.mark.parametrize(
    'index, message',
    [(7, r'not of its batch: infobatch_index \[7\]'), (None, 'carry no info')],
)
def test_a_sample_that_is_not_of_the_batch_is_an_error(index, message):
    points, samples = batch()
    stranger = BaseDataElement(metainfo=dict(label=0, shift=0.0))
    if index is not None:
        stranger.set_metainfo(dict(infobatch_index=index))
    head = attach(light.LightHead())
    opened(head)
    with pytest.raises(RuntimeError, match=f'LightHead .*{message}'):
        head.loss_by_feat(head.fc(points), [*samples[:3], stranger])


def test_rows_that_are_not_those_of_the_samples_are_an_error():
    points, samples = batch()
    head = attach(light.LightHead())
    opened(head)
    with pytest.raises(ValueError, match='the batch of 3 images'):
        head.loss_by_feat(head.fc(points), samples[:3])


class LabelsOnly(light.LightHead):
    """A head whose loss_by_feat gets labels, like SAN's, but no samples."""

    def loss(self, points, data_samples):
        labels = torch.tensor([sample.label for sample in data_samples])
        return self.loss_by_feat(self.fc(points), labels)

    def loss_by_feat(self, logits, labels):
        return dict(loss_ce=F.cross_entropy(logits, labels))


def test_ids_are_those_of_the_call_around_where_a_seam_gets_none():
    points, samples = batch()
    order = ORDERS['sorted']
    head = attach(LabelsOnly())
    ledger = opened(head)
    head.loss(points[order], [samples[i] for i in order])
    labels = torch.tensor([sample.label for sample in samples])
    expected = F.cross_entropy(head.fc(points), labels, reduction='none')
    torch.testing.assert_close(ledger.close()[1], expected.detach())


def test_new_samples_of_the_models_own_are_an_error():
    class Rebuilding(light.LightHead):
        def loss(self, points, data_samples):
            bare = [
                BaseDataElement(metainfo=dict(label=0, shift=0.0))
                for _ in data_samples
            ]
            return self.loss_by_feat(self.fc(points), bare)

    points, samples = batch()
    head = attach(Rebuilding())
    opened(head)
    with pytest.raises(RuntimeError, match='carry no infobatch_index'):
        head.loss(points, samples)


@MODELS.register_module()
class SortingModel(light.LightModel):
    """Sort the batch by label before the head, and repeat half of it."""

    def forward(self, inputs, data_samples, mode):
        order = sorted(range(len(inputs)), key=lambda i: data_samples[i].label)
        order += order[: len(order) // 2]
        inputs = [inputs[i] for i in order]
        data_samples = [data_samples[i] for i in order]
        return super().forward(inputs, data_samples, mode)


def test_a_run_of_a_model_that_sorts_its_batch(tmp_path):
    """With nothing learned, each score is the loss of its own sample."""
    cfg = light.config(
        tmp_path, dict(type='EpochBasedTrainLoop', max_epochs=3), samples=24
    )
    cfg.model.type = 'SortingModel'
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = toys.train(cfg)
    data, head = runner.train_dataloader.dataset, runner.model.head
    points = torch.stack([data[i]['inputs'] for i in range(24)])
    labels = torch.tensor([data[i]['data_samples'].label for i in range(24)])
    expected = F.cross_entropy(head.fc(points), labels, reduction='none')
    hook = toys.hook_of(runner)
    torch.testing.assert_close(hook.board.scores, expected.detach())
    assert hook.samples_seen < hook.samples_budget
