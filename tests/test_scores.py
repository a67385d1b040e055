"""Scores: the last finite loss, smoothed, by class, or the gradient's norm."""

import json
import math
from functools import partial
from itertools import chain, combinations

import light
import pytest
import test_heads
import torch
import toys
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from mmseg.models import EncoderDecoder
from test_distributed import light_run
from test_distributed import run as run_on_ranks
from test_heads import BY_IMAGE, IGNORED, ONE_PASS
from torch.nn.functional import cross_entropy, log_softmax

from infobatch_mm import InfoBatchHook, enable, ranks
from infobatch_mm.binding import check_class_balanced
from infobatch_mm.heads import attach
from infobatch_mm.heads.scoring import total_loss
from infobatch_mm.ledger import Ledger
from infobatch_mm.ranks import merge_scores
from infobatch_mm.rescale import scale_gradient
from infobatch_mm.scores import ScoreBoard

# A deprecation that OHEMPixelSampler itself runs into.
pytestmark = pytest.mark.filterwarnings('ignore:``build_pixel_sampler``')

NAN, INF = math.nan, math.inf


def update(board: ScoreBoard, ids: list[int], losses: list[float]) -> None:
    board.update(torch.tensor(ids), torch.tensor(losses))


def assert_scores(board: ScoreBoard, *expected: float) -> None:
    torch.testing.assert_close(
        board.scores, torch.tensor(expected), rtol=0, atol=0, equal_nan=True
    )


def test_a_sample_never_seen_has_no_score():
    board = ScoreBoard(3)
    assert len(board) == 3
    assert board.scores.dtype == torch.float32
    assert_scores(board, NAN, NAN, NAN)


def test_a_score_is_the_last_loss():
    board = ScoreBoard(3)
    update(board, [2, 0], [1.0, 2.0])
    update(board, [2], [0.5])
    assert_scores(board, 2.0, NAN, 0.5)


