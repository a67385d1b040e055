"""Two and four real processes: one plan, laid out over the ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import light
import pytest
import torch
import toys
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    get_rank,
    get_world_size,
    master_only,
)
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from processes import Child, run_ranks
from torch import nn

EPOCHS = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=5)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=40)


class Diary(Hook):
    """Write down what each rank trained on, round by round."""

    priority = 'LOWEST'

    def __init__(self):
        self.rounds = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        hook = toys.hook_of(runner)
        if len(self.rounds) <= hook.round:
            plan = hook.plan.indices.tolist()
            self.rounds.append(dict(plan=plan, ids=[], weights=[]))
        samples = data_batch['data_samples']
        ids = [sample.infobatch_index for sample in samples]
        self.rounds[-1]['ids'].append(ids)
        self.rounds[-1]['weights'].append(hook.ledger.weights.tolist())


def distributed(cfg):
    """Let a config run on gloo ranks, on the CPU, under both families."""
    if get_world_size() > 1:
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
        )
    return cfg


def train_rank(make_config, work_dir, *args):
    """Train on this rank; rank 0 saves what all ranks saw."""
    runner = toys.Runner.from_cfg(distributed(make_config(work_dir, *args)))
    diary = Diary()
    runner.register_hook(diary)
    runner.train()
    hook = toys.hook_of(runner)
    diaries = all_gather_object(diary.rounds)
    scores = all_gather_object(hook.board.scores.clone())
    if get_rank() == 0:
        model = getattr(runner.model, 'module', runner.model)
        torch.save(
            dict(
                diaries=diaries,
                scores=scores,
                weights=model.state_dict(),
                iters=runner.iter,
                now=hook.clock.now,
                budget=hook.clock.budget,
            ),
            work_dir / 'seen.pth',
        )


def run(world_size, work_dir, make_config, *args):
    work_dir.mkdir(exist_ok=True)
    if world_size == 1:
        child = Child(train_alone, make_config, work_dir, *args)
        assert child.join(300) == 0
    else:
        codes = run_ranks(world_size, train_rank, make_config, work_dir, *args)
        assert codes == [0] * world_size
    return torch.load(work_dir / 'seen.pth')


def train_alone(make_config, work_dir, *args):
    *settings, _ = args  # the last one counts progress
    train_rank(make_config, work_dir, *settings)


def light_run(work_dir, loop, batch_size, samples=32, overrides=None):
    return light.config(
        work_dir,
        loop,
        batch_size=batch_size,
        samples=samples,
        pacing='fewer_steps',  # as two ranks of two samples have it
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)
        ),
        **(overrides or {}),
    )


def rounds_of(work_dir):
    lines = (work_dir / 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize('world_size', [2, 4])
@pytest.mark.parametrize('loop', [EPOCHS, ITERS])
def test_ranks_share_one_plan(tmp_path, world_size, loop):
    seen = run(world_size, tmp_path, light_run, loop, 2)
    for other in seen['scores'][1:]:
        assert torch.equal(other, seen['scores'][0])
    assert not seen['scores'][0].isnan().any()
    assert seen['now'] == seen['budget']
    pruned = 0
    for ranks in zip(*seen['diaries'], strict=True):
        plan = ranks[0]['plan']
        assert all(rank['plan'] == plan for rank in ranks)
        # Equally many batches of equal size on each rank, and each global
        # batch is the next stretch of the plan: no duplicate, no drop.
        trained = []
        for step in zip(*(rank['ids'] for rank in ranks), strict=True):
            trained += [i for ids in zip(*step, strict=True) for i in ids]
        assert trained == plan[: len(trained)]
        if len(plan) < 32 and len(trained) == len(plan):
            pruned += 1
            weights = sum(sum(w) for rank in ranks for w in rank['weights'])
            assert weights == pytest.approx(32)
            assert len(plan) % (2 * world_size) == 0
    assert pruned


@pytest.mark.parametrize('counts', [1, 3])
@pytest.mark.parametrize('loop', [EPOCHS, ITERS])
def test_ranks_train_as_one_process_would(tmp_path, loop, counts):
    accumulate = dict(optim_wrapper=dict(accumulative_counts=counts))
    one = run(1, tmp_path / 'one', light_run, loop, 4, 32, accumulate)
    two = run(2, tmp_path / 'two', light_run, loop, 2, 32, accumulate)
    plans = [
        [r['plan'] for r in result['diaries'][0]] for result in (one, two)
    ]
    assert plans[0] == plans[1]
    assert any(len(plan) < 32 for plan in plans[0])
    for key, value in one['weights'].items():
        assert torch.allclose(two['weights'][key], value, atol=1e-6), key


class MeanOverRanks(torch.autograd.Function):
    """The mean over the ranks; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx, value):
        value = value.clone()
        all_reduce(value, op='mean')
        return value

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        all_reduce(gradient, op='mean')
        return gradient


