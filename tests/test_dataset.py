"""IndexedDataset over a data set and over mmengine's wrappers."""

import copy
import pickle

import pytest
import toys
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmseg.datasets.transforms import PackSegInputs
from torch.utils.data import DataLoader

from infobatch_mm.dataset import IndexedDataset
from infobatch_mm.digit_scenes import DigitScenes


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