def test_losses_that_are_not_finite_are_counted_and_leave_no_score():
    board = ScoreBoard(4)
    update(board, [0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    update(board, [0, 1, 2], [NAN, INF, -INF])
    assert_scores(board, NAN, NAN, NAN, 1.0)
    assert board.nonfinite == 0  # until the merge
    merge_scores(board)
    merge_scores(board)
    assert board.nonfinite == 3
    update(board, [0], [2.0])
    assert_scores(board, 2.0, NAN, NAN, 1.0)


def test_what_goes_to_the_unscored_slot_is_never_read():
    board = ScoreBoard(2)
    update(board, [board.unscored, 0, board.unscored], [5.0, 1.0, NAN])
    merge_scores(board)
    assert_scores(board, 1.0, NAN)
    assert board.nonfinite == 0


def test_half_precision_losses_are_kept_in_float32():
    board = ScoreBoard(1)
    loss = torch.tensor([1 / 3], dtype=torch.bfloat16)
    board.update(torch.tensor([0]), loss)
    assert board.scores.dtype == torch.float32
    assert board.scores.item() == loss.item()


def test_ids_beyond_what_half_precision_can_hold():
    board = ScoreBoard(70_000)
    ids = torch.tensor([2048, 2049, 65_535, 69_999])
    board.update(ids, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.half))
    assert board.scores[ids].tolist() == [1, 2, 3, 4]
    assert board.scores.isfinite().sum() == 4


def test_an_update_does_not_wait_for_the_device():
    # A tensor on `meta` has no value: reading one raises.
    board = ScoreBoard(9, device='meta')
    board.update(
        torch.zeros(4, dtype=torch.int64, device='meta'),
        torch.zeros(4, device='meta'),
    )
    assert board.scores.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        merge_scores(board)


def test_saved_scores_are_taken_over():
    board, other = ScoreBoard(3), ScoreBoard(3)
    update(board, [1], [0.25])
    other.load(board.scores.clone())
    assert_scores(other, NAN, 0.25, NAN)
    with pytest.raises((ValueError, RuntimeError)):
        other.load(torch.zeros(4))


@pytest.mark.parametrize(
    'updates',
    [
        [([0, 2], [1.0, NAN]), ([3, 0], [4.0, 5.0])],
        # Ranks of round_up=False: one has a sample less.
        [([0, 2], [1.0, NAN]), ([3, 0, 4], [4.0, 5.0, 6.0])],
    ],
    ids=['equal', 'unequal'],
)
def test_ranks_end_with_the_same_scores(monkeypatch, updates):
    boards = [ScoreBoard(5, shared=True), ScoreBoard(5, shared=True)]
    for board, (ids, losses) in zip(boards, updates, strict=True):
        update(board, ids, losses)

    # What the ranks exchange: ids as int64 and scores as float32, each as
    # long as the longest of them.
    longest = max(len(ids) for ids, _ in updates)
    filled = [ids + [5] * (longest - len(ids)) for ids, _ in updates]
    scores = [
        losses + [0.0] * (longest - len(losses)) for _, losses in updates
    ]
    gathered = {
        torch.int64: [torch.tensor(ids) for ids in filled],
        torch.float32: [torch.tensor(losses) for losses in scores],
    }

    def all_gather(own):
        assert any(
            torch.equal(own.nan_to_num(7), each.nan_to_num(7))
            for each in gathered[own.dtype]
        )
        return gathered[own.dtype]

    def all_reduce(count, op='sum'):
        count.fill_(longest if op == 'max' else 1)

    monkeypatch.setattr(ranks, 'all_gather', all_gather)
    monkeypatch.setattr(ranks, 'all_reduce', all_reduce)
    for board in boards:
        merge_scores(board)
        last = updates[1][1][2] if longest == 3 else NAN
        assert_scores(board, 5.0, NAN, NAN, 4.0, last)
        assert board.nonfinite == 1


# Options for noisy scores: a moving average, and rounds of warm-up

EPOCHS = 8
LOOP = dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS)
SMOOTH = dict(score_momentum=0.8, warmup_rounds=3)


def test_a_score_is_the_moving_average_since_its_first_loss():
    board = ScoreBoard(3, momentum=0.75)
    losses = [4.0, 2.0, 1.0]
    expected = losses[0]
    for loss in losses:
        update(board, [1], [loss])
    for loss in losses[1:]:
        expected = 0.75 * expected + 0.25 * loss
    torch.testing.assert_close(
        board.scores, torch.tensor([NAN, expected, NAN]), equal_nan=True
    )


def test_after_a_loss_that_is_not_finite_it_begins_anew():
    board = ScoreBoard(2, momentum=0.5)
    update(board, [0, 1], [4.0, 4.0])
    update(board, [0, 1], [math.inf, NAN])
    assert board.scores.isnan().all()
    update(board, [0, 1], [1.0, 2.0])
    assert board.scores.tolist() == [1.0, 2.0]
    merge_scores(board)
    assert board.nonfinite == 2


def test_what_goes_to_the_unscored_slot_of_averages_is_never_read():
    board = ScoreBoard(1, momentum=0.5)
    update(board, [board.unscored, board.unscored], [5.0, NAN])
    update(board, [0], [1.0])
    merge_scores(board)
    assert board.scores.tolist() == [1.0] and board.nonfinite == 0


def test_without_momentum_it_is_the_last_loss_bit_for_bit():
    plain, off = ScoreBoard(9), ScoreBoard(9, momentum=0.0)
    for _ in range(3):
        ids, losses = torch.randperm(9)[:5], torch.rand(5)
        plain.update(ids, losses)
        off.update(ids, losses)
    torch.testing.assert_close(
        plain.scores, off.scores, rtol=0, atol=0, equal_nan=True
    )


