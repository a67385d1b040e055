"""What a run leaves behind: a line for each round, and a summary."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .host.checkpoint_files import AtomicLocalBackend
from .pruned_run import PrunedRun

ROUNDS_FILE, SUMMARY_FILE = 'infobatch.jsonl', 'infobatch_summary.json'
Line = dict[str, Any]  # a JSON object in a line of a file

# Where nothing says which metric counts, the first of these that a run has is
# shown, else its first. What takes the time of a validation is no metric.
METRICS = ('mIoU', 'accuracy/top1')
NO_METRICS = ('step', 'time', 'data_time')

# Bins of :func:`score_histogram`: four a decade, from 1e-6 to 1e2.
SCORE_EDGES = [10 ** (step / 4) for step in range(-24, 9)]


def score_histogram(scores: Tensor) -> list[int]:
    """Count the scores between the successive :data:`SCORE_EDGES`.

    The first and the last bin also count what lies beyond them; scores that
    are not finite are not counted.

    Args:
        scores (Tensor): Shape (N,), on any device.
    """
    inner = torch.tensor(SCORE_EDGES[1:-1], device=scores.device)
    finite = scores[scores.isfinite()]
    bins = torch.bucketize(finite, inner, right=True)
    return torch.bincount(bins, minlength=len(SCORE_EDGES) - 1).tolist()


def round_scalars(run: PrunedRun) -> dict[str, float]:
    """Return what is logged of the planned round."""
    plan = run.plan
    assert plan is not None
    planned_of = run.pass_samples * (run.round + 1)
    scalars = {
        'infobatch/clock': run.clock.now,
        'infobatch/kept_ratio': len(plan) / run.total,
        'infobatch/saved_ratio': 1 - run.samples_planned / planned_of,
        'infobatch/mean_weight': plan.mean_weight,
        'infobatch/variance_ratio': plan.variance_ratio,
    }
    if plan.threshold is not None:
        scalars['infobatch/threshold'] = plan.threshold
    return scalars


def round_text(run: PrunedRun) -> str:
    """Return the line of the log about the planned round.

    Example:
        InfoBatch round 3: 16 of 24 samples (66.7%), threshold 2.41, mean
        weight 1.5; 8.3% of the samples saved so far
    """
    scalars = round_scalars(run)
    assert run.plan is not None
    threshold = scalars.get('infobatch/threshold')
    return (
        f'InfoBatch round {run.round}: {len(run.plan):,} of {run.total:,} '
        f'samples ({scalars["infobatch/kept_ratio"]:.1%}), '
        + (f'threshold {threshold:.4g}, ' if threshold is not None else '')
        + f'mean weight {scalars["infobatch/mean_weight"]:.4g}; '
        f'{scalars["infobatch/saved_ratio"]:.1%} of the samples saved so far'
    )


def resumed_text(run: PrunedRun) -> str:
    """Return the line of the log about a run that goes on."""
    if run.plan is None:
        return f'InfoBatch resumes at the start of round {run.round}'
    return (
        f'InfoBatch resumes in round {run.round}, sample '
        f'{run.samples_done:,} of {len(run.plan):,}'
    )


def round_record(run: PrunedRun, iters: int) -> dict[str, Any]:
    """Return the line of ``infobatch.jsonl`` for the round that ended.

    Args:
        run (PrunedRun): The state of the run.
        iters (int): Iterations that the run has made.
    """
    plan = run.plan
    assert plan is not None
    return dict(
        round=run.round,
        iter=run.round_begin_iter,
        total=run.total,
        kept=len(plan),
        drawn=run.drawn,  # before a remainder was left out
        samples_before=run.samples_seen - run.samples_done,
        world_size=get_world_size(),
        # The run may end within a round, or have laid its rest out anew.
        iters=max(run.clock.round_iters, iters - run.round_begin_iter),
        threshold=plan.threshold,
        mean_weight=plan.mean_weight,
        max_weight=plan.weights.max().item(),
        variance_ratio=plan.variance_ratio,
        score_histogram=score_histogram(run.board.scores),
        digest=run.plan_digest,
        nonfinite=run.board.nonfinite,
        seconds=run.times.round.seconds,
    )


def metric_of(
    history: Mapping[str, Any], hooks: Iterable[Hook] = ()
) -> dict[str, Any]:
    """Return the last and the best value of the metric of a run.

    The metric is that of ``save_best`` of the run's ``CheckpointHook``, whose
    rule says what is best. Else the rule is what a ``CheckpointHook`` would
    infer from the name of the metric; if it cannot, no value is called best.

    Args:
        history (dict): ``message_hub.log_scalars``, which has the values of
            all validations, also of those before a resume.
        hooks (list[Hook]): The hooks of the run.

    Returns:
        dict: Empty if there was no validation.
    """
    names = [key[4:] for key in history if key.startswith('val/')]
    names = [name for name in names if name not in NO_METRICS]
    if not names:
        return {}
    rules = _rules_of_best(hooks)
    known = (name for name in (*rules, *METRICS) if name in names)
    name = next(known, names[0])
    values = history[f'val/{name}'].data[0].tolist()
    found = dict(metric=name, metric_last=values[-1])
    if rule := rules.get(name) or _inferred_rule(name):
        finite = [v for v in values if math.isfinite(v)] or [math.nan]
        best = max if rule == 'greater' else min
        found['metric_best'] = best(finite)
    return found


def _rules_of_best(hooks: Iterable[Hook]) -> dict[str, str]:
    """Return the rules by which a run saves its best, by their metrics."""
    return {
        metric: rule
        for hook in hooks
        if isinstance(hook, CheckpointHook) and hook.save_best
        for metric, rule in zip(hook.key_indicators, hook.rules, strict=True)
    }


def _inferred_rule(metric: str) -> str | None:
    try:
        return CheckpointHook(save_best=metric).rules[0]
    except ValueError:  # the name does not tell
        return None


def read_json_lines(path: Path) -> list[Line]:
    """Read a file with a JSON object a line; a torn last line is dropped.

    Raises:
        ValueError: If any other line is not JSON.
    """
    if not path.exists():
        return []
    # What follows the last end of a line is nothing, or torn.
    lines = path.read_text().split('\n')[:-1]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: {error}') from error
    return found


def read_rounds(work_dir: Path) -> list[Line]:
    """Return the finished rounds of a pruned run, none of a stock run."""
    return read_json_lines(work_dir / ROUNDS_FILE)


def kept_percent(rounds: Sequence[Line]) -> list[float]:
    """Return the share of the samples that each round kept, in percent."""
    return [100 * line['kept'] / line['total'] for line in rounds]


def read_summary(work_dir: Path) -> dict[str, Any] | None:
    """Return the summary of a pruned run that has finished."""
    path = work_dir / SUMMARY_FILE
    return json.loads(path.read_text()) if path.exists() else None


class RunRecords:
    """The files ``infobatch.jsonl`` and ``infobatch_summary.json``.

    Args:
        work_dir (str): Where they are written.

    Attributes:
        are_complete (bool): Whether the run had ended before it was resumed,
            and has its summary.
    """

    def __init__(self, work_dir: str) -> None:
        self.rounds_file = Path(work_dir, ROUNDS_FILE)
        self.summary_file = Path(work_dir, SUMMARY_FILE)
        self.are_complete = False

    def begin(
        self, resumed_round: int | None = None, *, is_over: bool = False
    ) -> None:
        """Begin or resume the records.

        What another run has left in the folder keeps its names, with the next
        free number at the end. Of a run that is resumed, the lines of rounds
        that will be run again are dropped, and a last line torn by a crash.

        Args:
            resumed_round (int, optional): The round that the run resumes
                with; None for a run that begins.
            is_over (bool): Whether nothing is left to train. Validations that
                came after the checkpoint are in its old summary alone.
        """
        self.are_complete = is_over and self.summary_file.exists()
        # A run that goes on has no summary yet.
        old = [] if self.are_complete else [self.summary_file]
        old += [self.rounds_file] if resumed_round is None else []
        for file in old:
            if file.exists():
                file.rename(_next_free(file))
        if not self.rounds_file.exists():
            return
        assert resumed_round is not None
        lines = self.rounds_file.read_text().splitlines()
        kept = [line for line in lines if _round_of(line) < resumed_round]
        text = ''.join(f'{line}\n' for line in kept)
        AtomicLocalBackend().put_text(text, self.rounds_file)

    def add_round(self, record: dict[str, Any]) -> None:
        """Append the line of a round."""
        with self.rounds_file.open('a') as file:
            file.write(json.dumps(record) + '\n')

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary of the run."""
        text = json.dumps(summary, indent=2) + '\n'
        AtomicLocalBackend().put_text(text, self.summary_file)


