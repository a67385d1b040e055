"""PrunedRun without a runner, and the files that a run writes."""

import ast
import io
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer

import infobatch_mm.pruned_run
from infobatch_mm.checks import (
    check_annealing,
    check_late_hooks,
    check_readers,
    check_seed,
)
from infobatch_mm.clock import EpochClock, FullDataClock
from infobatch_mm.pacing import Dealing
from infobatch_mm.pruned_run import PrunedRun
from infobatch_mm.pruning import (
    InfoBatchPolicy,
    NoPruningPolicy,
    Plan,
    RandomPolicy,
)
from infobatch_mm.records import (
    SCORE_EDGES,
    RunRecords,
    metric_of,
    round_scalars,
    score_histogram,
    summary_table,
)
from infobatch_mm.scores import ScoreBoard

TOTAL, BATCH, BUDGET = 24, 4, 48


def new_run(*, batch=BATCH, clock=FullDataClock, policy=None, **settings):
    return PrunedRun(
        policy or InfoBatchPolicy(0.5),
        clock(BUDGET * BATCH // batch, TOTAL // batch),
        ScoreBoard(TOTAL),
        batch_size=batch,
        samples_budget=BUDGET * BATCH,
        seed=5,
        **settings,
    )


def loss_of(ids, step):
    """A loss that depends on the sample and falls with the step."""
    return (1 + ids.float()).sqrt() / (1 + 0.1 * step)


class Training:
    """The loop that a runner makes, without one."""

    def __init__(self, run, step=0):
        self.run, self.step, self.batches = run, step, []
        self.totals = {}  # announced, by round

    def round(self, stop_at=None):
        run = self.run
        if run.plan is None:
            seed = run.seed + run.round
            run.draw_plan(torch.Generator().manual_seed(seed))
        plan, done = run.remaining
        left = plan.indices[done:].split(run.batch_size)
        run.begin_round(
            iters=len(left),
            samples=len(plan) - done,
            first_iter=self.step,
        )
        self.totals[run.round] = self.step + run.iters_left()
        for ids in left:
            if self.step == stop_at:
                return False
            self.batches.append((ids.tolist(), run.weights[ids].tolist()))
            run.board.update(ids, loss_of(ids, self.step))
            run.end_step(ids)
            self.step += 1
        run.end_round()
        return True

    def until(self, stop_at=None):
        while not self.run.clock.done and self.round(stop_at):
            pass
        return self


def saved(run):
    """Return a checkpoint entry as it comes back from a file."""
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_module_imports_no_mmengine():
    tree = ast.parse(Path(infobatch_mm.pruned_run.__file__).read_text())
    names = [
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, 'module', None) or '']
        + [alias.name for alias in node.names]
    ]
    assert names and not any(name.startswith('mm') for name in names)


def test_a_run_prunes_until_delta_and_spends_its_budget():
    training = Training(new_run()).until()
    run = training.run
    kept = [len(ids) for ids, _ in training.batches]
    assert set(kept) == {BATCH}
    assert run.clock.done and run.round == 8
    assert run.samples_seen == run.samples_planned == sum(kept)
    assert run.samples_seen < BUDGET * BATCH
    assert run.times_kept.sum() == run.samples_seen
    # The first round and those from delta on keep all.
    assert run.times_kept.min() >= 2


class InTurn:
    """Keeps 8 and 16 samples in turn, from the second to the last round."""

    def __init__(self):
        self.kept = itertools.chain([24], itertools.cycle([8, 16]))

    def plan(self, scores, *, progress, **settings):
        kept = next(self.kept) if progress < 0.875 else 24
        return Plan(torch.arange(kept), torch.ones(kept))


