"""How much of a stratum is pruned, over the full-data clock."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

# Tolerance of comparisons on the clock: 7 of 100 steps reach delta = 0.07,
# although 0.07 * 100 is above 7 in floating point.
_CLOCK_TOLERANCE = 1e-9


def check_keep(keep: Any, instead_of: Any) -> None:
    """Raise a ValueError unless a share can be kept, and nothing else is set.

    Args:
        keep (float): The share of all samples.
        instead_of (Any): The prune ratios, None where they are left out.
    """
    if instead_of is not None:
        raise ValueError(
            f'keep={keep!r} is set beside the prune ratio {instead_of}, but '
            'ratios follow from keep. Leave one of the two out'
        )
    if not is_number(keep) or not 0 < keep <= 1:
        raise ValueError(
            f'keep must be in (0, 1], but got {keep!r}: it is the share of '
            'all samples that a pruned round keeps'
        )


def is_number(value: Any) -> bool:
    """Say whether a setting is a number, which True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


class PruneRatio:
    """A prune ratio over the full-data clock.

    It runs from ``start`` at clock 0 to ``end`` at ``delta`` and is zero from
    ``delta`` on, which is the annealing of the paper (section 3.3).

    Args:
        start (float): The ratio at clock 0, in [0, 1).
        end (float): The ratio just before ``delta``, in [0, 1).
        delta (float): The share of the clock from which nothing is pruned,
            in [0, 1].
    """

    def __init__(self, start: float, end: float, *, delta: float) -> None:
        for name, ratio in (('start', start), ('end', end)):
            if not is_number(ratio) or not 0 <= ratio < 1:
                raise ValueError(
                    f'prune_ratio must be in [0, 1), but its {name} is '
                    f'{ratio!r}: at 1 no sample of the stratum could be kept, '
                    'and no weight would make up for it'
                )
        if not is_number(delta) or not 0 <= delta <= 1:
            raise ValueError(
                f'delta must be in [0, 1], but got {delta!r}: it is the share '
                'of the full-data budget after which all data is used'
            )
        self.start, self.end, self.delta = start, end, delta

    @classmethod
    def parse(
        cls, setting: float | Mapping[str, Any], *, delta: float
    ) -> 'PruneRatio':
        """Build a prune ratio from a setting of a config.

        Args:
            setting (float | dict): A number, ``dict(type='constant',
                value=0.5)`` or ``dict(type='linear', start=0.0, end=0.9)``.
            delta (float): See :class:`PruneRatio`.
        """
        if not isinstance(setting, Mapping):
            return cls(setting, setting, delta=delta)
        options = dict(setting)
        kind = options.pop('type', None)
        if kind == 'constant' and set(options) == {'value'}:
            return cls(options['value'], options['value'], delta=delta)
        if kind == 'linear' and set(options) == {'start', 'end'}:
            return cls(options['start'], options['end'], delta=delta)
        raise ValueError(
            "prune_ratio must be a number, dict(type='constant', value=...) "
            f"or dict(type='linear', start=..., end=...), but got {setting}"
        )

    def at(self, progress: float) -> float:
        """Return the ratio at ``progress``, a share of the clock."""
        if progress >= self.delta - _CLOCK_TOLERANCE:
            return 0.0
        share = progress / self.delta
        return self.start + (self.end - self.start) * share

    def __repr__(self) -> str:
        ratio = f'{self.start:g}'
        if self.end != self.start:
            ratio = f'{self.start:g} to {self.end:g}'
        return f'{ratio} until {self.delta:g}'
