"""Data sets: which image an index stands for, the index itself, digits."""

import copy
import os
import pickle
import random
from functools import partial
from pathlib import Path

import light
import numpy as np
import pytest
import torch
import toys
from mmengine.dataset import (
    BaseDataset,
    ConcatDataset,
    pseudo_collate,
)
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets.transforms import PackSegInputs
from test_resume import StopAfter
from torch.utils.data import DataLoader

from infobatch_mm.datasets import digit_scenes
from infobatch_mm.datasets.digit_scenes import DigitScenes
from infobatch_mm.datasets.identity import fingerprint, path_number, roots_of
from infobatch_mm.datasets.indexed import IndexedDataset
from infobatch_mm.host.datasets import leaves

NAMES = [f'{name}.png' for name in 'abcdef']
SHUFFLED = random.Random(0).sample(NAMES, 6)


class Listed(BaseDataset):
    """Samples by their paths, or by their pixels."""

    def __init__(self, infos, root='', **settings):
        self.infos = infos
        super().__init__(data_root=root, **settings)

    def load_data_list(self):
        return [dict(info) for info in self.infos]


def by_path(names, root='data', label=0, **settings):
    infos = [dict(img_path=f'{root}/{n}', gt_label=label) for n in names]
    return Listed(infos, root, **settings)


def by_pixels(order):
    return Listed([dict(img=np.full((2, 2), i), gt_label=0) for i in order])


def test_it_is_of_the_samples_in_their_order():
    same = [
        by_path(NAMES),
        by_path(NAMES, serialize_data=False),
        by_path(NAMES, root='elsewhere/moved'),
        by_path(NAMES, label=1),
    ]
    assert len({fingerprint(dataset) for dataset in same}) == 1
    others = [by_path(SHUFFLED), by_path(NAMES[:-1])]
    assert fingerprint(same[0]) not in map(fingerprint, others)


def test_paths_of_pathlib_count_as_text():
    root = Path('data')
    infos = [dict(img_path=root / name, gt_label=0) for name in NAMES]
    dataset = Listed(infos, root)
    assert fingerprint(dataset) == fingerprint(by_path(NAMES))
    assert fingerprint(dataset) != fingerprint(Listed(infos[::-1], root))
    number = path_number(root / 'a.png', roots_of(dataset))
    assert number == path_number('data/a.png', ['data']) != 0


def test_names_of_files_need_not_be_text():
    """Latin-1 in the name of a file, as Python gives it."""
    names = [os.fsdecode(b'caf\xe9.png'), os.fsdecode(b'caf\xe8.png')]
    dataset = by_path(names)
    assert fingerprint(dataset) != fingerprint(by_path(names[::-1]))
    assert len({path_number(name, ()) for name in names}) == 2


def test_the_parts_of_a_data_set_count_by_their_length():
    first, second = (by_path([f'{k}{n}' for n in NAMES]) for k in 'ab')

    def twice(dataset):
        return dict(type='RepeatDataset', dataset=dataset, times=2)

    nests = [
        ConcatDataset([twice(first), second]),
        ConcatDataset([first, twice(second)]),
    ]
    assert len(nests[0]) == len(nests[1])
    assert fingerprint(nests[0]) != fingerprint(nests[1])
    same = ConcatDataset([twice(first), second])
    assert fingerprint(nests[0]) == fingerprint(same)
    # As checkpoints of before have it.
    plain = ConcatDataset([first, second])
    both = by_path([*(f'a{n}' for n in NAMES), *(f'b{n}' for n in NAMES)])
    assert fingerprint(plain) == fingerprint(both)


def test_samples_without_a_path_count_by_their_pixels():
    assert fingerprint(by_pixels(range(3))) == fingerprint(by_pixels(range(3)))
    assert fingerprint(by_pixels(range(3))) != fingerprint(
        by_pixels([1, 0, 2])
    )


def test_a_path_has_a_number_wherever_the_data_set_lies():
    assert path_number('/a/x.png', ['/a']) == path_number(
        '/b/c/x.png', ['/b/c']
    )
    assert path_number('/a/x.png', ['/a']) != path_number('/a/y.png', ['/a'])
    assert path_number(None, ['/a']) == 0


def test_a_folder_may_begin_with_the_name_of_another():
    names = ['data/mine' + k * '2' for k in range(8)]
    roots = roots_of(ConcatDataset([by_path(NAMES, name) for name in names]))
    numbers = {path_number(f'{name}/a.png', roots) for name in names}
    assert numbers == {path_number('a.png', ())}