def test_an_update_of_averages_does_not_wait_for_the_device():
    board = ScoreBoard(9, device='meta', momentum=0.5)
    board.update(
        torch.zeros(4, dtype=torch.int64, device='meta'),
        torch.zeros(4, device='meta'),
    )
    assert board.scores.is_meta


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(score_momentum=1.0), r'score_momentum=1\.0 is not in'),
        (dict(score_momentum=-0.1), r'score_momentum=-0\.1 is not in'),
        (dict(warmup_rounds=-1), 'warmup_rounds=-1 is not a number of'),
        (dict(warmup_rounds=1.5), r'warmup_rounds=1\.5 is not a number of'),
    ],
)
def test_a_setting_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        InfoBatchHook(**options)


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, InfoBatchHook))


def train(work_dir, options, **settings):
    cfg = light.config(work_dir, LOOP, **settings)
    cfg.custom_hooks[0].update(options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def rounds(runner):
    with open(f'{runner.work_dir}/infobatch.jsonl') as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        del line['seconds']
    return lines


@pytest.mark.parametrize(
    'policy', [dict(type='InfoBatchPolicy'), dict(type='RandomPolicy')]
)
@pytest.mark.parametrize('warmup', [0, 1, 3])
def test_rounds_of_warm_up_use_all_data(tmp_path, policy, warmup):
    policy = dict(policy, prune_ratio=0.5)
    runner = train(tmp_path, dict(warmup_rounds=warmup), policy=policy)
    kept = [line['kept'] for line in rounds(runner)]
    full, pruned = kept[: max(1, warmup)], kept[max(1, warmup) : 7]
    assert set(full) == {26} and max(pruned) < 26
    assert kept[7] == 26  # annealing


def test_off_is_the_run_without_the_options(tmp_path):
    plain = train(tmp_path / 'plain', {})
    off = dict(score_momentum=0.0, warmup_rounds=0)
    off = train(tmp_path / 'off', off)
    assert rounds(off) == rounds(plain)
    states = [hook_of(runner).state_dict() for runner in (off, plain)]
    for state in states:
        for name in [name for name in state if name.endswith('_seconds')]:
            del state[name]
    for name in ('policy', 'score', 'pacing'):
        assert states[0].pop(name) == states[1].pop(name)
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_smoothed_scores_plan_other_rounds(tmp_path):
    plain = train(tmp_path / 'plain', dict(warmup_rounds=3))
    smooth = train(tmp_path / 'smooth', SMOOTH)
    plans = [[r['digest'] for r in rounds(run)] for run in (smooth, plain)]
    assert plans[0][:3] == plans[1][:3]
    assert plans[0][3:] != plans[1][3:]


NORM = dict(score='gradient_norm')


@pytest.mark.parametrize(
    'options, epoch', [(SMOOTH, 2), (SMOOTH, 5), (NORM, 5)]
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, options, epoch):
    """Within the warm-up, and within the pruned rounds."""
    whole = train(tmp_path / 'whole', options)
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=epoch))
    settings = dict(default_hooks=hooks)
    train(tmp_path / 'first', options, **settings)
    cfg = light.config(tmp_path / 'second', LOOP)
    cfg.custom_hooks[0].update(options)
    cfg.resume = True
    cfg.load_from = str(tmp_path / f'first/epoch_{epoch}.pth')
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert rounds(resumed) == rounds(whole)[epoch:]
    ours, theirs = hook_of(resumed).board, hook_of(whole).board
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=0)
    weights = [runner.model.state_dict() for runner in (resumed, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


# The class-balanced score: each class of an image counts alike

BALANCED = dict(score='class_balanced')


def mean_over_classes(logits, labels, weights):
    """Return the score of an image from logits (C, H, W), pixel by pixel."""
    losses = -log_softmax(logits.double(), 0)
    by_class = {}
    for y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)):
        label = int(labels[y, x])
        if label != IGNORED:
            by_class.setdefault(label, []).append(float(losses[label, y, x]))
    if not by_class:
        return 0.0
    means = {c: sum(each) / len(each) for c, each in by_class.items()}
    total = sum(weights[c] * mean for c, mean in means.items())
    return total / sum(weights[c] for c in means)