def test_the_total_comes_from_the_mean_of_the_pruned_rounds():
    training = Training(new_run(policy=InTurn())).until()
    # Past and present iterations, later pruned rounds of the mean of 2, 4,
    # 2, 4, ..., and a full one.
    assert training.totals == {
        0: 8 * 6,
        1: 6 + 2 + 5 * 2 + 6,
        2: 8 + 4 + 4 * 3 + 6,
        3: 12 + 2 + 8 + 6,  # 3 * 8 / 3
        4: 14 + 4 + 2 * 3 + 6,
        5: 18 + 2 + 3 + 6,  # 14 / 5, rounded up
        6: 20 + 4 + 0 + 6,
        7: 24 + 6,
    }


def test_a_checkpoint_older_than_the_mean_begins_it_anew():
    first = Training(new_run(policy=InTurn())).until(11)
    state = saved(first.run)
    del state['rounds_pruned'], state['samples_pruned']
    again = new_run(policy=InTurn())
    again.load_state_dict(state)
    next(again.policy.kept)
    second = Training(again, first.step).until()
    # In round 2, 3 steps are left and the rest is taken to be full.
    assert second.totals[2] == 11 + 1 + 4 * 6 + 6
    assert second.totals[3] == 12 + 2 + 3 * 2 + 6


@pytest.mark.parametrize('stop_at', [0, 3, 6, 11, 17, 30])
@pytest.mark.parametrize('clock', [FullDataClock, EpochClock])
def test_a_restored_run_goes_on_as_if_it_had_not_stopped(stop_at, clock):
    whole = Training(new_run(clock=clock)).until()
    first = Training(new_run(clock=clock)).until(stop_at)
    again = new_run(clock=clock)
    assert again.load_state_dict(saved(first.run)) == []
    second = Training(again, first.step).until()
    assert first.batches + second.batches == whole.batches
    assert first.totals | second.totals == whole.totals
    assert first.totals.items() <= whole.totals.items()
    assert torch.equal(again.board.scores, whole.run.board.scores)
    assert torch.equal(again.times_kept, whole.run.times_kept)
    assert again.samples_seen == whole.run.samples_seen


def test_samples_that_were_held_back_are_trained_after_a_resume():
    """A batch sampler that groups does not keep the order of the plan."""
    run = new_run(keeps_order=False)
    run.draw_plan(torch.Generator().manual_seed(1))
    run.begin_round(iters=6, samples=24, first_iter=0)
    order = run.plan.indices.flip(0)  # from the far end of the plan
    for ids in order.split(BATCH)[:2]:
        run.board.update(ids, loss_of(ids, 0))
        run.end_step(ids)
    again = new_run(keeps_order=False)
    again.load_state_dict(saved(run))
    plan, done = again.remaining
    assert done == 0
    assert sorted(plan.indices.tolist()) == sorted(order[8:].tolist())


@pytest.mark.parametrize('before, after', [(True, False), (False, True)])
def test_so_are_they_where_another_order_begins_with_the_resume(before, after):
    run = Training(new_run(keeps_order=before)).until(8).run
    assert 0 < run.samples_done < len(run.plan)
    again = new_run(keeps_order=after)
    again.load_state_dict(saved(run))
    plan, done = again.remaining
    expected = run.plan.indices[run.samples_done :]
    assert plan.indices[done:].tolist() == expected.tolist()


@pytest.mark.parametrize(
    'ranks, smallest, steps', [(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 1)]
)
def test_the_rest_of_a_round_has_no_smaller_batches_than_allowed(
    ranks, smallest, steps
):
    policy = RandomPolicy(0.75)
    first = new_run(policy=policy, dealing=Dealing(3, 8, 1, 2), batch=8)
    first.board.update(torch.arange(TOTAL), torch.rand(TOTAL))
    first.draw_plan(torch.Generator().manual_seed(1))
    first.begin_round(iters=3, samples=len(first.plan), first_iter=0)
    first.end_step(first.plan.indices[:2])
    assert first.samples_left == 4
    dealing = Dealing(3, 8, ranks, smallest)
    again = new_run(policy=policy, dealing=dealing, batch=8)
    assert again.load_state_dict(saved(first)) == []
    assert again.steps_to_deal == steps


