"""What only a GPU can show: no waiting, NCCL, mixed precision, determinism.

``make test-gpu`` runs the tests of the device ``cuda``. With all other tests
they are run on the CPU, so that the code here is run at all where there is no
GPU. Of CUDA all was seen once, on an H200, but for the whole runs of
``start``: NCCL, SyncBN and float16.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import toys
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models import decode_heads
from mmseg.registry import MODELS
from test_exact_resume import config as drawing
from test_resume import assert_same_end

from benchmarks import step
from infobatch_mm.heads import attach
from infobatch_mm.ledger import Ledger, copy_to_device
from infobatch_mm.rescale import scale_gradient
from infobatch_mm.scores import ScoreBoard

REPO = Path(__file__).parents[1]
HAS_CUDA = torch.cuda.is_available()
CUDA = pytest.param(
    'cuda', marks=pytest.mark.skipif(not HAS_CUDA, reason='no CUDA device')
)
CPU = pytest.param(
    'cpu', marks=pytest.mark.skipif(HAS_CUDA, reason='runs take the GPU')
)
devices = pytest.mark.parametrize('device', [CPU, CUDA])


@contextmanager
def no_waiting(device):
    """Raise an error where the host waits for the device."""
    if device == 'cpu':
        yield
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


# A step does not wait for the device


@devices
@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_weights_ledger_and_scores_wait_for_nothing(device, momentum):
    device_of = torch.device(device)
    board = ScoreBoard(64, device=device, momentum=momentum, shared=True)
    ledger, weights = Ledger(), torch.linspace(1, 2, 64)
    logits = torch.randn(8, 3, device=device, requires_grad=True)
    for begin in range(0, 64, 8):
        ids = torch.arange(begin, begin + 8)
        with no_waiting(device):
            of_batch = copy_to_device(weights[ids], device_of)
            slots = copy_to_device(ids, device_of)
            # The head is given the samples in another order.
            ledger.open(slots, of_batch, samples=ids.tolist())
            rows = ledger.rows(ids.tolist()[::-1])
            losses = scale_gradient(logits, rows.weights).square().mean(1)
            losses.mean().backward()
            ledger.record(None, losses, rows)
            board.update(*ledger.close())
    with no_waiting(device):
        scores = board.scores
    expected = logits.detach().square().mean(1).flip(0).repeat(8)
    torch.testing.assert_close(scores, expected)
    # The gradients of the mean, by the weights in the order of the rows.
    of_rows = weights.view(8, 8).sum(0).flip(0).to(device)
    expected = of_rows[:, None] * logits.detach() * (2 / 24)
    torch.testing.assert_close(logits.grad, expected)


@devices
@pytest.mark.parametrize('score', ['image_mean', 'class_balanced'])
def test_a_weighted_head_waits_for_nothing(device, score):
    """But for the accuracy that mmseg logs, which waits in a stock run too."""
    init_default_scope('mmseg')
    head = attach(MODELS.build(toys.fcn_head(in_channels=8))).to(device)
    head.infobatch_ledger = ledger = Ledger(
        class_balanced=score == 'class_balanced'
    )
    logits = torch.randn(4, 11, 8, 8, device=device, requires_grad=True)
    ids = copy_to_device(torch.arange(4), torch.device(device))
    samples = step.random_batch(small_batch(32), 4, 11)['data_samples']
    samples = [sample.to(device) for sample in samples]
    nothing = patch.object(
        decode_heads.decode_head, 'accuracy', lambda *_, **__: logits.sum()
    )
    with nothing, no_waiting(device):
        ledger.open(ids, torch.ones(4, device=device))
        losses = head.loss_by_feat(logits, samples)
        losses['loss_ce'].backward()
        _, scores = ledger.close()
    if score == 'image_mean':
        torch.testing.assert_close(
            scores.mean(), losses['loss_ce'].detach().float()
        )
    assert scores.isfinite().all() and logits.grad.any()


def small_batch(size):
    return Config(dict(model=dict(data_preprocessor=dict(size=(size, size)))))


# What is added up in another order


@devices
def test_sums_are_the_same_each_time(device):
    """``index_add`` is not, on a GPU, unless PyTorch is asked for it."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(512, generator=generator)
    places = torch.randint(16, (512,), generator=generator)
    ledger = Ledger()
    ledger.open(torch.arange(16), torch.ones(16, device=device))

    def sums():
        return ledger._mean_by_sample(losses.to(device), places.to(device))

    torch.use_deterministic_algorithms(True)
    try:
        first = sums()
        assert all(torch.equal(sums(), first) for _ in range(20))
    finally:
        torch.use_deterministic_algorithms(False)
    expected = [losses[places == place].mean() for place in range(16)]
    torch.testing.assert_close(first.cpu(), torch.stack(expected))