@pytest.mark.parametrize('ignored', [False, True])
@pytest.mark.parametrize('loss', ONE_PASS)
def test_a_score_is_the_mean_over_the_classes_of_an_image(loss, ignored):
    settings = ONE_PASS[loss]
    head = test_heads.build(toys.weighted(toys.fcn_head(**settings)))
    head.infobatch_ledger = Ledger(class_balanced=True)
    samples = test_heads.labels(4, ignored)
    samples[3].gt_sem_seg.data[:] = 5  # of a single class,
    samples[3].gt_sem_seg.data[:, 0, :2] = 7  # almost
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 11, 32, 32, generator=generator)
    try:
        scores = test_heads.scores_of(head, logits, samples)
    except IndexError:
        pytest.skip('upstream: class_weight fails on ignored pixels')
    losses = settings['loss_decode']
    losses = losses if isinstance(losses, list) else [losses]
    expected = [
        sum(
            one.get('loss_weight', 1.0)
            * mean_over_classes(
                image,
                sample.gt_sem_seg.data[0],
                one.get('class_weight', [1.0] * 11),
            )
            for one in losses
        )
        for image, sample in zip(logits, samples, strict=True)
    ]
    torch.testing.assert_close(
        scores, torch.tensor(expected), rtol=1e-5, atol=1e-6
    )
    assert bool(scores[2] == 0) == ignored


@pytest.mark.parametrize('loss', BY_IMAGE)
def test_a_head_without_pixel_losses_is_refused(loss):
    head = test_heads.build(toys.weighted(toys.fcn_head(**BY_IMAGE[loss])))
    with pytest.raises(ValueError, match=r'do not: aux \(FCNHead\)\. Set'):
        check_class_balanced({'aux': head})


def test_a_run_with_such_a_head_stops_before_training(tmp_path):
    dice = toys.fcn_head(loss_decode=dict(type='DiceLoss'))
    cfg = toys.config(tmp_path)
    cfg.model.auxiliary_head = toys.weighted(dice)
    with pytest.raises(ValueError, match=r'auxiliary_head \(FCNHead\)'):
        toys.train(enable(cfg, **BALANCED))
    assert not (tmp_path / 'infobatch.jsonl').exists()


def test_an_unknown_score_is_an_error():
    message = "score='pixel' is not known; there are image_mean, class_bal"
    with pytest.raises(ValueError, match=message):
        InfoBatchHook(score='pixel')