@pytest.mark.parametrize('delta, said', [(0.875, None), (0.9, '0.875')])
def test_a_run_without_a_last_round_of_all_data_says_so(delta, said):
    heard = []
    logger = SimpleNamespace(warning=heard.append)
    check_annealing(new_run(delta=delta), logger)
    assert [text[-5:] for text in heard] == ([said] if said else [])
    check_annealing(new_run(policy=NoPruningPolicy(), delta=delta), logger)
    check_annealing(new_run(delta=1), logger)
    assert len(heard) == bool(said)


class PreciseBNHook(Hook):
    """Named as mmpretrain's."""


class OfTheUser(PreciseBNHook):
    action_iter = 10


@pytest.mark.parametrize('check', [check_late_hooks, check_readers])
def test_hooks_that_meet_pruned_rounds_are_named(check):
    def said(*hooks, **settings):
        heard = []
        logger = SimpleNamespace(warning=heard.append)
        check(new_run(**settings), hooks, logger)
        return ' '.join(heard)

    late = check is check_late_hooks
    name = 'OfTheUser (action_iter=10)' if late else 'OfTheUser'
    assert name in said(Hook(), OfTheUser())
    assert not said(Hook(), CheckpointHook(interval=10))
    assert not said(OfTheUser(), policy=NoPruningPolicy())
    dealt = said(OfTheUser(), dealing=Dealing(6, BATCH, 1, 2))
    assert bool(dealt) != late  # all iterations, and still what a round keeps
    assert bool(said(PreciseBNHook())) != late


@pytest.mark.parametrize(
    'settings, prunes',
    [
        (dict(delta=0.2), True),  # rounds have 6 of 48 iterations
        (dict(delta=0.125), False),
        (dict(warmup_rounds=6), True),
        (dict(warmup_rounds=7), False),
        (dict(warmup_rounds=7, delta=1), True),
        (dict(warmup_rounds=8, delta=1), False),
        (dict(delta=0.125, policy=NoPruningPolicy()), True),
    ],
)
def test_a_run_that_prunes_nothing_says_so(settings, prunes):
    heard = []
    check_annealing(new_run(**settings), SimpleNamespace(warning=heard.append))
    assert any('nothing will be pruned' in text for text in heard) != prunes


@pytest.mark.parametrize('batch', [2, 8])
def test_an_epoch_ends_with_its_round_under_another_batch_size(batch):
    first = Training(new_run(clock=EpochClock)).until(13)
    assert first.run.samples_done
    again = new_run(clock=EpochClock, batch=batch)
    again.load_state_dict(saved(first.run))
    rounds = again.round
    Training(again).round()
    assert again.clock.now == (rounds + 1) * again.clock.pass_ticks


def test_between_rounds_another_batch_size_keeps_the_progress():
    first = Training(new_run(clock=EpochClock))
    for _ in range(6):
        first.round()
    again = new_run(clock=EpochClock, batch=8)
    again.load_state_dict(saved(first.run))
    assert again.clock.progress == first.run.clock.progress == 6 / 8


def test_another_version_or_data_set_is_refused():
    state = saved(new_run())
    with pytest.raises(ValueError, match='version 1, but.*reads 2'):
        new_run().load_state_dict({**state, 'version': 1})
    with pytest.raises(ValueError, match='scores of 30 samples.*has 24'):
        new_run().load_state_dict({**state, 'total': 30})


def test_what_changed_since_the_checkpoint_is_told():
    run = Training(new_run()).until(10).run
    other = new_run(policy=NoPruningPolicy(), score='class_balanced')
    policy, score = other.load_state_dict(saved(run))
    assert 'InfoBatchPolicy' in policy and 'NoPruningPolicy' in policy
    assert "score='class_balanced'" in score
    assert other.board.scores.isnan().all()


