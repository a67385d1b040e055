"""enable(cfg): a stock config in, a pruned one out."""

import json

import light
import pytest
import toys
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from mmseg.registry import MODELS, TRANSFORMS, VISUALIZERS

import infobatch_mm
from infobatch_mm import QuantilePolicy, enable
from infobatch_mm.binding import find_heads
from infobatch_mm.commands.running import nested_options
from infobatch_mm.host.packages import alias_config_bases
from infobatch_mm.pruning import PruningPolicy
from infobatch_mm.pruning.registry import PRUNING_POLICIES

STOCK = {
    'plain': 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'no_auxiliary': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'cascade': 'ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',
    'point': 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'several_auxiliary': 'icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py',
    'stages': 'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',
    'concat': 'deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py',
    'repeat': 'unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py',
}
TRAINING = {
    'model',
    'train_dataloader',
    'train_cfg',
    'custom_hooks',
    'custom_imports',
}


def weighted(head):
    return dict(type='infobatch_mm.WeightedDecodeHead', head=head)


@pytest.fixture(params=STOCK.values(), ids=STOCK)
def stock(request):
    alias_config_bases()
    return get_config(f'mmseg::{request.param}')


def test_only_what_pruning_needs_is_changed(stock):
    before = stock.to_dict()
    cfg = enable(stock, delta=0.9).to_dict()
    assert stock.to_dict() == before
    assert {k for k in cfg if cfg[k] != before.get(k)} == TRAINING
    loader = before['train_dataloader']
    assert cfg['train_dataloader'] == loader | dict(
        sampler=dict(type='infobatch_mm.InfoBatchSampler', shuffle=True),
        dataset=dict(
            type='infobatch_mm.IndexedDataset', dataset=loader['dataset']
        ),
    )
    loop = dict(type='infobatch_mm.InfoBatchIterBasedTrainLoop')
    assert cfg['train_cfg'] == before['train_cfg'] | loop
    hook = dict(type='infobatch_mm.InfoBatchHook', delta=0.9)
    assert cfg['custom_hooks'] == [hook]
    assert cfg['custom_imports'] == dict(imports=['infobatch_mm'])
    for name in 'decode_head', 'auxiliary_head':
        head, wrapped = before['model'].get(name), cfg['model'].get(name)
        if isinstance(head, list):
            assert wrapped == [weighted(one) for one in head]
        elif head:
            assert wrapped == weighted(head)


def test_enabling_twice_is_enabling_once(stock):
    once = enable(stock, delta=0.9)
    assert enable(once).to_dict() == once.to_dict()


def test_the_result_dumps_and_reloads(stock, tmp_path):
    cfg = enable(stock, policy=dict(type='RandomPolicy', prune_ratio=0.3))
    path = tmp_path / 'pruned.py'
    cfg.dump(path)
    assert Config.fromfile(path).to_dict() == cfg.to_dict()


