"""A resumed run repeats every random draw: of samples and of the model.

Each run is killed a few times here; ``KILLS=20 pytest
tests/test_exact_resume.py`` kills it twenty times, a segmentor with mmseg's
augmentation too, which takes half an hour on two cores.
"""

import os
import random
from functools import partial

import light
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import toys
from mmengine.registry import DATASETS, MODELS
from processes import Child, start_ranks
from test_distributed import distributed
from test_resume import Progress, StopAfter, assert_same_end, last_checkpoint

KILLS = int(os.environ.get('KILLS', 2))
EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=8)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=50)
LOOPS = pytest.mark.parametrize('loop', [EPOCHS, ITERS], ids=['epoch', 'iter'])
LOADERS = dict(
    main=dict(),
    fresh=dict(workers=2, train_dataloader=dict(persistent_workers=False)),
    persistent=dict(workers=2),
)
loaders = pytest.mark.parametrize('loader', LOADERS.values(), ids=LOADERS)


@DATASETS.register_module()
class NoisyData(light.LightData):
    """Points that are drawn anew each time, by all three generators."""

    def prepare_data(self, idx):
        data = super().prepare_data(idx)
        noise = torch.from_numpy(np.random.randn(4).astype(np.float32))
        noise += torch.randn(4) + random.random()
        data['inputs'] = data['inputs'] + noise
        return data


@MODELS.register_module()
class DroppingModel(light.LightModel):
    """A model that drops some of what it is given."""

    def forward(self, inputs, data_samples, mode):
        training = mode == 'loss'
        inputs = [F.dropout(x, training=training) for x in inputs]
        return super().forward(inputs, data_samples, mode)


def config(work_dir, loop, *, resume=False, exact=None, every=2, **settings):
    """Return a light run that draws at random, validates and saves often."""
    saves = dict(by_epoch=False, interval=every, max_keep_ckpts=1)
    cfg = light.config(
        work_dir,
        dict(loop, val_interval=7 if 'max_iters' in loop else 2),
        val=True,
        default_hooks=dict(checkpoint=saves),
        **settings,
    )
    cfg.model.type = 'DroppingModel'
    cfg.train_dataloader.dataset.dataset.type = 'NoisyData'
    cfg.custom_hooks[0].exact_resume = exact
    cfg.resume = resume
    return cfg


AUGMENTED = [
    dict(type='RandomResize', scale=(36, 36), ratio_range=(1.0, 1.5)),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]


def segmentor(work_dir, *, resume=False, **settings):
    """Return a segmentor with mmseg's augmentation, dropout and workers."""
    heads = dict(
        decode=toys.uper_head(dropout_ratio=0.3),
        auxiliary=toys.fcn_head(dropout_ratio=0.3),
    )
    saves = dict(by_epoch=False, interval=2, max_keep_ckpts=1)
    cfg = toys.config(
        work_dir, epochs=5, default_hooks=dict(checkpoint=saves), **settings
    )
    cfg.model = toys.model(pruned=True, **heads)
    cfg.train_dataloader.dataset.dataset.pipeline = AUGMENTED
    toys.make_iter_based(cfg, max_iters=30)
    cfg.resume = resume
    return cfg


def run(make_config, resume, hooks=(), progress=None):
    runner = toys.Runner.from_cfg(distributed(make_config(resume=resume)))
    if progress is not None:
        hooks = [*hooks, Progress(progress)]
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()


def start(ranks, make_config, resume):
    """Start a run on one process or on several."""
    if ranks == 1:
        return [Child(run, make_config, resume, ())]
    return start_ranks(ranks, run, make_config, resume, (), is_counted=True)


def finish(ranks, make_config, resume=False):
    children = start(ranks, make_config, resume)
    assert [child.join(timeout=600) for child in children] == [0] * ranks


def kill_until_done(ranks, make_config, *, seed):
    """SIGKILL a run at random moments, then let it finish."""
    draw, done = random.Random(seed), 0
    for _ in range(KILLS):
        first, *others = start(ranks, make_config, True)
        # Many kills must come early, or the run ends before the last.
        moment = draw.randint(1, 7 if KILLS < 10 else 3), draw.uniform(0, 0.02)
        done += first.kill_after(*moment, timeout=300)
        for child in others:
            child.process.kill()
            child.process.join()
    finish(ranks, make_config, resume=True)
    return done