def test_the_seed_of_the_checkpoint_is_kept():
    state = saved(new_run())
    check_seed('randomness.seed', None, state)
    check_seed('randomness.seed', 5, state)
    with pytest.raises(ValueError, match='sampler.seed is 6.*seed 5'):
        check_seed('train_dataloader.sampler.seed', 6, state)


def test_a_stock_run_goes_on_with_pruning():
    run = new_run()
    run.begin_without_state(iters=18, epochs=0)
    assert (run.clock.now, run.round) == (18, 3)
    assert run.samples_seen == 18 * BATCH
    run = new_run(clock=EpochClock)
    run.begin_without_state(iters=0, epochs=3)
    assert (run.clock.now, run.round) == (18, 3)


# The files of a run

SUMMARY = dict(
    policy='InfoBatchPolicy(0.5 until 0.875)',
    total=1024,
    rounds=30,
    samples_budget=30720,
    samples_seen=23456,
    saved_ratio=1 - 23456 / 30720,
    iters_budget=3840,
    iters_run=2932,
    train_seconds=61.23,
    train_seconds_budget=3840 / 2932 * 61.23,
    overhead_seconds=0.456,
)


@pytest.fixture
def records(tmp_path):
    records = RunRecords(str(tmp_path))
    records.begin()
    return records


def rounds(records: RunRecords) -> list[int]:
    lines = records.rounds_file.read_text().splitlines()
    return [json.loads(line)['round'] for line in lines]


def add(records: RunRecords, *numbers: int) -> None:
    for number in numbers:
        records.add_round(dict(round=number, kept=10, threshold=None))


def test_each_round_appends_a_line(records):
    add(records, 0, 1)
    assert records.rounds_file.name == 'infobatch.jsonl'
    assert records.rounds_file.read_text() == (
        '{"round": 0, "kept": 10, "threshold": null}\n'
        '{"round": 1, "kept": 10, "threshold": null}\n'
    )


@pytest.mark.parametrize(
    ('first', 'left'), [(0, []), (2, [0, 1]), (4, [0, 1, 2, 3])]
)
def test_rounds_that_run_again_are_dropped(records, first, left):
    add(records, 0, 1, 2, 3)
    records.begin(first)
    assert rounds(records) == left
    add(records, first)
    assert rounds(records) == [*left, first]


@pytest.mark.parametrize('torn', ['{"rou', '{"round": 2', '{"round', '2'])
def test_a_torn_last_line_is_dropped(records, torn):
    add(records, 0, 1)
    with records.rounds_file.open('a') as file:
        file.write(torn)
    records.begin(5)
    add(records, 2)
    assert rounds(records) == [0, 1, 2]


def test_a_last_line_that_lacks_only_its_end_is_kept(records):
    records.rounds_file.write_text('{"round": 0}\n{"round": 1}')
    records.begin(2)
    add(records, 2)
    assert rounds(records) == [0, 1, 2]


def test_the_summary_is_json(records):
    records.write_summary(SUMMARY)
    assert records.summary_file.name == 'infobatch_summary.json'
    assert json.loads(records.summary_file.read_text()) == SUMMARY


def test_the_table_holds_the_numbers():
    table = summary_table(SUMMARY)
    for text in (
        SUMMARY['policy'],
        '23,456 of 30,720',
        '23.6%',
        '2,932 of 3,840',
        '30',
        '61.2 s',
        '0.46 s',
        # 908 of 3,840 iterations at 20.9 ms.
        '19.0 s of an estimated 80.2 s (23.6%)',
    ):
        assert text in table
    assert max(map(len, table.splitlines())) <= 79


def test_the_table_has_the_metric_if_there_is_one():
    assert 'best' not in summary_table(SUMMARY)
    metric = dict(metric='mIoU', metric_last=35.2, metric_best=36.01)
    table = summary_table(SUMMARY | metric)
    assert 'mIoU' in table and '35.2 at the end, 36.01 at best' in table


def test_time_saved_is_not_known_after_a_stock_part():
    table = summary_table(SUMMARY | dict(train_seconds_budget=None))
    assert 'not known' in table and 'estimated' not in table