@DATASETS.register_module()
class OrderedScenes(DigitScenes):
    """Scenes whose order is in the list, or in the fetching alone."""

    def __init__(self, order=None, *, is_listed=True, **settings):
        self.order, self.is_listed = order, is_listed
        super().__init__(**settings)

    def load_data_list(self):
        infos = super().load_data_list()
        if self.order and self.is_listed:
            infos = [infos[k] for k in self.order]
        return infos

    def prepare_data(self, idx):
        if self.order and not self.is_listed:
            idx = self.order[idx]
        return super().prepare_data(idx)


def config(work_dir, *, resume=False, **settings):
    saves = dict(checkpoint=dict(by_epoch=True, interval=1))
    cfg = toys.config(work_dir, samples=8, epochs=4, default_hooks=saves)
    scenes = dict(cfg.train_dataloader.dataset.dataset, type='OrderedScenes')
    cfg.train_dataloader.dataset.dataset = dict(scenes, **settings)
    cfg.resume = resume
    return cfg


@pytest.mark.parametrize(
    ('is_listed', 'message'),
    [(True, 'another order'), (False, 'is another image')],
)
def test_a_list_in_another_order_is_refused(tmp_path, is_listed, message):
    make = partial(config, tmp_path, is_listed=is_listed)
    runner = toys.Runner.from_cfg(make())
    runner.register_hook(StopAfter(5))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    # Within round 2, so that samples have been seen again.
    order = [1, 2, 3, 4, 5, 6, 7, 0]
    with pytest.raises(ValueError, match=message):
        toys.train(make(resume=True, order=order))


def test_the_same_list_is_resumed(tmp_path):
    runner = toys.Runner.from_cfg(config(tmp_path))
    runner.register_hook(StopAfter(5))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert toys.hook_of(toys.train(config(tmp_path, resume=True))).clock.done


@DATASETS.register_module()
class ClipScenes(DigitScenes):
    """Another scene each time, as a random frame of a clip."""

    def prepare_data(self, idx):
        return super().prepare_data(np.random.randint(len(self)))


def test_another_image_each_time_is_left_alone(tmp_path):
    cfg = config(tmp_path, type='ClipScenes')
    runner = toys.Runner.from_cfg(cfg)
    runner.register_hook(StopAfter(5))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner = toys.train(config(tmp_path, resume=True, type='ClipScenes'))
    assert toys.hook_of(runner).clock.done


# The digit scenes


def assert_same(first, second):
    for key in ('img', 'gt_seg_map'):
        np.testing.assert_array_equal(first[key], second[key])


def test_scene_depends_on_seed_split_and_index_alone():
    scenes = DigitScenes('train', num_scenes=8)
    more = DigitScenes('train', num_scenes=64)
    scenes[5]  # what was fetched before makes no difference
    np.random.seed(1)
    assert_same(scenes[3], more[3])
    assert_same(scenes[-1], more[7])
    for other in (
        scenes[4],
        DigitScenes('train', seed=1)[3],
        DigitScenes('val')[3],
    ):
        assert (other['img'] != more[3]['img']).any()


@pytest.mark.parametrize('num_workers', [1, 2])
def test_workers_give_the_same_scenes(num_workers):
    scenes = DigitScenes('train', num_scenes=8)
    loader = DataLoader(
        scenes,
        batch_size=2,
        num_workers=num_workers,
        collate_fn=list,
    )
    fetched = [scene for batch in loader for scene in batch]
    for index, scene in enumerate(fetched):
        assert scene['img_path'] == f'digits/train/{index:05d}'
        assert_same(scene, scenes[index])


def test_splits_share_no_source_digit(monkeypatch):
    used = {'train': set(), 'val': set()}
    ink, labels = digit_scenes._load_digits()
    place = digit_scenes._place
    for split, seen in used.items():
        scenes = DigitScenes(split, num_scenes=200)

        def spy(rng, digit, *args, seen=seen):
            seen.add(digit.tobytes())
            return place(rng, digit, *args)

        monkeypatch.setattr(digit_scenes, '_place', spy)
        for scene in scenes:
            assert scene is not None
    assert len(used['train']) > 150 and len(used['val']) > 100
    assert not used['train'] & used['val']
    train, val = (DigitScenes(s, num_scenes=1).digit_ids for s in used)
    assert sorted([*train, *val]) == list(range(len(labels)))