def test_later_options_replace_earlier_ones(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.custom_hooks = [dict(type='EMAHook')]
    quantile = dict(type='QuantilePolicy')
    cfg = enable(enable(cfg, delta=0.9), policy=quantile)
    assert cfg.custom_hooks == [
        dict(type='EMAHook'),
        dict(type='infobatch_mm.InfoBatchHook', delta=0.9, policy=quantile),
    ]


@pytest.mark.parametrize(
    'before, after',
    [
        (None, ['infobatch_mm']),
        ('mmdet.models', ['mmdet.models', 'infobatch_mm']),
        (['infobatch_mm', 'x'], ['infobatch_mm', 'x']),
    ],
)
def test_imports_are_appended(tmp_path, before, after):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.custom_imports = dict(imports=before, allow_failed_imports=False)
    imports = enable(cfg).custom_imports
    assert imports == dict(imports=after, allow_failed_imports=False)


@pytest.mark.parametrize(
    'train_cfg, loop',
    [
        (dict(by_epoch=True, max_epochs=3), 'InfoBatchEpochBasedTrainLoop'),
        (dict(by_epoch=False, max_iters=3), 'InfoBatchIterBasedTrainLoop'),
        (
            dict(type='mmengine.EpochBasedTrainLoop', max_epochs=3),
            'InfoBatchEpochBasedTrainLoop',
        ),
    ],
)
def test_loops_by_any_name(tmp_path, train_cfg, loop):
    cfg = toys.config(tmp_path, pruned=False)
    cfg._cfg_dict['train_cfg'] = train_cfg
    pruned = enable(cfg).train_cfg
    assert pruned.type == f'infobatch_mm.{loop}'
    assert 'by_epoch' not in pruned


def test_an_enabled_run_is_the_explicit_run(tmp_path):
    explicit = toys.config(tmp_path / 'explicit')
    stock = toys.config(tmp_path / 'enabled', pruned=False)
    hook = explicit.custom_hooks[0]
    hook.pop('pacing', None)  # what the environment may ask
    enabled = enable(stock, policy=hook.policy, delta=hook.delta)
    digests = []
    for cfg in explicit, enabled:
        rounds_file = toys.hook_of(toys.train(cfg)).records.rounds_file
        lines = map(json.loads, rounds_file.read_text().splitlines())
        digests.append([line['digest'] for line in lines])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


# Configs in other forms


def by_prefix(cfg):
    for part in parts_of_mmseg(cfg):
        part.type = f'mmseg.{part.type}'


def by_path(cfg):
    for part in parts_of_mmseg(cfg):
        kind = registry_of(part).get(part.type)
        part.type = f'{kind.__module__}.{kind.__name__}'


def by_class(cfg):
    for part in parts_of_mmseg(cfg):
        part.type = registry_of(part).get(part.type)
    cfg.train_cfg.type = EpochBasedTrainLoop
    cfg.train_dataloader.sampler.type = DefaultSampler


def by_scope_key(cfg):
    cfg.model._scope_ = cfg.train_dataloader.dataset._scope_ = 'mmseg'
    cfg.visualizer._scope_ = 'mmseg'


def parts_of_mmseg(cfg):
    model = cfg.model
    heads = [model.decode_head, model.auxiliary_head]
    losses = [head.loss_decode for head in heads]
    transforms = cfg.train_dataloader.dataset.pipeline
    own = [model, model.data_preprocessor, model.backbone, cfg.visualizer]
    return [*own, *heads, *losses, *transforms]


def registry_of(part):
    registries = (MODELS, TRANSFORMS, VISUALIZERS)
    return next(r for r in registries if r.get(part.type))


@pytest.mark.parametrize('scope', ['absent', None, 'mmengine', 'elsewhere'])
@pytest.mark.parametrize('form', [by_prefix, by_path, by_class, by_scope_key])
def test_any_form_and_scope(tmp_path, form, scope):
    cfg = toys.config(tmp_path, pruned=False)
    form(cfg)
    cfg.default_scope = scope
    if scope == 'absent':
        del cfg._cfg_dict['default_scope']
    runner = toys.Runner.from_cfg(enable(cfg))
    loader = runner.train_loop.dataloader
    assert type(loader.sampler) is infobatch_mm.InfoBatchSampler
    assert type(loader.dataset) is infobatch_mm.IndexedDataset
    assert set(find_heads(runner.model)) == {'decode_head', 'auxiliary_head'}
    assert toys.hook_of(runner).delta == 0.875
    loop = infobatch_mm.InfoBatchEpochBasedTrainLoop
    assert type(runner.train_loop) is loop


@pytest.mark.parametrize(
    'kind',
    [
        QuantilePolicy,
        'QuantilePolicy',
        'infobatch_mm.QuantilePolicy',
        'infobatch_mm.pruning.QuantilePolicy',
    ],
)
def test_a_policy_by_any_name(tmp_path, kind):
    stock = toys.config(tmp_path, pruned=False)
    cfg = enable(stock, policy=dict(type=kind, quantiles=(0.2, 1.0)))
    cfg.dump(tmp_path / 'dumped.py')
    (hook,) = Config.fromfile(tmp_path / 'dumped.py').custom_hooks
    assert 'quantiles (0.2, 1.0)' in repr(HOOKS.build(hook).policy)


def test_a_policy_without_a_type(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    (hook,) = enable(cfg, policy=dict(prune_ratio=0.7)).custom_hooks
    assert hook.policy == dict(type='InfoBatchPolicy', prune_ratio=0.7)


def test_options_in_the_config(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.train_cfg.infobatch = dict(delta=0.5, warmup_rounds=2)
    enabled = enable(cfg, delta=0.9)
    (hook,) = enabled.custom_hooks
    assert (hook.delta, hook.warmup_rounds) == (0.9, 2)
    assert 'infobatch' not in enabled.train_cfg


def test_options_of_a_command_line():
    settings = {'policy.prune_ratio': 0.7, 'policy.type': 'x', 'delta': 1}
    policy = dict(prune_ratio=0.7, type='x')
    assert nested_options(settings) == dict(policy=policy, delta=1)


# Configs that cannot prune


def no_train_cfg(cfg):
    cfg.train_cfg = None


def other_sampler(cfg):
    cfg.train_dataloader.sampler.type = 'RepeatAugSampler'


def other_loop(cfg):
    cfg.train_cfg.type = 'SelfTrainingLoop'


def other_model(cfg):
    cfg.model = dict(type='Painter', head=None)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (no_train_cfg, 'no train_cfg'),
        (other_sampler, "sampler.type is 'RepeatAugSampler'"),
        (other_loop, "train_cfg.type is 'SelfTrainingLoop'"),
        (other_model, r'the model \(Painter\) has none of the heads'),
    ],
)
def test_a_config_that_cannot_prune_is_an_error(tmp_path, spoil, message):
    cfg = toys.config(tmp_path, pruned=False)
    spoil(cfg)
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=message):
        enable(cfg)
    assert cfg.to_dict() == before