@MODELS.register_module()
class GlooSyncBN(nn.BatchNorm2d):
    """``SyncBatchNorm``, which torch has for GPUs alone, over gloo."""

    def forward(self, x):
        if not self.training or get_world_size() == 1:
            return super().forward(x)
        axes = (0, 2, 3)
        moments = torch.stack([x.mean(axes), x.square().mean(axes)])
        mean, square = MeanOverRanks.apply(moments)
        variance = square - mean.square()
        count = get_world_size() * x.numel() / len(mean)
        unbiased = variance.detach() * count / (count - 1)
        self.num_batches_tracked += 1
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        shape = (1, -1, 1, 1)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return x * scale.view(shape) + shift.view(shape)


def segmentor(work_dir, batch_size, norm):
    """A real segmentor whose global batch, not the rank's, counts."""
    # So that rounding does not decide where a maximum is pooled from.
    torch.set_default_dtype(torch.float64)
    cfg = toys.config(
        work_dir,
        samples=16,
        batch_size=batch_size,
        epochs=3,
        delta=1,
        pacing='fewer_steps',  # as two ranks of two samples have it
    )
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        part = cfg.model[part]
        part.get('head', part).norm_cfg = norm
    return cfg


@pytest.mark.parametrize(
    'norm', [dict(type='GN', num_groups=2), dict(type='GlooSyncBN')]
)
def test_a_segmentor_trains_on_ranks_as_in_one_process(tmp_path, norm):
    one = run(1, tmp_path / 'one', segmentor, 4, norm)
    two = run(2, tmp_path / 'two', segmentor, 2, norm)
    assert any(len(r['plan']) < 16 for r in one['diaries'][0])
    for key, value in one['weights'].items():
        assert torch.allclose(two['weights'][key], value, atol=1e-6), key


def test_a_full_round_is_padded_as_default_sampler_does(tmp_path):
    overrides = dict(policy=dict(type='NoPruningPolicy'))
    seen = run(2, tmp_path, light_run, EPOCHS, 2, 27, overrides)
    for ranks in zip(*seen['diaries'], strict=True):
        ids = [i for rank in ranks for batch in rank['ids'] for i in batch]
        assert len(ids) == 28 and set(ids) == set(range(27))
    assert torch.equal(*seen['scores'])


def test_a_checkpoint_within_a_round_holds_the_scores_of_all_ranks(tmp_path):
    run(2, tmp_path, light_run, EPOCHS, 2)
    # After 3 of the 8 iterations of the first round.
    checkpoint = torch.load(tmp_path / 'iter_3.pth', weights_only=False)
    assert checkpoint['infobatch']['scores'].isfinite().sum() == 3 * 2 * 2


def test_a_nan_on_one_rank_reaches_all(tmp_path):
    overrides = dict(
        train_dataloader=dict(dataset=dict(dataset=dict(nan_at=(5,))))
    )
    loop = dict(EPOCHS, max_epochs=1)
    seen = run(2, tmp_path, light_run, loop, 2, 32, overrides)
    assert torch.equal(*(scores.isnan() for scores in seen['scores']))
    assert seen['scores'][0].isnan().nonzero().tolist() == [[5]]
    assert rounds_of(tmp_path)[0]['nonfinite'] == 1


