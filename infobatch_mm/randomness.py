"""Random draws that a resumed run repeats to the bit.

mmengine saves no random state, and what a worker draws depends on all that it
has drawn before. Here a checkpoint holds the states of the training processes,
and the draws of a sample's augmentation depend on the seed of the run, the
round and the index of the sample alone.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch.utils.data import DataLoader, get_worker_info

# NumPy's type stubs leave the two functions out by which a spare generator
# takes the place of its own while a sample is fetched in the training process.
# Copying the state of its own, to put it back, would take 0.1 ms.
_legacy: Any = np.random
_SPARE = np.random.MT19937(0)


def _seed(key: Sequence[int]) -> None:
    """Seed Python, NumPy and torch (CPU), each by other words of a hash."""
    words = np.random.SeedSequence(key).generate_state(5).tolist()
    random.seed(words[0] << 32 | words[1])
    np.random.seed(words[2])
    # Unlike torch.manual_seed it leaves the devices alone, which a pipeline
    # does not draw from, and takes 1 microsecond for 130.
    torch.default_generator.manual_seed(words[3] << 31 | words[4] >> 1)


def seed_workers(loader: DataLoader, key: Sequence[int]) -> None:
    """Seed the generator that a dataloader draws its workers' seed from.

    Samples have seeds of their own, but a transform may hold a generator that
    it has made from the seed of its worker.

    Args:
        loader (DataLoader): Has a generator of its own.
        key (Sequence[int]): Non-negative integers.
    """
    assert loader.generator is not None
    words = np.random.SeedSequence(key).generate_state(1, np.uint64)
    loader.generator.manual_seed(int(words[0] >> np.uint64(1)))


@contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Let a block draw as its key says, and training go on as it stood.

    In a worker nothing but samples is drawn, and nothing is put back.

    Args:
        key (Sequence[int]): Non-negative integers.
    """
    if get_worker_info() is not None:
        _seed(key)
        yield
        return
    python, cpu = random.getstate(), torch.get_rng_state()
    ours = _legacy.get_bit_generator()
    _legacy.set_bit_generator(_SPARE)
    try:
        _seed(key)
        yield
    finally:
        _legacy.set_bit_generator(ours)
        random.setstate(python)
        torch.set_rng_state(cpu)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the random states of this process, as tensors and scalars.

    Args:
        device (torch.device): The device that the model is on.
    """
    version, words, normal = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    state = dict(
        python=torch.tensor(words),
        python_version=version,
        python_normal=normal,
        numpy=torch.from_numpy(numpy['state']['key'].astype(np.int64)),
        numpy_position=int(numpy['state']['pos']),
        numpy_has_normal=int(numpy['has_gauss']),
        numpy_normal=float(numpy['gauss']),
        torch=torch.get_rng_state(),
    )
    if device.type != 'cpu':
        state['device'] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Go on drawing where :func:`get_random_state` stood."""
    random.setstate(
        (
            state['python_version'],
            tuple(state['python'].tolist()),
            state['python_normal'],
        )
    )
    np.random.set_state(
        (
            'MT19937',
            state['numpy'].cpu().numpy().astype(np.uint32),
            state['numpy_position'],
            state['numpy_has_normal'],
            state['numpy_normal'],
        )
    )
    torch.set_rng_state(state['torch'].cpu())
    if device.type != 'cpu' and 'device' in state:
        getattr(torch, device.type).set_rng_state(state['device'].cpu())


class RandomStates:
    """The random states of all ranks, on their way through checkpoints.

    Rank 0 alone writes checkpoints, so the ranks :meth:`gather` their states
    before. Validation does not advance them: a run that resumes from a
    checkpoint does not repeat the validation that followed it.

    Attributes:
        device (torch.device): The device that the model is on.
    """

    def __init__(self) -> None:
        self.device = torch.device('cpu')
        self._gathered: list[dict[str, Any]] = []
        self._gathered_at: Any = None
        self._aside: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    def set_aside(self) -> None:
        """Keep the state of training while something else draws."""
        self._aside = get_random_state(self.device)

    def take_up(self) -> None:
        """Go on with the state that was set aside."""
        if self._aside is not None:
            set_random_state(self._aside, self.device)
        self._aside = None

    def _now(self) -> dict[str, Any]:
        return self._aside or get_random_state(self.device)

    def gather(self, at: Any) -> None:
        """Exchange the states between the ranks; all must call it.

        Args:
            at (Any): The position in the run, compared with that of
                :meth:`state_dict`.
        """
        self._gathered = all_gather_object(self._now())
        self._gathered_at = at

    def state_dict(self, at: Any) -> dict[str, Any]:
        """Return the states by rank; none if they are not all known."""
        states = self._gathered if self._gathered_at == at else []
        if get_world_size() == 1:
            states = [self._now()]
        return dict(random_states=states)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Take the states of a checkpoint.

        Checkpoints of older versions have none.

        Returns:
            list[str]: What the user should be warned of.
        """
        states = state.get('random_states', [])
        if len(states) == get_world_size():
            self._resumed = dict(states[get_rank()])
            return []
        return [
            f'the checkpoint has the random states of {len(states)} '
            f'processes, and this run has {get_world_size()}: what the model '
            'draws at random (dropout) is drawn anew'
        ]

    def put_back(self) -> None:
        """Go on drawing where the checkpoint stood, if there was one."""
        if self._resumed is not None:
            set_random_state(self._resumed, self.device)

    def forget(self) -> None:
        """Leave the states of the checkpoint behind."""
        self._resumed = None