def _next_free(file: Path) -> Path:
    """Return the path with the first number at its end that is not taken."""
    numbered = (file.with_name(f'{file.name}.{n}') for n in count(1))
    return next(path for path in numbered if not path.exists())


def _round_of(line: str) -> float:
    """Return the round that a line is about, infinity if it is torn."""
    try:
        return json.loads(line)['round']
    except (ValueError, KeyError, TypeError):
        return math.inf


def summary_table(summary: dict[str, Any]) -> str:
    """Return the summary as a table for the log."""
    table = Table(title='InfoBatch', show_header=False)
    seen, budget = summary['samples_seen'], summary['samples_budget']
    rows = {
        'policy': summary['policy'],
        'samples seen': f'{seen:,} of {budget:,}',
        'samples saved': f'{summary["saved_ratio"]:.1%}',
        'time saved': _time_saved(summary),
        'iterations': (
            f'{summary["iters_run"]:,} of {summary["iters_budget"]:,}'
        ),
        'rounds': str(summary['rounds']),
        'training time': f'{summary["train_seconds"]:.1f} s',
        'of it overhead': f'{summary["overhead_seconds"]:.2f} s',
    }
    if 'metric' in summary:
        text = f'{summary["metric_last"]:.4g} at the end'
        if 'metric_best' in summary:
            text += f', {summary["metric_best"]:.4g} at best'
        rows[summary['metric']] = text
    for name, value in rows.items():
        table.add_row(name, value)
    printed = io.StringIO()
    Console(file=printed, width=79).print(table)
    return printed.getvalue()


def _time_saved(summary: dict[str, Any]) -> str:
    """Say what all iterations of the budget would have taken more.

    At the seconds that an iteration took in this run, which hold the
    overhead of pruning.
    """
    full = summary['train_seconds_budget']
    if not full:
        return 'not known: no full batches to time, or not from the start'
    saved = full - summary['train_seconds']
    return f'{saved:.1f} s of an estimated {full:.1f} s ({saved / full:.1%})'
