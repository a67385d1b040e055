"""The ways into a run: the snippets of docs/ways_in.md, and processes."""

import json
import math
import os
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import light
import mmseg
import pytest
import torch
import toys
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, LOOPS, Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    Runner,
)
from mmseg import registry
from mmseg.models import EncoderDecoder
from test_docs import snippets
from torch.utils.data import DataLoader

import infobatch_mm.override
from infobatch_mm import IndexedDataset, InfoBatchHook, enable
from infobatch_mm.config import prune_dataloader
from infobatch_mm.digit_scenes import DigitScenes

LINE = 'A line in a config'
COMMAND = 'A command line for every stock config'


@pytest.fixture
def stock(tmp_path):
    """Write a stock config with hooks and imports of its own."""
    cfg = toys.config(tmp_path / 'run', pruned=False, samples=12, epochs=3)
    toys.make_iter_based(cfg, max_iters=9)
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.custom_imports = dict(imports='infobatch_mm.digit_scenes')
    cfg.dump(tmp_path / 'stock.py')
    return tmp_path / 'stock.py'


def config_of(stock, snippet):
    path = stock.with_name('child.py')
    path.write_text(snippet)
    return Config.fromfile(path)


def options_of(line):
    """Return what a train tool makes of its arguments."""
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(shlex.split(line)).cfg_options


def digests(cfg):
    """Train, and return the digests of the plans of the rounds."""
    hooks = [type(hook).__name__ for hook in toys.train(cfg).hooks]
    assert 'EMAHook' in hooks
    lines = Path(cfg.work_dir, 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line)['digest'] for line in lines]


@pytest.fixture
def expected(stock):
    def digests_of(**options):
        cfg = Config.fromfile(stock)
        cfg.work_dir = str(stock.with_name('expected'))
        cfg.visualizer.name = f'expected_{next(toys.NUMBERS)}'
        cfg.experiment_name = cfg.visualizer.name
        return digests(enable(cfg, **options))

    return digests_of


@pytest.mark.parametrize(
    'number, options',
    [(0, {}), (1, dict(delta=0.9, policy=dict(prune_ratio=0.7)))],
)
def test_command_line(stock, expected, number, options):
    line = snippets('ways_in.md', 'sh', COMMAND)[number]
    cfg = Config.fromfile(stock)
    cfg.merge_from_dict(options_of(line))
    assert digests(cfg) == expected(**options)


@pytest.mark.parametrize('number', [0, 1])
def test_line_in_a_config(stock, expected, number):
    snippet = snippets('ways_in.md', 'python', LINE)[number]
    cfg = config_of(stock, snippet)
    assert 'infobatch_mm.digit_scenes' in cfg.custom_imports.imports
    assert digests(cfg) == expected(delta=0.9)


@pytest.mark.parametrize('heads', ['both', 'no_auxiliary'])
def test_components(stock, expected, heads):
    if heads == 'no_auxiliary':
        cfg = Config.fromfile(stock)
        del cfg.model['auxiliary_head']
        cfg.dump(stock)
    (snippet,) = [
        text
        for text in snippets('ways_in.md', 'python', 'Components')
        if 'WeightedDecodeHead' in text
    ]
    cfg = config_of(stock, snippet)
    assert ('auxiliary_head' in cfg.model) == (heads == 'both')
    assert digests(cfg) == expected()


def test_in_python(stock, expected, monkeypatch):
    (snippet,) = snippets('ways_in.md', 'python', 'In Python')
    monkeypatch.chdir(stock.parent)
    exec(snippet, {})
    lines = Path('run/infobatch.jsonl').read_text().splitlines()
    found = [json.loads(line)['digest'] for line in lines]
    options = dict(delta=0.9, policy=dict(type='QuantilePolicy'))
    assert found == expected(**options)


# mmengine's new style


def class_of(name):
    """Return the class that a type's name stands for in a config of mmseg."""
    each = vars(registry).values()
    registries = [one for one in each if isinstance(one, Registry)]
    found = (one.get(name) for one in registries)
    return next(kind for kind in found if kind is not None)


def in_new_style(cfg):
    """Return the text of a config in pure Python, whose types are classes."""
    imports = set()

    def text(value):
        if isinstance(value, list):
            return f'[{", ".join(map(text, value))}]'
        if not isinstance(value, dict):
            return repr(value)
        kind, parts = value.get('type'), dict(value)
        shown = [f'{k}={text(v)}' for k, v in parts.items() if k != 'type']
        if kind:
            kind = class_of(kind)
            imports.add(f'from {kind.__module__} import {kind.__name__}')
            shown.insert(0, f'type={kind.__name__}')
        return f'dict({", ".join(shown)})'

    lines = [f'{k} = {text(v)}' for k, v in cfg.to_dict().items()]
    return '\n'.join([*imports, *lines])