@MODELS.register_module()
class Counting(light.LightModel):
    """Sum up over the ranks in each pass forward, as SyncBN does."""

    def forward(self, inputs, data_samples, mode):
        all_reduce(torch.ones(()))
        return super().forward(inputs, data_samples, mode)


def test_ranks_look_at_the_same_steps(tmp_path):
    """A loss that is not finite on one makes all of them look once more."""
    overrides = dict(
        model=dict(type='Counting'),
        train_dataloader=dict(dataset=dict(dataset=dict(nan_at=(5,)))),
    )
    loop = dict(EPOCHS, max_epochs=3)
    seen = run(2, tmp_path, light_run, loop, 2, 32, overrides)
    assert seen['now'] == seen['budget']


def seed_by_rank(work_dir):
    cfg = light.config(work_dir, EPOCHS)
    cfg.train_dataloader.sampler.seed = get_rank()
    cfg.randomness = dict(seed=None)
    return cfg


def expect_error(make_config, work_dir):
    runner = toys.Runner.from_cfg(distributed(make_config(work_dir)))
    sampler_seed = get_rank()

    class Reseed(Hook):
        def before_train(self, runner):
            runner.train_dataloader.sampler.seed = sampler_seed

    runner.register_hook(Reseed())
    with pytest.raises(RuntimeError, match='planned different rounds'):
        runner.train()


def test_ranks_that_plan_differently_are_stopped(tmp_path):
    assert run_ranks(2, expect_error, seed_by_rank, tmp_path) == [0, 0]


@DATASETS.register_module()
class RankedData(light.LightData):
    """Points in another order on each rank, as those of a set may be."""

    def load_data_list(self):
        return super().load_data_list()[:: -1 if get_rank() else 1]


def expect_other_samples(work_dir):
    cfg = light.config(work_dir, EPOCHS)
    cfg.train_dataloader.dataset.dataset.type = 'RankedData'
    with pytest.raises(RuntimeError, match='Sort the list'):
        toys.train(distributed(cfg))


def test_ranks_that_list_other_samples_are_stopped(tmp_path):
    assert run_ranks(2, expect_other_samples, tmp_path) == [0, 0]


@pytest.mark.parametrize('loop', [EPOCHS, ITERS])
@pytest.mark.parametrize('before, after', [(1, 2), (2, 1)])
def test_resume_on_another_number_of_ranks(tmp_path, loop, before, after):
    first = run(before, tmp_path, light_run, loop, 2)
    done = 5 if before == 2 else 10
    name = sorted(tmp_path.glob('iter_*.pth'), key=lambda p: int(p.stem[5:]))[
        done // 3
    ]
    saved = torch.load(name, weights_only=False)['infobatch']
    assert 'indices' in saved, 'the checkpoint should be within a round'
    overrides = dict(load_from=str(name), resume=True)
    second = run(after, tmp_path, light_run, loop, 2, 32, overrides)
    diary = [d[0] for d in second['diaries']]
    assert diary[0]['plan'] == saved['indices'].tolist()
    trained = [i for rank in diary for batch in rank['ids'] for i in batch]
    rest = saved['indices'][saved['samples_done'] :].tolist()
    assert set(trained) == set(rest) and len(trained) - len(rest) <= after
    assert second['now'] == second['budget']
    assert [r['round'] for r in rounds_of(tmp_path)] == list(
        range(len(rounds_of(tmp_path)))
    )
    assert first['budget'] and second['iters'] > 0


# Slurm's part, for two processes on this machine.
SRUN = """#!/usr/bin/env bash
set -eu
[[ $* == "-p local --job-name=toy --gres=gpu:2 --ntasks=2 \
--ntasks-per-node=2 --cpus-per-task=1 --kill-on-bad-exit=1 --gres=none "* ]]
while [ "$1" != python ]; do shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=here
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
wait $!
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames here" ] && echo 127.0.0.1
"""
STARTS = dict(
    dist=(['dist_train.sh', 'CONFIG', '2'], dict(PORT='PORT')),
    slurm=(
        ['slurm_train.sh', 'local', 'toy', 'CONFIG'],
        dict(
            MASTER_PORT='PORT',
            GPUS='2',
            GPUS_PER_NODE='2',
            CPUS_PER_TASK='1',
            SRUN_ARGS='--gres=none',
        ),
    ),
)


