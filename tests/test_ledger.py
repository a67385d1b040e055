"""Ledger: open during a training step, closed otherwise."""

import copy
import pickle

import pytest
import torch

from infobatch_mm.ledger import Ledger

IDS, WEIGHTS = torch.tensor([4, 1]), torch.tensor([2.0, 1.0])


def opened() -> Ledger:
    ledger = Ledger()
    ledger.open(IDS, WEIGHTS)
    return ledger


def test_it_is_open_from_open_to_close():
    ledger = Ledger()
    assert not ledger.is_open
    ledger.open(IDS, WEIGHTS)
    assert ledger.is_open
    assert ledger.weights is WEIGHTS
    ledger.record('head', torch.zeros(2))
    ledger.close()
    assert not ledger.is_open
    assert ledger.ids is ledger.weights is ledger.losses is None


def test_it_adds_up_the_losses_of_the_heads():
    ledger = opened()
    ledger.record(
        'decode', torch.tensor([1.0, 2.0]).bfloat16().requires_grad_()
    )
    ledger.record('auxiliary', torch.tensor([2**-12, 0.5]).bfloat16())
    assert ledger.reporters == ['decode', 'auxiliary']
    ids, losses = ledger.close()
    assert ids.tolist() == [4, 1]
    assert losses.tolist() == [1 + 2**-12, 2.5]  # in float32
    assert losses.dtype == torch.float32
    assert not losses.requires_grad


def test_a_batch_knows_nothing_of_the_one_before():
    ledger = opened()
    ledger.record('decode', torch.ones(2))
    ledger.open(IDS, WEIGHTS)  # after a step that raised
    assert ledger.losses is None
    assert ledger.reporters == []
    ledger.record('decode', torch.zeros(2))
    assert ledger.close()[1].tolist() == [0, 0]


def test_recording_leaves_the_losses_as_they_were():
    ledger, losses = opened(), torch.ones(2)
    ledger.record('decode', losses)
    ledger.record('auxiliary', losses)
    assert losses.tolist() == [1, 1]


def test_it_can_be_open_within_a_block_alone():
    ledger = opened()
    ledger.record('decode', torch.ones(2))
    ledger.is_open = False
    with pytest.raises(KeyError), ledger.open_again():
        assert ledger.is_open and ledger.losses is None
        ledger.record('decode', torch.zeros(2))
        raise KeyError
    assert not ledger.is_open
    assert ledger.close()[1].tolist() == [0, 0]


def test_rows_are_found_by_sample():
    ledger = Ledger()
    slots = torch.tensor([70, 10, 40])
    weights = torch.tensor([2.0, 1.0, 3.0])
    ledger.open(slots, weights, samples=[7, 1, 4], nowhere=99)
    rows = ledger.rows([4, 7, 4])
    assert rows.weights.tolist() == [3.0, 2.0, 3.0]
    ledger.record('decode', torch.tensor([1.0, 5.0, 2.0]), rows)
    ids, losses = ledger.close()
    assert ids.tolist() == [70, 99, 40]
    assert losses.tolist() == [5.0, 0.0, 1.5]


def test_the_batch_in_its_own_order_needs_no_places():
    ledger = Ledger()
    ledger.open(IDS, WEIGHTS, samples=[4, 1])
    rows = ledger.rows([4, 1])
    assert rows.places is None and rows.weights is WEIGHTS


def test_a_sample_that_comes_twice_has_places_of_its_own():
    ledger = Ledger()
    ledger.open(torch.tensor([4, 4]), WEIGHTS, samples=[4, 4], nowhere=99)
    ledger.record('decode', torch.tensor([1.0, 2.0]), ledger.rows([4, 4]))
    ids, losses = ledger.close()
    assert ids.tolist() == [4, 4] and losses.tolist() == [1.0, 2.0]


def test_a_step_without_a_loss_is_an_error():
    with pytest.raises(RuntimeError, match='no weighted head has computed'):
        opened().close()


@pytest.mark.parametrize(
    'duplicate',
    [
        copy.copy,
        copy.deepcopy,
        lambda ledger: pickle.loads(pickle.dumps(ledger)),
    ],
    ids=['copy', 'deepcopy', 'pickle'],
)
def test_a_copy_is_a_new_and_closed_one(duplicate):
    ledger = opened()
    ledger.record('decode', torch.ones(2))
    other = duplicate(ledger)
    assert not other.is_open
    assert other.losses is None
    assert other.reporters == []
    assert ledger.is_open
    assert ledger.reporters == ['decode']
