"""With nothing to prune, a run is the stock run, bit for bit."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import toys
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner.amp import autocast

TESTS = Path(__file__).parent
EPOCHS = 3

POLICIES = dict(
    ratio_of_zero=dict(type='InfoBatchPolicy', prune_ratio=0.0),
    no_pruning=dict(type='NoPruningPolicy'),
)
SETTINGS = {
    'plain': {},
    'amp': {'optim_wrapper.type': 'Bfloat16OptimWrapper'},
    # 12 iterations: groups that span epochs, and a remainder of 2.
    'accumulation': {'optim_wrapper.accumulative_counts': 5},
    'workers': {'workers': 2},
    'ema': {'ema': True},
    # What the look before the first step must not draw from.
    'random': {'random': True},
}


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """``AmpOptimWrapper`` with bfloat16, which mmengine refuses on a CPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


@HOOKS.register_module()
class Recorder(Hook):
    """Keep all that training computes: log vars, gradients and weights."""

    def before_train(self, runner):
        self.log_vars, self.gradients = [], []
        self.params = list(runner.model.parameters())
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self.before_step)

    def before_step(self, *_):
        # Of every step the norms, of the last the gradients themselves.
        self.last = [p.grad.clone() for p in self.params]
        self.gradients.append(torch.stack([g.norm() for g in self.last]))

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.log_vars.append({k: v.clone() for k, v in outputs.items()})

    def read(self, runner):
        emas = [h.ema_model for h in runner.hooks if isinstance(h, EMAHook)]
        return dict(
            log_vars=self.log_vars,
            gradients=self.gradients,
            last_gradients=self.last,
            weights=runner.model.state_dict(),
            ema=[model.state_dict() for model in emas],
        )


def make_random(cfg):
    """Let the pipeline and the heads draw random numbers."""
    dataset, head = cfg.train_dataloader.dataset, cfg.model.decode_head
    pipeline = [
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ]
    dataset.get('dataset', dataset).pipeline = pipeline
    head.get('head', head).dropout_ratio = 0.5


def record(
    work_dir,
    *,
    ema=False,
    random=False,
    exact_resume=None,
    score=None,
    **settings,
):
    """Train and return what the recorder saw; 14 samples, batches of 4."""
    cfg = toys.config(work_dir, samples=14, epochs=EPOCHS, **settings)
    if exact_resume is not None:
        (hook,) = cfg.custom_hooks
        hook.exact_resume = exact_resume
    if score is not None:
        cfg.custom_hooks[0].score = score
    if random:
        make_random(cfg)
    if ema:
        cfg.custom_hooks.append(dict(type='EMAHook'))
    cfg.custom_hooks.append(dict(type='Recorder'))
    runner = toys.train(cfg)
    recorder = next(h for h in runner.hooks if isinstance(h, Recorder))
    return recorder.read(runner)


# The data set is the package's own, and all that may be imported of it.
STOCK_SIDE = """
import sys, types
from pathlib import Path
import torch
tests, out = map(Path, sys.argv[1:])
package = types.ModuleType('infobatch_mm')
package.__path__ = [str(tests.parent / 'infobatch_mm')]
sys.modules['infobatch_mm'] = package
for file in (tests.parent / 'infobatch_mm').glob('[!_]*'):
    if file.stem not in ('digit_scenes', 'datasets'):
        sys.modules[f'infobatch_mm.{file.stem}'] = None
sys.path.insert(0, str(tests))
torch.set_num_threads(1)
import conftest
conftest.Config.pretty_text = property(conftest.plain_text)
import test_off_is_stock as twin
for name, settings in twin.SETTINGS.items():
    found = twin.record(out / name, pruned=False, **settings)
    torch.save(found, out / f'{name}.pth')
    conftest.stop_workers()
"""


@pytest.fixture(scope='module')
def stock(tmp_path_factory):
    """Folder of the stock runs, made where the package cannot be imported."""
    folder = tmp_path_factory.mktemp('stock')
    script = [sys.executable, '-c', STOCK_SIDE, str(TESTS), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    'policy, setting',
    [('no_pruning', 'plain'), ('no_pruning', 'random')]
    + [('ratio_of_zero', name) for name in SETTINGS],
)
def test_off_is_stock_bit_for_bit(stock, tmp_path, policy, setting):
    expected = torch.load(stock / f'{setting}.pth', weights_only=False)
    settings = dict(SETTINGS[setting])
    if (policy, setting) == ('ratio_of_zero', 'random'):
        # A policy that prunes has draws of its own, for exact resuming.
        settings['exact_resume'] = False
    found = record(tmp_path, policy=POLICIES[policy], **settings)
    assert len(found['log_vars']) == EPOCHS * 4
    assert bool(found['ema']) == (setting == 'ema')
    for part in expected:
        torch.testing.assert_close(
            found[part], expected[part], rtol=0, atol=0, msg=part
        )


@pytest.mark.parametrize('setting', ['amp', 'accumulation', 'random'])
def test_it_is_so_with_scores_from_the_backward_pass(stock, tmp_path, setting):
    expected = torch.load(stock / f'{setting}.pth', weights_only=False)
    found = record(
        tmp_path,
        policy=POLICIES['no_pruning'],
        score='gradient_norm',
        **SETTINGS[setting],
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_pruning_is_not_stock(stock, tmp_path):
    """The comparison can tell runs apart."""
    expected = torch.load(stock / 'plain.pth', weights_only=False)
    found = record(tmp_path)
    first, later = found['log_vars'][0], found['log_vars'][-1]
    assert first == expected['log_vars'][0]
    assert later != expected['log_vars'][-1]


# Runs with `cfg.compile`, for which mmengine compiles `train_step`


# Dynamo warns where it traces, and fails if its own warnings are errors.
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('score', ['image_mean', 'gradient_norm'])
def test_a_compiled_step_scores_and_weighs_as_a_plain_one(tmp_path, score):
    """Traced by Dynamo, run by PyTorch's own kernels: equal to the bit."""
    runners = []
    for name in ('plain', 'compiled'):
        cfg = toys.config(tmp_path / name, epochs=2, delta=1.0)
        cfg.model.decode_head = toys.weighted(toys.fcn_head())
        cfg.model.auxiliary_head = None
        cfg.custom_hooks[0].score = score
        if name == 'compiled':
            cfg.compile = dict(backend='eager')
        runners.append(toys.train(cfg))
    plain, compiled = runners
    assert plain.model.train_step.__name__ == 'train_step'
    assert hasattr(compiled.model.train_step, '_torchdynamo_orig_callable')
    ours, theirs = (toys.hook_of(each) for each in runners)
    assert ours.samples_seen < ours.samples_budget
    torch.testing.assert_close(
        ours.board.scores, theirs.board.scores, rtol=0, atol=0
    )
    torch.testing.assert_close(
        compiled.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0
    )