@pytest.fixture
def stock_in_new_style(stock):
    cfg = Config.fromfile(stock)
    cfg.pop('custom_imports')
    with DATASETS.switch_scope_and_registry('mmseg'):
        stock.with_name('stock_classes.py').write_text(in_new_style(cfg))
    return stock.with_name('stock_classes.py')


NEW_STYLE = "In mmengine's new style"


@pytest.mark.parametrize(
    ('number', 'options'), [(0, dict(delta=0.9)), (1, {})]
)
def test_new_style(stock_in_new_style, expected, number, options, monkeypatch):
    snippet = snippets('ways_in.md', 'python', NEW_STYLE)[number]
    path = stock_in_new_style.with_name('child.py')
    path.write_text(snippet.replace('.stock ', '.stock_classes '))
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.dataset.type in (DigitScenes, IndexedDataset)
    assert digests(cfg) == expected(**options)


def test_new_style_with_enable(stock_in_new_style, expected):
    cfg = enable(Config.fromfile(stock_in_new_style))
    assert cfg.model.type is EncoderDecoder
    assert digests(cfg) == expected()


# A loop without mmengine


@pytest.fixture(scope='module')
def loop():
    """What the page's loop defines."""
    (snippet,) = snippets(
        'ways_in.md', 'python', 'A training loop without mmengine'
    )
    assert len(snippet.splitlines()) <= 60
    defined = {}
    exec(snippet, defined)
    return defined


def points(total):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(total, 4, generator=generator)
    labels = torch.randint(3, (total,), generator=generator)
    return [*zip(inputs, labels.tolist(), strict=True)]


def parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    return model, optimizer, scheduler


def by_hand(data, policy, epochs, batch_size):
    """Train as the page does, with weighted losses and scores in a dict."""
    model, optimizer, scheduler = parts()
    scores, kept = {}, []
    for epoch in range(epochs):
        known = [scores.get(index, math.nan) for index in range(len(data))]
        plan = policy.plan(
            torch.tensor(known),
            generator=torch.Generator().manual_seed(epoch),
            multiple_of=batch_size,
            progress=epoch / epochs,
        )
        kept.append(len(plan))
        for begin in range(0, len(plan), batch_size):
            batch = slice(begin, begin + batch_size)
            indices, weights = plan.indices[batch], plan.weights[batch]
            loss = 0.0
            for index, weight in zip(indices.tolist(), weights, strict=True):
                point, label = data[index]
                each = -model(point).log_softmax(0)[label]
                scores[index] = each.item()
                loss += weight * each / len(indices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return model, scores, kept


def test_the_loop_trains_with_its_weights(loop):
    data, (model, optimizer, scheduler) = points(26), parts()
    settings = dict(epochs=8, batch_size=4, policy=loop['policy'])
    scores, kept = loop['train'](model, data, optimizer, scheduler, **settings)
    expected = by_hand(data, loop['policy'], 8, 4)
    assert kept == expected[2]
    # All in the first epoch and in the last, 0.875 of the run being over.
    assert kept[0] == kept[7] == 26 and max(kept[1:7]) < 26
    torch.testing.assert_close(model.weight, expected[0].weight)
    in_order = [expected[1][index] for index in range(26)]
    torch.testing.assert_close(scores, torch.tensor(in_order))


# Configs from which a part was taken

LOOPS_WITHOUT = dict(
    stock_epochs=dict(type='EpochBasedTrainLoop', max_epochs=3),
    stock_iters=dict(type='IterBasedTrainLoop', max_iters=9),
    epochs=dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=3),
    iters=dict(type='InfoBatchIterBasedTrainLoop', max_iters=9),
)


def check_refused(cfg, error, message):
    steps = []
    with toys.count_steps(steps), pytest.raises(error, match=message):
        toys.train(cfg)
    assert not steps


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('loop', LOOPS_WITHOUT.values(), ids=LOOPS_WITHOUT)
def test_a_sampler_without_its_hook_is_refused(tmp_path, loop, workers):
    cfg = light.config(tmp_path, loop, workers=workers)
    cfg.custom_hooks = [dict(type='EMAHook')]
    message = r'no InfoBatchHook to plan .*default_hooks='
    check_refused(cfg, RuntimeError, message)


def test_a_hook_without_its_sampler_is_refused(tmp_path):
    cfg = light.config(tmp_path, LOOPS_WITHOUT['stock_epochs'])
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    message = 'InfoBatchSampler, but it is DefaultSampler'
    check_refused(cfg, TypeError, message)