@pytest.mark.parametrize('size', [32, 50, 64])
def test_scene_has_the_fields_that_transforms_expect(size):
    scene = DigitScenes('val', size=size)[0]
    assert scene['img'].shape == (size, size, 3)
    assert scene['img'].dtype == scene['gt_seg_map'].dtype == np.uint8
    assert scene['seg_fields'] == ['gt_seg_map']
    assert scene['img_shape'] == scene['ori_shape'] == (size, size)


def test_all_classes_appear_and_no_other_label():
    scenes = DigitScenes('train', num_scenes=200)
    labels = [np.unique(scene['gt_seg_map']) for scene in scenes]
    assert set(np.concatenate(labels)) == set(range(11))
    assert len(scenes.metainfo['classes']) == 11
    assert len(scenes.metainfo['palette']) == 11
    # Every scene shows ground, and hardly any lost its last digit.
    assert all(0 in found for found in labels)
    assert sum(len(found) == 1 for found in labels) <= 2


def test_difficulty_differs_from_scene_to_scene():
    scenes = list(DigitScenes('train', num_scenes=200))
    grain = [
        np.abs(np.diff(scene['img'].astype(float), axis=1)).mean()
        for scene in scenes
    ]
    low, high = np.quantile(grain, [0.1, 0.9])
    assert high > 2 * low
    counts = [len(np.unique(scene['gt_seg_map'])) - 1 for scene in scenes]
    assert np.mean(np.array(counts) == 1) > 0.4
    assert max(counts) >= 4


def test_stock_transforms_and_collate_take_it():
    init_default_scope('mmseg')
    scenes = DATASETS.build(
        dict(
            type='DigitScenes',
            split='train',
            num_scenes=4,
            pipeline=[
                dict(type='RandomCrop', crop_size=(48, 48)),
                dict(type='RandomFlip', prob=1.0),
                dict(type='PhotoMetricDistortion'),
                dict(type='PackSegInputs'),
            ],
        )
    )
    batch = pseudo_collate([scenes[index] for index in range(4)])
    assert torch.stack(batch['inputs']).shape == (4, 3, 48, 48)
    sample = batch['data_samples'][2]
    assert sample.img_path == 'digits/train/00002'
    assert sample.flip
    assert sample.gt_sem_seg.data.shape == (1, 48, 48)
    assert sample.gt_sem_seg.data.dtype == torch.int64


@pytest.mark.parametrize(
    'setting, value',
    [
        ('split', 'test'),
        ('num_scenes', 0),
        ('num_scenes', 2.5),
        ('size', 31),
        ('seed', -1),
        ('seed', None),
    ],
)
def test_wrong_settings_are_named(setting, value):
    settings = dict(split='train') | {setting: value}
    with pytest.raises(ValueError, match=f'{setting} must be .*{value}'):
        DigitScenes(**settings)


def test_near_duplicates_differ_in_noise_alone():
    plain = DigitScenes('train', num_scenes=40)
    scenes = DigitScenes('train', num_scenes=40, near_duplicates=0.5)
    sources = [scenes.source(index) for index in range(40)]
    assert sources == [0] * 10 + [10] * 10 + list(range(20, 40))
    for index in (0, 10, 20, 39):
        assert_same(scenes[index], plain[index])
    for index in (3, 17):
        ours, theirs = scenes[index], plain[scenes.source(index)]
        np.testing.assert_array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])
        assert (ours['img'] != theirs['img']).any()
    # Without the noise nothing is left that differs: of a scene with little
    # of it the pixels are near one another.
    gap = ours['img'].astype(float) - theirs['img']
    assert abs(gap).mean() < 40


def test_a_rare_digit_is_drawn_rarely():
    odds = [1.0] * 9 + [0.1]
    plain = DigitScenes('train', num_scenes=300)
    rare = DigitScenes('train', num_scenes=300, digit_odds=odds)
    counts = [
        sum((scene['gt_seg_map'] == 10).any() for scene in scenes)
        for scenes in (plain, rare)
    ]
    assert 0 < counts[1] < counts[0] / 3


def test_cached_scenes_are_those_that_would_be_composed():
    plain = DigitScenes('train', num_scenes=8)
    cached = DigitScenes('train', num_scenes=8, cached=True)
    cached.compose = None  # they are composed by now
    first = cached[3]
    first['img'][:] = 0  # a transform may work in place
    assert_same(cached[3], plain[3])


@pytest.mark.parametrize(
    ('setting', 'value'),
    [('near_duplicates', 1.5), ('digit_odds', [1.0] * 9)],
)
def test_bad_shares_are_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        DigitScenes('train', **{setting: value})


