"""Tables and pictures, from results that are known."""

import statistics

import pytest

from infobatch_mm.compare.tables import (
    arms_table,
    class_gap,
    class_names,
    controls_table,
    differences,
    efficiency_table,
)


def runs(*values, seen=100):
    return {
        seed: dict(value=value, samples_seen=seen, samples_budget=100)
        for seed, value in enumerate(values)
    }


def test_arms_are_compared_seed_by_seed():
    results = dict(
        infobatch=runs(70.0, 71.0, 72.5, seen=75),
        full=runs(70.1, 71.1),
        other=runs(60.0, 61.1, seen=75),
    )
    lines = arms_table(results, core=['infobatch', 'full']).splitlines()
    assert lines[2] == (
        '| `infobatch` | 3 | 71.17 ± 1.26 | -0.10 [-0.10, -0.10] | 75.0% '
        '| lossless |'
    )
    assert lines[3] == '| `full` | 2 | 70.60 ± 0.71 |  | 100.0% |  |'
    assert lines[4].startswith('| `other` (exploratory) | 2 ')
    assert lines[4].endswith('-10.05 [-10.37, -9.73] | 75.0% | lossy |')
    assert differences(results, 'full', 'missing') == []


def test_controls_that_were_not_run_are_named():
    results = dict(full=runs(1.0), infobatch=runs(1.0))
    text = controls_table(results)
    assert text.endswith('`random` and `short`: not run.')


def test_a_class_is_compared_at_the_last_validation():
    def run(first, last):
        return dict(validations=[{'IoU/sky': first}, {'IoU/sky': last}])

    results = dict(
        full={0: run(1.0, 50.0), 1: run(1.0, 60.0)},
        infobatch={0: run(9.0, 48.0), 1: run(9.0, 57.0), 2: run(9.0, 9.0)},
    )
    assert class_names(results) == ['sky']
    gap = class_gap(results, 'infobatch', 'sky')
    assert (gap.seeds, gap.mean) == (2, -2.5)
    assert gap.deviation == pytest.approx(statistics.stdev([-2.0, -3.0]))


def test_efficiency_is_time_saved_over_samples_saved():
    def run(samples, cpu, wall):
        return dict(samples_seen=samples, cpu_seconds=cpu, train_seconds=wall)

    results = dict(
        full={0: run(100, 50.0, 100.0), 1: run(100, 40.0, 80.0)},
        infobatch={
            0: run(80, 41.0, 90.0),
            1: run(75, 30.0, 60.0),
            2: run(75, 30.0, 60.0),  # not yet a pair
        },
    )
    text = efficiency_table({'digits': results})
    assert '| `digits` | 2 | 22.5% | 21.5% | 0.95 [' in text
    assert '] | 17.5% | 0.75 [' in text