@pytest.mark.parametrize('loop', ['epochs', 'iters'])
def test_a_loop_of_ours_without_hook_and_sampler_is_refused(tmp_path, loop):
    cfg = light.config(tmp_path, LOOPS_WITHOUT[loop], pruned=False)
    check_refused(cfg, TypeError, 'to be an InfoBatchSampler, but it is')


def test_a_sampler_iterates_outside_of_a_run(tmp_path):
    cfg = light.config(tmp_path, LOOPS_WITHOUT['stock_epochs'])
    loader = toys.Runner.build_dataloader(cfg.train_dataloader, seed=7)
    assert sorted(loader.sampler) == list(range(26))
    assert len(list(loader)) == 7


def test_the_loop_of_the_recipe_may_be_mmengines_own(tmp_path):
    runner = toys.train(light.config(tmp_path, LOOPS_WITHOUT['stock_epochs']))
    assert type(runner.train_loop) is EpochBasedTrainLoop
    hook = toys.hook_of(runner)
    assert hook.samples_seen < hook.samples_budget


# The three ways in, and explicit components, make the same run.
# Each way is a process of its own, started as a user would start it.

REPO = Path(__file__).parents[1]
OUR_TOOL = REPO / 'tools' / 'train.py'
MMSEG_TOOL = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
OVERRIDE = 'infobatch_mm.override.IterBasedTrainLoop'
RATIO = 0.7
OPTIONS = dict(policy=dict(type='InfoBatchPolicy', prune_ratio=RATIO))


def stock_config(folder, *imports):
    """Return a stock config with validation, by iterations."""
    cfg = toys.config(folder, pruned=False, samples=16)
    toys.make_iter_based(cfg, max_iters=16)
    cfg.custom_imports = dict(imports=['infobatch_mm.digit_scenes', *imports])
    toys.add_validation(cfg, interval=8)
    cfg.log_level = 'INFO'
    cfg.default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
    return cfg


def read(path):
    return list(map(json.loads, path.read_text().splitlines()))