# Whole runs, as they are started


BACKEND = """
from pathlib import Path

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class NoteBackend(Hook):
    def before_train(self, runner):
        used = dist.get_backend() if dist.is_initialized() else 'none'
        norms = {type(m).__name__ for m in runner.model.modules()}
        lines = [used, 'SyncBatchNorm' if 'SyncBatchNorm' in norms else '']
        Path(runner.work_dir, 'used.txt').write_text('\\n'.join(lines))
"""


def write_config(folder, device):
    """Write the config of a small segmentor, with SyncBN on a GPU."""
    cfg = toys.config(folder / 'run', samples=32, epochs=4)
    norm = dict(type='SyncBN' if device == 'cuda' else 'BN')
    cfg.model.backbone.norm_cfg = norm
    for name in ('decode_head', 'auxiliary_head'):
        cfg.model[name].head.norm_cfg = norm
    cfg.custom_hooks.append(dict(type='NoteBackend'))
    imports = ['infobatch_mm', 'infobatch_mm.digit_scenes', 'note_backend']
    cfg.custom_imports = dict(imports=imports)
    cfg.dump(folder / 'config.py')
    (folder / 'note_backend.py').write_text(BACKEND)
    return folder / 'config.py'


def start(command, folder, config, *flags):
    """Run a command of the package in processes of its own."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = str(server.getsockname()[1])
    ours = [str(REPO), str(folder)]
    ours += filter(None, [os.environ.get('PYTHONPATH')])
    env = dict(PATH=path, PORT=port, PYTHONPATH=os.pathsep.join(ours))
    done = subprocess.run(
        [*command, *flags],
        env=os.environ | env,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder / 'run/infobatch.jsonl').read_text().splitlines()
    kept = [json.loads(line)['kept'] for line in lines]
    assert kept[0] == 32 and min(kept[1:3]) < 32
    return (folder / 'run/used.txt').read_text().splitlines()


@devices
@pytest.mark.parametrize('ranks', [1, 2])
def test_the_launcher(device, ranks, tmp_path):
    if device == 'cuda' and torch.cuda.device_count() < ranks:
        pytest.skip(f'{ranks} ranks over NCCL need as many GPUs')
    if device == 'cpu' and ranks == 1:
        pytest.skip('the code of one rank is that of two')
    config = write_config(tmp_path, device)
    command = ['bash', REPO / 'tools/dist_train.sh', config, str(ranks)]
    used = start(command, tmp_path, config)
    of_gpu = ['nccl', 'SyncBatchNorm']
    assert used == (of_gpu if device == 'cuda' else ['gloo'])


@devices
def test_mixed_precision(device, tmp_path):
    """In float16, with the scaler; ``--amp`` is refused on a CPU."""
    config = write_config(tmp_path, 'cpu')
    command = [sys.executable, '-m', 'infobatch_mm', 'train', config]
    start(command, tmp_path, config, *['--amp'] * (device == 'cuda'))
    last = torch.load(tmp_path / 'run/epoch_4.pth', weights_only=False)
    assert last['infobatch']['scores'].isfinite().all()
    scaler = last['optimizer'].get('loss_scaler')
    assert (scaler is not None) == (device == 'cuda')
    assert scaler is None or scaler['scale'] > 0


@devices
@pytest.mark.parametrize('loader', [{}, dict(workers=2)], ids=['main', 'two'])
def test_a_resumed_run_is_exact(device, loader, tmp_path):
    """A run ends as one that goes on from a checkpoint in its middle."""
    loop = dict(type='InfoBatchIterBasedTrainLoop', max_iters=40)
    folders = tmp_path / 'whole', tmp_path / 'resumed'
    cfg = drawing(folders[0], loop, **loader)
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    assert toys.train(cfg).model.head.fc.weight.device.type == device
    cfg = drawing(folders[1], loop, resume=True, **loader)
    cfg.load_from = str(folders[0] / 'iter_14.pth')
    folders[1].mkdir()
    shutil.copy(folders[0] / 'infobatch.jsonl', folders[1])
    toys.train(cfg)
    assert_same_end(*folders)


# What a step costs


@devices
def test_steps_are_timed(device, monkeypatch):
    name = 'infobatch_mm::quickstart/upernet_tiny_1xb16-20e_digits-48x48.py'
    monkeypatch.setitem(step.CONFIGS, 'digits', name)
    found = step.measure('digits', 8, pairs=2, device=device)
    assert found['kept'] == 0.75 and found['stock_seconds'] > 0
    # With fewer steps all is saved that the steps themselves do not cost.
    cost = found['step_ratio'] - 1
    assert found['fewer_steps'] == pytest.approx(1 - 3 * cost)
    assert 'smaller_batches' in found
