"""IndexedDataset over a data set and over mmengine's wrappers."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import toys
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmseg.datasets.transforms import PackSegInputs
from torch.utils.data import DataLoader

from infobatch_mm.datasets.digit_scenes import DigitScenes
from infobatch_mm.datasets.indexed import IndexedDataset


@DATASETS.register_module()
class RareScenes(DigitScenes):
    """Scenes of which the first alone has a category of its own."""

    def get_cat_ids(self, idx):
        return [int(idx == 0)]


@DATASETS.register_module()
class BulkScenes(DigitScenes):
    """Scenes that can be fetched a batch at a time."""

    def __getitems__(self, indices):
        raise AssertionError('fetched past __getitem__')


def scenes(num: int, **settings) -> dict:
    return toys.scenes(num, pipeline=[PackSegInputs()], **settings)


def flaky(num: int, *broken: int) -> dict:
    return scenes(num, type='FlakyScenes', broken=broken)


def concat(*datasets: dict) -> dict:
    return dict(type='ConcatDataset', datasets=list(datasets))


def repeat(dataset: dict, times: int) -> dict:
    return dict(type='RepeatDataset', dataset=dataset, times=times)


BALANCED = dict(
    type='ClassBalancedDataset',
    dataset=scenes(4, type='RareScenes'),
    oversample_thr=0.5,  # repeats the first scene once
)
# Each with the scene that lies behind each index.
NESTS = dict(
    plain=(scenes(4), [0, 1, 2, 3]),
    concat=(concat(scenes(3), scenes(2, seed=1)), [0, 1, 2, 0, 1]),
    repeat=(repeat(scenes(3), 2), [0, 1, 2, 0, 1, 2]),
    balanced=(BALANCED, [0, 0, 1, 2, 3]),
)
nests = pytest.mark.parametrize(
    ('config', 'behind'), NESTS.values(), ids=NESTS
)


def marks(samples) -> list[tuple[int, bool]]:
    """Return index and refetched of each data sample."""
    return [(s.infobatch_index, s.infobatch_refetched) for s in samples]


def scene(sample) -> int:
    return int(sample.img_path.rsplit('/', 1)[1])


def fetch(dataset) -> list:
    return [dataset[i]['data_samples'] for i in range(len(dataset))]


@nests
def test_the_index_is_that_of_the_whole(config, behind):
    dataset = IndexedDataset(config)
    samples = fetch(dataset)
    assert len(dataset) == len(behind)
    assert marks(samples) == [(i, False) for i in range(len(behind))]
    assert list(map(scene, samples)) == behind
    assert 'infobatch_index' in samples[0].metainfo


@nests
def test_it_has_the_interface_of_the_wrapped_data_set(config, behind):
    dataset, stock = IndexedDataset(config), DATASETS.build(config)
    dataset.full_init()
    assert dataset.metainfo == stock.metainfo
    assert dataset._fully_initialized
    for index in range(len(behind)):
        assert dataset.get_data_info(index) == stock.get_data_info(index)
    assert hasattr(dataset, 'num_scenes') == hasattr(stock, 'num_scenes')
    with pytest.raises(AttributeError, match='no_such_thing'):
        dataset.no_such_thing  # noqa: B018


def test_it_has_the_categories_of_the_wrapped_data_set():
    dataset = IndexedDataset(BALANCED)
    cat_ids = [dataset.get_cat_ids(i) for i in range(len(dataset))]
    assert cat_ids == [[1], [1], [0], [0], [0]]


def test_it_wraps_a_built_data_set_and_builds_from_a_config():
    built = DATASETS.build(scenes(3))
    assert IndexedDataset(built).dataset is built
    config = dict(type='IndexedDataset', dataset=scenes(3))
    assert isinstance(DATASETS.build(config), IndexedDataset)


@pytest.mark.parametrize(
    'duplicate',
    [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))],
    ids=['deepcopy', 'pickle'],
)
def test_a_copy_indexes_on_its_own(duplicate):
    original = IndexedDataset(concat(flaky(2), flaky(4, 0)))
    dataset = duplicate(original)
    expected = [(i, i == 2) for i in range(6)]
    assert marks(fetch(dataset)) == expected
    dataset.dataset.datasets[1].broken = ()
    assert not any(refetched for _, refetched in marks(fetch(dataset)))
    assert marks(fetch(original)) == expected


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize(
    ('workers', 'persistent'), [(0, False), (2, False), (2, True)]
)
def test_marks_survive_the_dataloader(workers, persistent):
    order = [5, 1, 0, 6, 3, 2, 4]
    loader = DataLoader(
        IndexedDataset(concat(scenes(3), flaky(4, 2))),
        2,
        sampler=order,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=pseudo_collate,
    )
    for _ in range(2):
        samples = [s for batch in loader for s in batch['data_samples']]
        assert marks(samples) == [(i, i == 5) for i in order]
        for sample in samples:
            if not sample.infobatch_refetched:
                index = sample.infobatch_index
                assert scene(sample) == (index if index < 3 else index - 3)


@pytest.mark.parametrize(
    ('config', 'broken'),
    [
        (flaky(5, 1, 3), {1, 3}),
        (concat(scenes(2), flaky(3, 0)), {2}),
        (repeat(flaky(3, 1), 2), {1, 4}),
    ],
    ids=['plain', 'concat', 'repeat'],
)
def test_only_a_refetched_sample_is_marked_so(config, broken):
    dataset = IndexedDataset(config)
    for _ in range(2):
        assert marks(fetch(dataset)) == [
            (i, i in broken) for i in range(len(dataset))
        ]


def test_a_batch_is_not_fetched_past_the_index():
    loader = DataLoader(
        IndexedDataset(scenes(4, type='BulkScenes')),
        4,
        collate_fn=pseudo_collate,
    )
    (batch,) = loader
    assert marks(batch['data_samples']) == [(i, False) for i in range(4)]


BROKEN = (1, 3)


@DATASETS.register_module()
class RetryScenes(DigitScenes):
    """Scenes that replace unreadable ones in a ``__getitem__`` of its own."""

    def __init__(self, retry: str, **settings) -> None:
        self.retry, self.tries = retry, 0
        super().__init__(**settings)

    def prepare_data(self, idx):
        self.tries += 1
        if idx in BROKEN and not (self.retry == 'same' and self.tries % 2):
            raise OSError('truncated file')
        return super().prepare_data(idx)

    def _rand_another(self, idx):
        return idx - 1

    def __getitem__(self, idx):
        if self.retry == 'look':
            is_broken = self.get_data_info(idx)['sample_idx'] in BROKEN
            return self.prepare_data(idx - is_broken)
        try:
            return self.prepare_data(idx)
        except OSError:
            if self.retry == 'draw':
                return self.prepare_data(self._rand_another(idx))
            if self.retry == 'nested':
                return self[idx - 1]
            return self.prepare_data(idx if self.retry == 'same' else idx - 1)


@pytest.mark.parametrize('retry', ['other', 'draw', 'nested', 'look'])
@pytest.mark.parametrize('times', [1, 2])
def test_a_retry_of_the_data_sets_own_is_seen(retry, times):
    config = repeat(scenes(5, type='RetryScenes', retry=retry), times)
    samples = fetch(IndexedDataset(config))
    assert marks(samples) == [(i, i % 5 in BROKEN) for i in range(5 * times)]
    assert [scene(s) for s in samples] == [0, 0, 2, 2, 4] * times


def test_a_sample_that_is_read_at_the_second_try_is_itself():
    dataset = IndexedDataset(scenes(5, type='RetryScenes', retry='same'))
    samples = fetch(dataset)
    assert marks(samples) == [(i, False) for i in range(5)]
    assert dataset.dataset.tries == 6, 'one was tried twice'


@DATASETS.register_module()
class OtherScenes(DigitScenes):
    """Scenes that look several up, or that count from the other end."""

    def __init__(self, way: str, **settings) -> None:
        self.way = way
        super().__init__(**settings)

    def __getitem__(self, idx):
        if self.way == 'reversed':
            return self.prepare_data(len(self) - 1 - idx)
        partners = [(idx + k) % len(self) for k in (1, 2)]
        if self.way == 'partners first':
            _, sample = map(self.prepare_data, (partners[0], idx))
            return sample
        sample, *_ = map(self.prepare_data, (idx, *partners))
        return sample


@pytest.mark.parametrize('way', ['reversed', 'partners', 'partners first'])
def test_a_sample_made_of_several_is_no_substitute(way):
    dataset = IndexedDataset(scenes(5, type='OtherScenes', way=way))
    assert marks(fetch(dataset)) == [(i, False) for i in range(5)]


@DATASETS.register_module()
class KeptScenes(DigitScenes):
    """Scenes that are packed once, and kept."""

    def full_init(self):
        super().full_init()
        self.kept = {}

    def __getitem__(self, idx):
        if idx not in self.kept:
            self.kept[idx] = super().__getitem__(idx)
        return self.kept[idx]


def test_samples_that_are_kept_are_not_written_on():
    dataset = IndexedDataset(repeat(scenes(3, type='KeptScenes'), 4))
    samples = fetch(dataset)
    assert marks(samples) == [(i, False) for i in range(12)]
    kept = dataset.dataset.dataset.kept[0]
    assert 'infobatch_index' not in kept['data_samples']
    assert samples[0].gt_sem_seg is kept['data_samples'].gt_sem_seg
    assert 'infobatch_index' in samples[0].metainfo


@pytest.mark.parametrize('kind', [dict, list])
def test_samples_of_several_branches_are_refused(kind):
    def views(results):
        packed = PackSegInputs()(results)
        sample = packed['data_samples']
        views = dict(weak=sample) if kind is dict else [sample, sample]
        return dict(packed, data_samples=views)

    dataset = IndexedDataset(toys.scenes(2, pipeline=[views]))
    with pytest.raises(TypeError, match=f'DigitScenes gave .*{kind.__name__}'):
        dataset[0]


def test_draws_are_those_of_seed_round_and_index():
    def drawing(results):
        packed = PackSegInputs()(results)
        numbers = random.random(), np.random.rand(), torch.rand(()).item()
        packed['data_samples'].set_metainfo(dict(numbers=numbers))
        return packed

    dataset = IndexedDataset(toys.scenes(4, pipeline=[drawing]))
    stock = [s.numbers for s in fetch(dataset)]
    assert stock != [s.numbers for s in fetch(dataset)]
    found = {}
    for key in [(7, 0), (7, 1), (8, 0), (7, 0)]:
        dataset.seed_round(*key)
        numbers = [s.numbers for s in fetch(dataset)]
        assert found.setdefault(key, numbers) == numbers
    drawn = [x for numbers in found.values() for x in sum(numbers, ())]
    assert len(set(drawn)) == 3 * 4 * 3


def test_the_training_process_goes_on_drawing_as_it_stood():
    dataset = IndexedDataset(scenes(2))
    dataset.seed_round(7, 0)
    draws = []
    for is_between in (False, True):
        np.random.seed(3)
        torch.manual_seed(3)
        random.seed(3)
        if is_between:
            dataset[1]
        draws.append((random.random(), np.random.rand(), torch.rand(2)[0]))
    assert draws[0] == draws[1]