@pytest.mark.parametrize('start', STARTS)
def test_the_start_scripts_on_a_machine_without_gpu(start, tmp_path):
    """What users start, in two processes, with an EMA model."""
    cfg = toys.config(tmp_path / 'run', samples=16, batch_size=2, epochs=3)
    cfg.custom_imports = dict(
        imports=['infobatch_mm', 'infobatch_mm.digit_scenes']
    )
    cfg.custom_hooks.append(dict(type='EMAHook'))
    cfg.find_unused_parameters = True
    cfg.dump(tmp_path / 'config.json')
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = str(server.getsockname()[1])
    tools = Path(__file__).parents[1] / 'tools'
    python = Path(sys.executable).parent
    (script, *arguments), variables = STARTS[start]
    values = dict(CONFIG=str(tmp_path / 'config.json'), PORT=port)
    done = subprocess.run(
        [tools / script, *(values.get(word, word) for word in arguments)],
        env=os.environ
        | dict(
            PATH=f'{tmp_path}:{python}:{os.environ["PATH"]}',
            PYTHONPATH=str(tools.parent),
            CUDA_VISIBLE_DEVICES='',
            OMP_NUM_THREADS='1',
        )
        | {key: values.get(word, word) for key, word in variables.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = [r['kept'] for r in rounds_of(tmp_path / 'run')]
    assert kept[0] == 16 and all(k % 4 == 0 for k in kept)
    assert (tmp_path / 'run/infobatch_summary.json').exists()


@HOOKS.register_module()
class Uploads(CheckpointHook):
    """Save, and upload, on rank 0."""

    @master_only
    def after_train_epoch(self, runner):
        super().after_train_epoch(runner)


@HOOKS.register_module()
class SavesItself(Hook):
    """Save a checkpoint in the middle of a round."""

    priority = 'LOWEST'  # the step is scored by then

    def __init__(self, gathers):
        self.gathers = gathers

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if runner.iter == 2:
            if self.gathers:
                toys.hook_of(runner).gather_state()
            runner.save_checkpoint(runner.work_dir, 'own.pth')


def with_hooks(work_dir, loop, default=None, own=None):
    cfg = light.config(work_dir, loop, samples=32)
    if default:
        cfg.default_hooks.checkpoint = default
    cfg.custom_hooks += own or []
    cfg.log_level = 'WARNING'
    return distributed(cfg)


@pytest.mark.parametrize('ranks', [1, 2])
def test_a_checkpoint_hook_of_rank_0_alone_is_refused(
    tmp_path, monkeypatch, ranks
):
    where = 'infobatch_mm.host.checkpoint.get_world_size'
    monkeypatch.setattr(where, lambda: ranks)
    cfg = with_hooks(tmp_path, EPOCHS, dict(type='Uploads', interval=1))
    if ranks == 1:
        toys.train(cfg)
        return
    with pytest.raises(TypeError, match=r'Uploads\.after_train_epoch is @m'):
        toys.train(cfg)


@pytest.mark.parametrize('gathers', [True, False])
def test_what_others_save_says_what_it_lacks(tmp_path, gathers):
    own = [dict(type='SavesItself', gathers=gathers)]
    run(2, tmp_path, with_hooks, EPOCHS, None, own)
    (log,) = (path.read_text() for path in tmp_path.glob('*/*.log'))
    assert ('lacks the scores that other ranks' in log) != gathers
    checkpoint = torch.load(tmp_path / 'own.pth', weights_only=False)
    scores = checkpoint['infobatch']['scores']
    assert scores.isfinite().sum() == 3 * 4 * (1 + gathers)