@pytest.mark.parametrize(
    'values, found',
    [
        ({'train/loss': [1, 2]}, {}),
        ({'val/time': [1.0], 'val/data_time': [1.0]}, {}),
        (
            {'val/time': [1.0, 1.0], 'val/aAcc': [9, 9], 'val/mIoU': [4, 3]},
            dict(metric='mIoU', metric_last=3, metric_best=4),
        ),
        (
            {'val/loss_x': [2, 1, 3]},
            dict(metric='loss_x', metric_last=3, metric_best=1),
        ),
        # Which is better is not known.
        ({'val/FID': [2, 1, 3]}, dict(metric='FID', metric_last=3)),
    ],
)
def test_the_last_and_the_best_metric(values, found):
    assert metric_of(histories(values)) == found


def histories(values):
    return {n: HistoryBuffer(v, [1] * len(v)) for n, v in values.items()}


@pytest.mark.parametrize(
    'hooks, found',
    [
        ([dict(save_best='FID', rule='less')], ('FID', 3, 1)),
        ([dict(save_best='FID', rule='greater')], ('FID', 3, 3)),
        ([dict(), dict(save_best=['b', 'FID'], rule='less')], ('b', 5, 5)),
        ([dict(save_best=['mAcc', 'b'], rule='greater')], ('mAcc', 7, 9)),
        # Before its first validation in this process it has no rule.
        ([dict(save_best='auto')], ('mIoU', 4, 8)),
        ([dict(save_best='of_test', rule='less')], ('mIoU', 4, 8)),
        ([dict()], ('mIoU', 4, 8)),
    ],
)
def test_the_best_metric_is_that_of_the_checkpoint_hook(hooks, found):
    values = {
        'val/FID': [2, 1, 3],
        'val/mIoU': [8, 6, 4],
        'val/b': [6, 7, 5],
        'val/mAcc': [9, 8, 7],
    }
    made = [CheckpointHook(**settings) for settings in hooks]
    names = 'metric', 'metric_last', 'metric_best'
    summary = metric_of(histories(values), [Hook(), *made])
    assert summary == dict(zip(names, found, strict=True))


def test_the_table_calls_no_value_best_where_no_rule_is_known():
    table = summary_table(SUMMARY | dict(metric='FID', metric_last=35.2))
    assert '35.2 at the end' in table and 'best' not in table


def test_scores_are_counted_between_the_edges():
    assert SCORE_EDGES[0] == pytest.approx(1e-6)
    assert SCORE_EDGES[-1] == pytest.approx(100)
    scores = [0.0, 1e-9, 1e-6, 0.05, 0.05, 0.9, 1.1, 99.0, 100.0, 1e9]
    scores += [math.nan, math.inf]
    counts = score_histogram(torch.tensor(scores))
    assert len(counts) == len(SCORE_EDGES) - 1
    expected = [0] * len(counts)
    for score in scores[:-2]:
        bins = [
            k
            for k, (low, high) in enumerate(itertools.pairwise(SCORE_EDGES))
            if low <= score < high
        ]
        expected[bins[0] if bins else -1 if score > 1 else 0] += 1
    assert counts == expected


# What was planned, of what a full pass has


@pytest.mark.parametrize('clock', [FullDataClock, EpochClock])
def test_a_full_pass_without_its_remainder_saves_nothing(clock):
    # 24 samples in batches of 10: two steps a pass.
    run = PrunedRun(
        NoPruningPolicy(),
        clock(12, 2),
        ScoreBoard(TOTAL),
        batch_size=10,
        samples_budget=120,
        seed=5,
        trims_rounds=clock is FullDataClock,
    )
    assert run.pass_samples == 20
    for number in range(3):
        run.draw_plan(torch.Generator().manual_seed(number))
        assert round_scalars(run)['infobatch/saved_ratio'] == 0
        run.begin_round(iters=2, samples=20, first_iter=2 * number)
        assert run.times_kept.sum() == 20 * (number + 1)
        run.clock.position = 2
        run.end_round()