def check_killed(tmp_path, make_config, *, ranks=1, seed=0):
    """Assert that a run that is killed ends as one that is not."""
    reference, killed = tmp_path / 'reference', tmp_path / 'killed'
    finish(ranks, partial(make_config, reference))
    done = kill_until_done(ranks, partial(make_config, killed), seed=seed)
    assert done > 0.9 * KILLS
    assert_same_end(killed, reference)


@LOOPS
@loaders
def test_killed_at_random_moments(tmp_path, loop, loader):
    check_killed(tmp_path, partial(config, loop=loop, **loader))


@loaders
def test_two_processes_killed_at_random_moments(tmp_path, loader):
    """Each rank has draws of its own."""
    settings = dict(
        loader, batch_size=2, randomness=dict(diff_rank_seed=True), samples=32
    )
    make_config = partial(config, loop=ITERS, **settings)
    check_killed(tmp_path, make_config, ranks=2)


@pytest.mark.skipif(KILLS < 20, reason='takes minutes; set KILLS=20')
@pytest.mark.parametrize('ranks', [1, 2])
@loaders
def test_a_segmentor_killed_at_random_moments(tmp_path, loader, ranks):
    check_killed(tmp_path, partial(segmentor, **loader), ranks=ranks)


def stop_and_go_on(work_dir, iters, make_config):
    with pytest.raises(KeyboardInterrupt):
        run(make_config, False, [StopAfter(iters)])
    finish(1, make_config, resume=True)


@LOOPS
def test_stopped_anywhere(tmp_path, loop):
    """Within a round, at its ends, and beside a validation."""
    make_config = partial(config, loop=loop, every=1)
    run(partial(make_config, tmp_path / 'reference'), False)
    for iters in (6, 7, 12, 14, 17):
        stopped = tmp_path / str(iters)
        stop_and_go_on(stopped, iters, partial(make_config, stopped))
        assert_same_end(stopped, tmp_path / 'reference')


def test_a_segmentor_goes_on(tmp_path):
    make_config = partial(segmentor, **LOADERS['persistent'])
    run(partial(make_config, tmp_path / 'reference'), False)
    stopped = tmp_path / 'stopped'
    stop_and_go_on(stopped, 9, partial(make_config, stopped))
    assert_same_end(stopped, tmp_path / 'reference')


def weights(work_dir):
    return last_checkpoint(work_dir)['state_dict']['head.fc.weight']


def test_without_it_draws_are_others(tmp_path):
    """The comparison can tell runs apart."""
    make_config = partial(config, loop=ITERS, exact=False)
    run(partial(make_config, tmp_path / 'reference'), False)
    stopped = tmp_path / 'stopped'
    stop_and_go_on(stopped, 9, partial(make_config, stopped))
    assert not torch.equal(weights(stopped), weights(tmp_path / 'reference'))


def test_the_workers_do_not_matter(tmp_path):
    """A sample's draws depend on seed, round and index alone."""
    for name, loader in LOADERS.items():
        run(partial(config, tmp_path / name, ITERS, **loader), False)
    first, *others = (weights(tmp_path / name) for name in LOADERS)
    for other in others:
        assert torch.equal(other, first)


def test_on_another_number_of_processes_the_model_draws_anew(tmp_path):
    make_config = partial(config, tmp_path, ITERS, samples=32)
    with pytest.raises(KeyboardInterrupt):
        run(make_config, False, [StopAfter(9)])
    name = (tmp_path / 'last_checkpoint').read_text()
    checkpoint = torch.load(name, weights_only=False)
    checkpoint['infobatch']['random_states'] *= 2
    torch.save(checkpoint, name)
    runner = toys.Runner.from_cfg(make_config(resume=True))
    warnings = []
    runner.logger.warning = lambda text, *args: warnings.append(text)
    runner.train()
    assert any('2 processes, and this run has 1' in text for text in warnings)