def run(tool, cfg, *arguments):
    """Train in a new process; return plans, losses, mIoU and the log."""
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True)
    path = folder / 'config.py'
    cfg.dump(path)
    done = subprocess.run(
        [sys.executable, tool, path, *arguments],
        env=os.environ | dict(PYTHONPATH=str(REPO), OMP_NUM_THREADS='1'),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    rounds, lines = read(folder / 'infobatch.jsonl'), read(scalars)
    return (
        [(line['kept'], line['digest']) for line in rounds],
        [line['loss'] for line in lines if 'loss' in line],
        [line['mIoU'] for line in lines if 'mIoU' in line],
    ), done.stderr + done.stdout


@pytest.fixture(scope='module')
def explicit(tmp_path_factory):
    folder = tmp_path_factory.mktemp('explicit') / 'run'
    return run(OUR_TOOL, enable(stock_config(folder), **OPTIONS))[0]


def test_the_run_prunes(explicit):
    rounds, losses, scores = explicit
    assert rounds[0][0] == 16 and 8 <= rounds[1][0] < 16
    assert len(losses) == 4 * len(rounds)
    assert len(scores) == 2


def test_by_our_tool(explicit, tmp_path):
    result, _ = run(
        OUR_TOOL,
        stock_config(tmp_path / 'run'),
        '--infobatch',
        '--infobatch-options',
        f'policy.prune_ratio={RATIO}',
    )
    assert result == explicit


def test_by_the_registry_under_the_stock_tool(explicit, tmp_path):
    cfg = stock_config(tmp_path / 'run', 'infobatch_mm.override')
    cfg.train_cfg.infobatch = OPTIONS
    result, log = run(MMSEG_TOOL, cfg)
    assert result == explicit
    assert (
        'has taken the train loop over: the train dataloader prunes, and '
        'these heads are weighted: decode_head (UPerHead), auxiliary_head '
        '(FCNHead). Validation and test are untouched'
    ) in log


BY_HOOK = (
    'default_hooks.infobatch.type=infobatch_mm.override.PruneHook',
    f'default_hooks.infobatch.policy.prune_ratio={RATIO}',
)
BY_LOOP = (
    f'train_cfg.type={OVERRIDE}',
    f'train_cfg.infobatch.policy.prune_ratio={RATIO}',
)


@pytest.mark.parametrize('settings', [BY_HOOK, BY_LOOP], ids=['hook', 'loop'])
def test_by_the_command_line_of_the_stock_tool(explicit, settings, tmp_path):
    cfg = stock_config(tmp_path / 'run')
    result, _ = run(MMSEG_TOOL, cfg, '--cfg-options', *settings)
    assert result == explicit


# The override prunes the runs whose config asks for it, and no other

ASK_BY_IMPORT = {'custom_imports.imports': ['infobatch_mm.override']}
ASK_BY_HOOK = {
    'default_hooks.infobatch.type': 'infobatch_mm.override.PruneHook'
}
ASK_BY_OPTIONS = {'train_cfg.infobatch': {}}
ASK_BY_TYPE = {'train_cfg.type': 'infobatch_mm.override.EpochBasedTrainLoop'}
WAYS = dict(
    imports=ASK_BY_IMPORT,
    hook=ASK_BY_HOOK,
    options=ASK_BY_OPTIONS,
    type=ASK_BY_TYPE,
)


def round_digests(cfg):
    rounds_file = toys.hook_of(toys.train(cfg)).records.rounds_file
    lines = map(json.loads, rounds_file.read_text().splitlines())
    return [line['digest'] for line in lines]


def with_loop(cfg, **train_cfg):
    """Set train_cfg as a whole; assigning it would merge nothing away."""
    cfg._cfg_dict['train_cfg'] = train_cfg
    return cfg


def config(folder, **settings):
    loop = dict(type='EpochBasedTrainLoop', max_epochs=4)
    return light.config(folder, loop, **settings)


def asking_stock(folder, asking=ASK_BY_IMPORT):
    cfg = config(folder, pruned=False)
    cfg.merge_from_dict(asking)
    return cfg


LOOPS_OF_CONFIGS = dict(
    name=dict(type='EpochBasedTrainLoop'),
    by_epoch=dict(by_epoch=True),
    scope=dict(type='mmengine.EpochBasedTrainLoop'),
    path=dict(type='mmengine.runner.loops.EpochBasedTrainLoop'),
    a_class=dict(type=EpochBasedTrainLoop),
)


@pytest.mark.parametrize(
    'asking', [ASK_BY_IMPORT, ASK_BY_HOOK], ids=['imp', 'hook']
)
@pytest.mark.parametrize('by', LOOPS_OF_CONFIGS.values(), ids=LOOPS_OF_CONFIGS)
def test_a_loop_by_any_name(tmp_path, by, asking, monkeypatch):
    built = []
    monkeypatch.setattr(
        'infobatch_mm.override.take_over',
        lambda runner, dataloader, options: (
            built.append(1) or prune_dataloader(dataloader)
        ),
    )
    cfg = with_loop(asking_stock(tmp_path, asking), max_epochs=4, **by)
    loop = Runner.from_cfg(cfg).train_loop
    assert type(loop) is infobatch_mm.override.EpochBasedTrainLoop
    assert built == [1]


@pytest.mark.parametrize('asking', WAYS.values(), ids=WAYS)
def test_the_run_is_the_explicit_run(tmp_path, asking):
    result = round_digests(asking_stock(tmp_path / 'stock', asking))
    explicit = config(tmp_path / 'explicit')
    for setting in ('pacing', 'score'):  # which tests are run with
        explicit.custom_hooks[0].pop(setting, None)
    assert result == round_digests(explicit)
    assert len(set(result)) == 4


# The runs of other configs


def states(runner):
    return list(runner.model.state_dict().values())


@pytest.mark.parametrize('asking', WAYS.values(), ids=WAYS)
def test_a_later_baseline_is_the_stock_run(tmp_path, asking):
    before = toys.train(config(tmp_path / 'before', pruned=False))
    pruned = toys.train(asking_stock(tmp_path / 'pruned', asking))
    Runner.from_cfg(asking_stock(tmp_path / 'not_trained', asking))
    after = toys.train(config(tmp_path / 'after', pruned=False))
    assert type(after.train_loop) is EpochBasedTrainLoop
    assert type(after.model.head) is light.LightHead
    assert pruned.iter == after.iter == before.iter == 28
    hook = toys.hook_of(pruned)
    assert hook.samples_seen < hook.samples_budget
    assert all(map(torch.equal, states(before), states(after)))


def test_two_runs_at_a_time(tmp_path):
    pruned = Runner.from_cfg(asking_stock(tmp_path / 'pruned'))
    cfg = config(tmp_path / 'stock', pruned=False)
    loop = dict(by_epoch=False, max_iters=4)
    baseline = Runner.from_cfg(with_loop(cfg, **loop))
    assert type(baseline.train_loop) is IterBasedTrainLoop
    pruned_loop = infobatch_mm.override.EpochBasedTrainLoop
    assert type(pruned.train_loop) is pruned_loop


def test_the_registry_keeps_the_stock_loops():
    assert LOOPS.get('EpochBasedTrainLoop') is EpochBasedTrainLoop
    assert LOOPS.get('IterBasedTrainLoop') is IterBasedTrainLoop


def test_a_hook_that_is_there_is_kept(tmp_path):
    cfg = config(tmp_path, delta=0.5)
    cfg.merge_from_dict(ASK_BY_IMPORT)
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = [h for h in runner.hooks if isinstance(h, InfoBatchHook)]
    assert [hook.delta for hook in found] == [0.5]


# Options


def test_the_options_of_a_hook_that_is_merged(tmp_path):
    cfg = asking_stock(tmp_path, ASK_BY_HOOK)
    cfg.custom_hooks = [dict(type='EMAHook')]  # of a child config
    options = {'delta': 0.5, 'policy.prune_ratio': 0.7}
    cfg.merge_from_dict(
        {f'default_hooks.infobatch.{k}': v for k, v in options.items()}
    )
    hook = toys.hook_of(Runner.from_cfg(cfg))
    assert repr(hook.policy) == 'InfoBatchPolicy(0.7 until 0.5)'


def test_a_policy_without_a_type(tmp_path):
    cfg = asking_stock(tmp_path)
    cfg.merge_from_dict({'train_cfg.infobatch.policy.prune_ratio': 0.7})
    runner = Runner.from_cfg(cfg)
    assert runner.train_loop.max_epochs == 4
    policy = toys.hook_of(runner).policy
    assert repr(policy) == 'InfoBatchPolicy(0.7 until 0.875)'


def test_enabling_a_config_that_asks_for_the_override(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.merge_from_dict(ASK_BY_HOOK | ASK_BY_IMPORT)
    cfg.train_cfg.infobatch = dict(delta=0.5)
    enabled = enable(cfg, score_momentum=0.8)
    assert enabled.custom_hooks == []
    options = dict(delta=0.5, score_momentum=0.8)
    kind = 'infobatch_mm.override.PruneHook'
    assert enabled.default_hooks.infobatch == dict(type=kind, **options)
    runner = Runner.from_cfg(enabled)
    assert len(runner.train_loop.dataloader) == 6
    hook = toys.hook_of(runner)
    assert (hook.delta, hook.score_momentum) == (0.5, 0.8)


def test_options_beside_a_hook_are_an_error(tmp_path):
    cfg = config(tmp_path, delta=0.5)
    cfg.train_cfg.infobatch = dict(delta=0.9)
    message = r"train_cfg.infobatch=\{'delta': 0.9\} .* in custom_hooks"
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


BAD = [
    (dict(prune_ratio=0.3), 'prune_ratio=0.3 is not an option'),
    (dict(delta=2), 'delta must be in .* got 2'),
    (dict(policy='QuantilePolicy'), "policy='QuantilePolicy' is not the"),
    (dict(policy=dict(prune_ration=0.3)), 'its settings: prune_ratio, keep$'),
]


@pytest.mark.parametrize('options, message', BAD)
@pytest.mark.parametrize('at', ['train_cfg', 'default_hooks'])
def test_a_wrong_option_is_an_error(tmp_path, at, options, message):
    if at == 'train_cfg':
        cfg = asking_stock(tmp_path)
        cfg.train_cfg.infobatch = options
    else:
        cfg = asking_stock(tmp_path, ASK_BY_HOOK)
        cfg.default_hooks.infobatch.update(options)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


# Runs that cannot be taken over


def test_another_loop_is_an_error(tmp_path):
    cfg = asking_stock(tmp_path)
    cfg.train_cfg.type = 'SelfTrainingLoop'
    with pytest.raises(ValueError, match="type is 'SelfTrainingLoop', and"):
        Runner.from_cfg(cfg).train()


def test_a_dataloader_made_by_hand_is_an_error(tmp_path):
    runner = Runner.from_cfg(asking_stock(tmp_path))
    runner._train_dataloader = DataLoader([1])
    with pytest.raises(TypeError, match='but it is a DataLoader'):
        runner.train()


@pytest.mark.parametrize(
    'by', [dict(type='EpochBasedTrainLoop'), dict(by_epoch=True)]
)
def test_a_flexible_runner_is_an_error(tmp_path, by):
    cfg = asking_stock(tmp_path)
    cfg.strategy = dict(type='SingleDeviceStrategy')
    cfg.env_cfg = dict()
    runner = FlexibleRunner.from_cfg(with_loop(cfg, max_epochs=4, **by))
    with pytest.raises(TypeError, match='FlexibleRunner has no model yet'):
        runner.train()