# The data set that indexes


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
    kept = dataset.dataset.kept[0]
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


@DATASETS.register_module()
class OwnWays(DigitScenes):
    """Scenes whose methods are chosen by the instance, or called by name."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.prepare_data = self.prepare_bright

    def prepare_bright(self, idx):
        data = DigitScenes.prepare_data(self, idx)
        data['inputs'] = torch.full_like(data['inputs'], 7)
        return data

    def get_data_info(self, index):
        return super().get_data_info(index)

    def __getitem__(self, index):
        assert self.get_data_info(index=index)
        return self.prepare_data(idx=index)


@pytest.mark.parametrize('wrapped', [1, 2])
def test_what_an_instance_chooses_for_itself_is_called(wrapped):
    dataset = scenes(3, type='OwnWays')
    for _ in range(wrapped):
        dataset = IndexedDataset(copy.deepcopy(dataset))
    samples = [copy.deepcopy(dataset)[i] for i in range(3)]
    assert all((s['inputs'] == 7).all() for s in samples)
    assert marks([s['data_samples'] for s in samples]) == [
        (i, False) for i in range(3)
    ]


class OtherName:
    """A wrapper that names what it wraps otherwise."""

    def __init__(self, base):
        self.base, self.metainfo = DATASETS.build(base), {}

    def __len__(self):
        return len(self.base)

    def __getitem__(self, idx):
        return self.base[idx]


def test_substitutes_are_seen_behind_a_wrapper_of_any_kind():
    dataset = IndexedDataset(OtherName(flaky(5, 1, 3)))
    assert marks(fetch(dataset)) == [(i, i in (1, 3)) for i in range(5)]
    plain = DATASETS.build(scenes(4))
    assert fingerprint(OtherName(scenes(4))) == fingerprint(plain)


class Wrapper:
    """A wrapper that may hold its parts in any way."""

    metainfo = {}

    def __init__(self, parts, /, **held):
        self._parts = lambda: parts
        self.__dict__.update(held)

    def __len__(self):
        return sum(map(len, self._parts()))

    def __getitem__(self, idx):
        for part in self._parts():
            if idx < len(part):
                return part[idx]
            idx -= len(part)
        raise IndexError(idx)


def held_in_any_way():
    first, second = (DATASETS.build(flaky(4, 1)) for _ in range(2))
    both = [first, second]
    within = Wrapper(both, part=ConcatDataset(both))
    within.outer = Wrapper(both, inner=within)  # which names it back
    return {
        'a dict': Wrapper(both, datasets=dict(a=first, b=second)),
        'another name': Wrapper(both, sources=both),
        'a list': Wrapper(both, dataset=both),
        'wrapped twice': within,
        'beside others': Wrapper(both, dataset=object(), parts=tuple(both)),
        'beside samples': Wrapper(both, samples=['a', 'b'], parts=both),
    }


@pytest.mark.parametrize('way', held_in_any_way())
def test_substitutes_are_seen_however_a_wrapper_holds_its_parts(way):
    dataset = IndexedDataset(held_in_any_way()[way])
    assert marks(fetch(dataset)) == [(i, i in (1, 5)) for i in range(8)]
    assert [*map(type, leaves(dataset.wrapped))] == 2 * [toys.FlakyScenes]


class HandsOn:
    """A wrapper with an order of its own, which keeps what it has fetched.

    Its attributes are those of what it wraps, also those that take an index.
    """

    def __init__(self, dataset, order):
        self.dataset, self.order = DATASETS.build(dataset), order
        self.kept = {}

    def __getattr__(self, name):
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.order)

    def __getitem__(self, idx):
        if idx not in self.kept:
            self.kept[idx] = self.dataset[self.order[idx]]
        return self.kept[idx]


@pytest.mark.parametrize('order', [[3, 2, 1, 0], [0, 1] * 4])
def test_a_wrapper_that_hands_on_attributes_is_not_asked_for_paths(order):
    dataset = IndexedDataset(HandsOn(scenes(4), order))
    for _ in range(2):
        samples = fetch(dataset)
        assert marks(samples) == [(i, False) for i in range(len(order))]
        assert [scene(sample) for sample in samples] == order


def test_the_data_set_within_a_wrapper_is_reached_as_in_a_stock_run():
    dataset = IndexedDataset(repeat(scenes(3), 2))
    assert dataset.dataset is dataset.wrapped.dataset
    dataset.dataset.tag = 7
    assert dataset.wrapped.dataset.tag == 7


@DATASETS.register_module()
class CalledOtherwise(DigitScenes):
    """Scenes that call their own methods as the stock data set allows."""

    def get_data_info(self, idx=0):
        return super().get_data_info(idx[0] if isinstance(idx, list) else idx)

    def _rand_another(self, idx=None):
        return 0

    def __getitem__(self, idx):
        assert self.get_data_info() and self.get_data_info([idx, idx])
        again = np.int64(self._rand_another(idx=idx) if idx == 1 else idx)
        return self.prepare_data(again)


def test_methods_may_be_called_in_any_way():
    samples = fetch(IndexedDataset(scenes(3, type='CalledOtherwise')))
    assert marks(samples) == [(i, i == 1) for i in range(3)]


def undecorated(method):
    """Decorate as many do, without functools.wraps."""

    def inner(self, idx):
        return method(self, idx)

    return inner


@DATASETS.register_module()
class Decorated(DigitScenes):
    prepare_data = undecorated(DigitScenes.prepare_data)


def test_a_data_set_with_a_decorated_method_can_be_pickled():
    dataset = IndexedDataset(scenes(3, type='Decorated'))
    assert marks(fetch(pickle.loads(pickle.dumps(dataset)))) == [
        (i, False) for i in range(3)
    ]


def test_a_lazy_list_behind_any_wrapper_counts():
    """A wrapper may not tell what it wraps to list its samples."""

    def of(names):
        data = by_path(names, lazy_init=True)
        return IndexedDataset(Wrapper([data], base=data)).wrapped

    assert fingerprint(of(NAMES)) == fingerprint(by_path(NAMES))
    assert fingerprint(of(SHUFFLED)) == fingerprint(by_path(SHUFFLED))


class OwnStorage(Listed):
    """Samples that are listed, and never serialized."""

    def full_init(self):
        self.data_list = self.load_data_list()
        self._fully_initialized = True


def test_a_list_that_is_stored_otherwise_counts_too():
    def of(names):
        return OwnStorage([dict(img_path=f'data/{n}') for n in names], 'data')

    assert fingerprint(of(NAMES)) == fingerprint(by_path(NAMES))
    assert fingerprint(of(NAMES)) != fingerprint(of(SHUFFLED))


@DATASETS.register_module()
class PastedScenes(DigitScenes):
    """Scenes on which another is pasted, drawn as a substitute would be."""

    def prepare_data(self, idx):
        super().prepare_data(self._rand_another())
        return super().prepare_data(idx)


@pytest.mark.parametrize('name, said', [('PastedScenes', True), (None, False)])
def test_many_substitutes_are_told(tmp_path, name, said):
    cfg = toys.config(tmp_path, samples=8, epochs=1, log_level='WARNING')
    if name:
        cfg.train_dataloader.dataset.dataset.type = name
    toys.train(cfg)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert ('100% of the samples stand in for others' in log) == said


@pytest.mark.parametrize('exact', [True, False])
def test_workers_are_seeded_by_the_run(tmp_path, exact):
    seeds = {}
    for seed in (1, 2):
        cfg = toys.config(tmp_path / str(seed), samples=8, epochs=2)
        cfg.randomness = dict(seed=seed)
        cfg.custom_hooks[0].update(exact_resume=exact)
        runner = toys.train(cfg)
        state = runner.train_dataloader.generator
        seeds[seed] = state and state.initial_seed()
    assert (seeds[1] != seeds[2]) == exact


class Plain:
    """As a data set of PyTorch, with or without paths."""

    def __init__(self, has_paths):
        data = light.LightData(26)
        self.points = [data[i] for i in range(26)]
        self.has_paths = has_paths

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        data = copy.deepcopy(self.points[index])
        path = dict(img_path=f'{index}.png') if self.has_paths else {}
        data['data_samples'].set_metainfo(path)
        return data


@pytest.mark.parametrize('has_paths', [True, False])
def test_an_order_that_cannot_be_known_is_told_of(tmp_path, has_paths):
    cfg = light.config(
        tmp_path, dict(type='EpochBasedTrainLoop', max_epochs=8)
    )
    plain = dict(type=f'{__name__}.Plain', has_paths=has_paths)
    cfg.train_dataloader.dataset.dataset = plain
    cfg.log_level = 'WARNING'
    toys.train(cfg)
    (log,) = tmp_path.glob('*/*.log')
    told = log.read_text().count('no BaseDataset: if it lists them in another')
    assert told == (not has_paths)