def rounds_in(work_dir):
    text = (work_dir / 'infobatch.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_only_the_choice_of_samples_depends_on_it(tmp_path):
    """A round of all data trains the same model, and scores it otherwise."""
    runs = {}
    for score in ('image_mean', 'class_balanced', 'gradient_norm'):
        cfg = toys.config(tmp_path / score, epochs=1)
        runs[score] = toys.train(enable(cfg, score=score))
    first, *others = [run.model.state_dict() for run in runs.values()]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    scores = [toys.hook_of(run).board.scores for run in runs.values()]
    assert all(each.isfinite().all() for each in scores)
    for one, other in combinations(scores, 2):
        assert not torch.isclose(one, other).any()


DICE = dict(type='DiceLoss', loss_weight=0.4)


@pytest.mark.parametrize(
    'losses, score, used',
    [
        ([], None, 'image_mean'),
        (['auxiliary_head'], None, 'gradient_norm'),
        (['auxiliary_head'], 'image_mean', 'image_mean'),
        ([], 'gradient_norm', 'gradient_norm'),
    ],
)
def test_what_a_score_is_by_default(tmp_path, losses, score, used):
    """The loss where it comes in one pass, as the losses of all heads tell."""
    cfg = toys.config(tmp_path, epochs=2)
    for head in losses:
        cfg.model[head].head.loss_decode = DICE
    cfg.custom_hooks[0].score = score
    cfg.log_level = 'INFO'
    runner = toys.train(cfg)
    run = toys.hook_of(runner).run
    assert run.score == used and run.board.scores.isfinite().all()
    (log,) = tmp_path.glob('*/*.log')
    says = "score='gradient_norm', as the loss of auxiliary_head (FCNHead)"
    assert (says in log.read_text()) == (
        used != 'image_mean' and score is None
    )


class ForwardOnly(EncoderDecoder):
    """Computes its losses and goes backward through none of them."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        losses = self._run_forward(data, mode='loss')
        return self.parse_losses(losses)[1]


def test_a_run_without_a_backward_pass_is_refused_before_its_first_step(
    tmp_path,
):
    cfg = toys.config(tmp_path, epochs=2)
    cfg.custom_hooks[0].update(NORM)
    cfg.model.type = ForwardOnly
    runner = Runner.from_cfg(cfg)
    with pytest.raises(RuntimeError, match='no gradient in a training step'):
        runner.train()
    assert runner.iter == 0


def test_scores_of_another_kind_are_dropped_on_resume(tmp_path):
    every = {'default_hooks.checkpoint.interval': 1}
    toys.train(toys.config(tmp_path, epochs=2, delta=1.0, **every))
    cfg = toys.config(tmp_path, epochs=5, delta=1.0, **every)
    cfg.resume = True
    toys.train(enable(cfg, **BALANCED))
    kept = [line['kept'] for line in rounds_in(tmp_path)]
    assert kept[2] == 24 and max(kept[1], kept[3], kept[4]) < 24


# The norm of the gradient, as the backward pass finds it

LOSSES = (
    ONE_PASS
    | BY_IMAGE
    | dict(
        dice_alone=dict(loss_decode=dict(type='DiceLoss')),
        lovasz=dict(loss_decode=dict(type='LovaszLoss', reduction='none')),
        tversky=dict(loss_decode=dict(type='TverskyLoss')),
    )
)
# Of these the loss of a batch is no mean over its images.
IN_COMPANY = (
    'avg_non_ignore',
    'class_weight',
    'class_weight_non_ignore',
    'two_names',
    'ohem_by_loss',
    'lovasz',
)


def norms_of(head, logits, samples, factor=1.0):
    """Return the scores of a batch that is weighted."""
    head.infobatch_ledger = ledger = Ledger(gradient_norm=True)
    ledger.open(torch.arange(4), torch.tensor([0.5, 2.0, 0.0, 1.0]))
    losses = head.loss_by_feat(logits, samples)
    (factor * total_loss(losses)).backward()
    return ledger.close()[1]


def stock_norms(stock, logits, samples):
    """Return the norms of the gradients of a batch, times its size."""
    logits = logits.clone().requires_grad_()
    total_loss(stock.loss_by_feat(logits, samples)).backward()
    return len(logits) * logits.grad.flatten(1).norm(dim=1)


@pytest.mark.parametrize('factor', [1.0, 2.0**40, 1 / 3])
@pytest.mark.parametrize('loss', LOSSES)
def test_it_is_that_of_autograd_for_each_image_alone(loss, factor):
    """Whatever the images' weights, and what the loss is multiplied by."""
    head = toys.fcn_head(**LOSSES[loss])
    stock, head = test_heads.pair(head)
    samples = test_heads.labels(4)
    logits = 3 * head(test_heads.features(4)).detach()
    parts = [slice(i, i + 1) for i in range(4)]
    if loss in IN_COMPANY:
        parts = [slice(None)]
    try:
        expected = [stock_norms(stock, logits[i], samples[i]) for i in parts]
    except IndexError:
        pytest.skip('upstream: class_weight fails on ignored pixels')
    scores = norms_of(head, logits.requires_grad_(), samples, factor)
    torch.testing.assert_close(
        scores, torch.cat(expected), rtol=1e-4, atol=1e-7
    )
    assert scores[2] == 0  # no pixel has a label
    assert scores.unique().numel() == 4


def test_heads_and_tensors_add_up_by_their_squares():
    """One head has a factor outside of it, the other gets two tensors."""
    ledger = Ledger(gradient_norm=True)
    ledger.open(torch.arange(3), torch.tensor([0.0, 1.0, 9.0]))
    draw = torch.Generator().manual_seed(0)
    one, two, three = (
        torch.randn(3, 5, generator=draw).requires_grad_() for _ in range(3)
    )

    class Head(torch.nn.Module):
        def loss_by_feat(self, *tensors):
            squares = [tensor.square().sum(1).mean() for tensor in tensors]
            return dict(loss=[sum(squares)], other=tensors[0].sum())

    first, second = (attach(Head()) for _ in range(2))
    first.infobatch_ledger = second.infobatch_ledger = ledger
    loss = first.loss_by_feat(one)['loss'][0]
    loss = loss + 0.5 * second.loss_by_feat(two, three)['loss'][0]
    (1024 * loss).backward()
    assert ledger.reporters == [first, second]
    expected = torch.cat([2 * one, two, three], 1).norm(dim=1)
    # The mean of 1 and 0.5, each weighted by itself.
    unit = (1 + 0.5**2) / (1 + 0.5)
    torch.testing.assert_close(ledger.close()[1], expected.detach() / unit)


@pytest.mark.parametrize(
    'order', test_heads.ORDERS.values(), ids=test_heads.ORDERS
)
def test_norms_follow_the_samples(order):
    points, samples = test_heads.batch()
    head = attach(light.LightHead())
    head.infobatch_ledger = ledger = Ledger(gradient_norm=True)
    ledger.open(
        torch.arange(4),
        test_heads.WEIGHTS,
        samples=test_heads.IDS,
        nowhere=99,
    )
    rows = head.fc(points[order])
    loss = head.loss_by_feat(rows, [samples[i] for i in order])['loss_ce']
    (16 * loss).backward()
    where, scores = ledger.close()

    seen = [i in order for i in range(4)]
    torch.testing.assert_close(
        scores[seen], light_norms(head, points, samples)[seen]
    )
    assert where.tolist() == [i if s else 99 for i, s in enumerate(seen)]


def light_norms(head, points, samples):
    """Return the norm for each sample of a light head, by autograd alone."""
    logits = head.fc(points).detach().requires_grad_()
    labels = torch.tensor([sample.label for sample in samples])
    cross_entropy(logits, labels, reduction='sum').backward()
    return logits.grad.norm(dim=1)


def test_the_loss_may_be_changed_in_place():
    head = attach(light.LightHead())
    points, samples = test_heads.batch()
    head.infobatch_ledger = ledger = Ledger(gradient_norm=True)
    ledger.open(torch.arange(4), torch.ones(4))
    loss = head.loss_by_feat(head.fc(points), samples)['loss_ce']
    loss *= 8
    loss.backward()
    torch.testing.assert_close(
        ledger.close()[1], light_norms(head, points, samples)
    )


@pytest.mark.parametrize('value', [NAN, INF])
def test_a_batch_whose_loss_is_not_finite_has_no_norms(value):
    """Its gradients may be finite all the same, or zero."""
    head = attach(light.LightHead())
    points, samples = test_heads.batch()
    head.infobatch_ledger = ledger = Ledger(gradient_norm=True)
    ledger.open(torch.arange(4), torch.ones(4))
    samples[1].set_field(value, 'shift', field_type='metainfo')
    loss = head.loss_by_feat(head.fc(points), samples)['loss_ce']
    loss.backward()
    assert head.fc.weight.grad.isfinite().all()
    assert ledger.close()[1].isnan().all()


def test_a_step_without_a_backward_pass_has_no_norms():
    head = attach(light.LightHead())
    points, samples = test_heads.batch()
    head.infobatch_ledger = ledger = Ledger(gradient_norm=True)
    ledger.open(torch.arange(4), torch.ones(4))
    head.loss_by_feat(head.fc(points), samples)
    with pytest.raises(RuntimeError, match='no gradient in a training step'):
        ledger.close()


def test_a_step_does_not_wait_for_the_device():
    """A tensor on `meta` has no value: reading one raises."""
    ones = partial(torch.ones, device='meta')
    ledger, board = Ledger(gradient_norm=True), ScoreBoard(5, device='meta')
    ledger.open(ones(3, dtype=torch.int64), ones(3), samples=[1, 2, 3])
    logits = ones(4, 2, requires_grad=True)
    places = ones(4, dtype=torch.int64)
    scaled = scale_gradient(
        logits, ones(4), squares=ledger.norms.squares_of(4, places)
    )
    ledger.reporters.append('head')
    ledger.norms.reported(dict(loss=scaled.sum()))['loss'].backward()
    board.update(*ledger.close())
    assert board.scores.is_meta and logits.grad.is_meta


@pytest.mark.parametrize('settings', [{}, {'accumulative_counts': 3}])
def test_a_run_scores_by_the_norm(tmp_path, settings):
    """With nothing learned, each score is that of its own sample."""
    cfg = light.config(tmp_path, LOOP)
    cfg.custom_hooks[0].update(NORM)
    cfg.optim_wrapper.update(settings)
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = toys.train(cfg)
    data = [runner.train_dataloader.dataset[i] for i in range(26)]
    points = torch.stack([each['inputs'] for each in data])
    expected = light_norms(
        runner.model.head, points, [each['data_samples'] for each in data]
    )
    hook = toys.hook_of(runner)
    torch.testing.assert_close(hook.board.scores, expected)
    assert hook.samples_seen < hook.samples_budget


@FUNCTIONS.register_module()
def two_views(batch):
    """Collate each sample and its mirror image, one after the other."""
    mirrored = [dict(each, inputs=-each['inputs']) for each in batch]
    return pseudo_collate([*chain(*zip(batch, mirrored, strict=True))])


@pytest.mark.parametrize('score', [{}, NORM])
def test_the_score_of_a_sample_with_two_views_is_of_both(tmp_path, score):
    cfg = light.config(tmp_path, LOOP)
    cfg.custom_hooks[0].update(score)
    cfg.train_dataloader.collate_fn = dict(type='two_views')
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = toys.train(cfg)
    data = [runner.train_dataloader.dataset[i] for i in range(26)]
    given = [each['data_samples'] for each in data]
    points = torch.stack([each['inputs'] for each in data])
    head = runner.model.head

    def of(points):
        if score:
            return light_norms(head, points, given)
        labels = torch.tensor([each.label for each in given])
        return cross_entropy(head.fc(points), labels, reduction='none')

    first, second = of(points).detach(), of(-points).detach()
    expected = (first + second) / 2
    if score:  # the root of the mean square
        expected = ((first.square() + second.square()) / 2).sqrt()
    torch.testing.assert_close(toys.hook_of(runner).board.scores, expected)


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
def test_ranks_score_as_one_process_does(tmp_path, pacing):
    loop = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=5)
    options = {
        'custom_hooks.0.score': 'gradient_norm',
        'custom_hooks.0.pacing': pacing,
        'custom_hooks.0.policy': dict(prune_ratio=None, keep=0.75),
    }
    one = run_on_ranks(1, tmp_path / 'a', light_run, loop, 8, 32, options)
    two = run_on_ranks(2, tmp_path / 'b', light_run, loop, 4, 32, options)
    plans = [[r['plan'] for r in each['diaries'][0]] for each in (one, two)]
    assert plans[0] == plans[1] and len(plans[0][1]) == 24
    torch.testing.assert_close(two['scores'][0], one['scores'][0])
    assert torch.equal(two['scores'][1], two['scores'][0])
