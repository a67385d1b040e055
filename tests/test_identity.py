"""An index that stands for another image than before is noticed."""

import random
from functools import partial

import numpy as np
import pytest
import toys
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from test_resume import StopAfter

from infobatch_mm.datasets.identity import fingerprint, path_number
from infobatch_mm.digit_scenes import DigitScenes

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