def test_an_epoch_that_a_loop_cuts_short_is_over_all_the_same():
    run = new_run(clock=EpochClock)
    for number in range(3):
        run.draw_plan(torch.Generator().manual_seed(number))
        run.begin_round(iters=6, samples=TOTAL, first_iter=4 * number)
        run.clock.position = 4
        run.end_round()
        assert run.clock.now == 6 * (number + 1)


class Planner:
    """A policy of the user's, that gives what it is told."""

    def __init__(self, given):
        self.given = given

    def plan(self, scores, **options):
        return self.given


IDS, ONES = torch.arange(TOTAL), torch.ones(TOTAL)


@pytest.mark.parametrize(
    'given, message',
    [
        ((IDS, ONES), 'gave a tuple'),
        (Plan(IDS.float(), ONES), 'types .*float32, torch.float32'),
        (Plan(IDS, ONES.double()), 'types .*int64, torch.float64'),
        (Plan(IDS.numpy(), ONES), 'types'),
        (Plan(IDS[:, None], ONES), r'shapes \(\(24, 1\), \(24,\)\)'),
        (Plan(IDS, ONES[:1]), r'shapes \(\(24,\), \(1,\)\)'),
        (Plan(IDS[:0], ONES[:0]), r'shapes \(\(0,\), \(0,\)\)'),
        (Plan(IDS + 1, ONES), 'not within its 24 samples'),
        (Plan(IDS - 1, ONES), 'not within its 24 samples'),
        (Plan(IDS // 2, ONES), 'more than once'),
        (Plan(IDS, ONES - 2), 'negative'),
        (Plan(IDS, ONES / 0), 'not finite'),
        (Plan(IDS, ONES, threshold=ONES.mean()), 'threshold of type Tensor'),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(given, message):
    run = new_run(policy=Planner(given))
    with pytest.raises(ValueError, match=f'Planner.*{message}'):
        run.draw_plan(torch.Generator())


def test_a_plan_of_the_users_is_taken():
    columns = torch.stack([IDS, IDS], 1)
    run = new_run(policy=Planner(Plan(columns[:, 0], ONES, threshold=0.5)))
    run.draw_plan(torch.Generator())
    run.begin_round(iters=6, samples=TOTAL, first_iter=0)
    assert run.plan_digest == Plan(IDS, ONES).digest()


def test_a_checkpoint_beyond_the_budget_is_refused():
    first = Training(new_run(clock=EpochClock)).until(30)
    fewer = PrunedRun(
        InfoBatchPolicy(0.5),
        EpochClock(12, 6),
        ScoreBoard(TOTAL),
        batch_size=BATCH,
        samples_budget=12 * BATCH,
        seed=5,
    )
    with pytest.raises(ValueError, match='stands at .* gives this run 12'):
        fewer.load_state_dict(saved(first.run))


def test_the_rest_of_a_dealt_round_is_counted_in_steps():
    """The larger batches come first, so fewer samples than steps are left."""

    def run_of(batch, steps):
        return PrunedRun(
            RandomPolicy(0.46),
            FullDataClock(4 * steps, steps),
            ScoreBoard(TOTAL),
            batch_size=batch,
            samples_budget=4 * TOTAL,
            seed=5,
            dealing=Dealing(steps, batch, 1, 1),
        )

    first = run_of(2, 12)
    first.board.update(torch.arange(TOTAL), torch.rand(TOTAL))
    first.draw_plan(torch.Generator().manual_seed(1))
    first.begin_round(iters=12, samples=13, first_iter=0)
    first.end_step(first.plan.indices[:2])
    assert first.samples_left == 11  # 5.1 of 6 steps by their number
    again = run_of(4, 6)
    again.load_state_dict(saved(first))
    assert again.steps_to_deal == round(6 * 11 / 12) == 6