class Loops:
    class EpochBasedTrainLoop(EpochBasedTrainLoop):
        """A user's, of the same name."""


def test_a_built_sampler_is_an_error(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.train_dataloader.sampler = DefaultSampler([0])
    with pytest.raises(TypeError, match='sampler is a DefaultSampler that'):
        enable(cfg)


def test_a_built_data_set_is_pruned(tmp_path):
    cfg = light.config(
        tmp_path,
        dict(type='EpochBasedTrainLoop', max_epochs=3),
        pruned=False,
        default_hooks=dict(prune=dict(type='infobatch_mm.override.PruneHook')),
    )
    cfg.train_dataloader.dataset = light.LightData(24)
    assert toys.hook_of(toys.train(cfg)).run.rounds_pruned


def test_another_loop_of_the_same_name_is_an_error(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.train_cfg.type = Loops.EpochBasedTrainLoop
    with pytest.raises(ValueError, match="type is 'test_config.Loops.Epoch"):
        enable(cfg)


class Edgeless(PruningPolicy):
    pass


BAD = [
    (dict(prune_ratio=0.3), 'prune_ratio=0.3 is not an option'),
    (dict(delta=2), 'delta must be in .* got 2:'),
    (dict(delta=2, policy=dict(type='NoPruningPolicy')), 'delta .* got 2:'),
    (dict(delta='0.9'), "delta must be in .* got '0.9':"),
    (dict(policy='QuantilePolicy'), "policy='QuantilePolicy' is not .*dict"),
    (dict(policy=None), 'policy=None is not'),
    (dict(policy=dict(type='Quantile')), "'Quantile' .* known: InfoBatchP"),
    (dict(policy=dict(type='torch.nn.Linear')), "'torch.nn.Linear' is not a"),
    (dict(policy=dict(type='')), "policy.type='' is not a pruning policy"),
    (dict(policy=dict(type=Edgeless)), r'Edgeless.* it has no thresholds\(\)'),
    (
        dict(policy=dict(type='QuantilePolicy', prune_ratio=0.7)),
        "'QuantilePolicy': .*'prune_ratio'; .*: quantiles, prune_ratios, ke",
    ),
    (dict(policy=dict(type='RandomPolicy')), 'needs .* prune_ratio, or keep'),
    (dict(policy=dict(keep=0)), r'keep must be in \(0, 1\], but got 0:'),
    (dict(policy=dict(keep=0.7, prune_ratio=0.5)), 'keep=0.7 is set beside'),
    (dict(policy=dict(prune_ratio='70%')), "prune_ratio .* '70%'"),
    (
        dict(policy=dict(type='QuantilePolicy', prune_ratios=0.5)),
        "'prune_ratios': 0.5} has a setting of a wrong type",
    ),
    (dict(score='loss'), "score='loss' is not known; there are image_mean"),
    (dict(score_momentum='0.8'), "score_momentum='0.8' is not in"),
    (dict(warmup_rounds=-1), 'warmup_rounds=-1 is not a number of rounds'),
    (dict(warmup_rounds='3'), "warmup_rounds='3' is not a number of rounds"),
    (dict(warmup_rounds=True), 'warmup_rounds=True is not a number of'),
    (dict(exact_resume='no'), "exact_resume='no' is not known"),
]


@pytest.mark.parametrize('options, message', BAD)
def test_a_wrong_option_is_an_error(tmp_path, options, message):
    cfg = toys.config(tmp_path, pruned=False)
    with pytest.raises(ValueError, match=message):
        enable(cfg, **options)
    cfg.train_cfg.infobatch = options
    with pytest.raises(ValueError, match=message):
        enable(cfg)


def test_a_registered_policy_without_a_plan(tmp_path, monkeypatch):
    cfg = toys.config(tmp_path, pruned=False)
    monkeypatch.setitem(PRUNING_POLICIES.module_dict, 'Planless', object)
    with pytest.raises(ValueError, match=r"'Planless'.* it has no plan\(\)"):
        enable(cfg, policy=dict(type='Planless'))


def test_a_wrong_option_of_a_hook_that_is_there(tmp_path):
    cfg = toys.config(tmp_path, delta=2)
    with pytest.raises(ValueError, match='delta must be in'):
        enable(cfg, score_momentum=0.5)


@pytest.mark.parametrize('cfg', ['config.py', dict(model=dict()), None])
def test_no_config_is_an_error(cfg):
    with pytest.raises(TypeError, match='Config.fromfile.*Config.dict'):
        enable(cfg)


class OwnSampler(DefaultSampler):
    """A sampler of the user's, named as mmengine's."""


OwnSampler.__name__ = 'DefaultSampler'


class PruneHook(Hook):
    """A hook of the user's that prunes weights."""


def test_what_only_has_the_name_of_another_is_not_taken_for_it(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    theirs = dict(type=PruneHook, sparsity=0.3)
    cfg.custom_hooks = [theirs]
    pruned = enable(cfg, delta=0.9)
    assert pruned.custom_hooks[0] == theirs
    assert pruned.custom_hooks[1].type == 'infobatch_mm.InfoBatchHook'
    cfg.train_dataloader.sampler = dict(type=OwnSampler, shuffle=True)
    with pytest.raises(ValueError, match='whose order pruning would replace'):
        enable(cfg)


POLICIES_GIVEN = [
    (dict(keep=0.8), dict(type='QuantilePolicy', keep=0.8)),
    (dict(type='RandomPolicy', keep=0.7), None),
    (dict(type='NoPruningPolicy'), None),
]


@pytest.mark.parametrize('given, found', POLICIES_GIVEN)
def test_a_policy_replaces_the_one_that_is_there(tmp_path, given, found):
    """As a whole; without a type it is of the type that is there."""
    before = dict(type='QuantilePolicy', prune_ratios=(0.5, 0.2))
    cfg = enable(toys.config(tmp_path, pruned=False), policy=before)
    policy = enable(cfg, policy=given).custom_hooks[0].policy
    assert policy == (found or given)


@pytest.mark.parametrize('given, found', POLICIES_GIVEN)
def test_a_policy_replaces_that_of_train_cfg(tmp_path, given, found):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.train_cfg.infobatch = dict(
        policy=dict(type='QuantilePolicy', prune_ratios=(0.5, 0.2))
    )
    policy = enable(cfg, policy=given).custom_hooks[0].policy
    assert policy == (found or given)


def test_settings_of_a_policy_are_those_of_its_type(tmp_path):
    """They are looked at as such, and not as those of the default."""
    before = dict(type='QuantilePolicy')
    cfg = enable(toys.config(tmp_path, pruned=False), policy=before)
    policy = enable(cfg, policy=dict(quantiles=(0.2, 1.0)))
    assert policy.custom_hooks[0].policy == dict(
        type='QuantilePolicy', quantiles=(0.2, 1.0)
    )


def test_a_policy_and_its_settings_beside_it_are_an_error():
    given = {'policy': 'RandomPolicy', 'policy.keep': 0.4}
    with pytest.raises(ValueError, match=r'goes to policy\.type'):
        nested_options(given)
