"""The commands on mmpretrain: test, train, report, estimate and rank."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')
import cls_toys
import mmengine
import mmpretrain
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from mmpretrain.registry import MODELS
from test_estimate import read as read_rank
from test_estimate import say
from test_report import Page, check, report

from infobatch_mm.commands import running, train
from infobatch_mm.commands import test as test_tool

THEIRS = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
IMAGES = 4


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The files of a config with a test set, and of a checkpoint."""
    # The tools set it where no launcher did.
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = cls_toys.config(
        tmp_path / 'run',
        pruned=False,
        epochs=1,
        samples=4,
        test_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=cls_toys.blobs(IMAGES),
            collate_fn=dict(type='default_collate'),
        ),
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
    )
    cfg.default_hooks.visualization = dict(
        type='VisualizationHook', enable=False
    )
    path = tmp_path / 'config.py'
    cfg.dump(path)
    checkpoint = tmp_path / 'stock.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), checkpoint)
    return str(path), str(checkpoint)


def test_a_config_without_a_scope_is_known_by_its_model(run, tmp_path):
    """As mmpretrain's new-style configs are."""
    path, checkpoint = run
    cfg = Config.fromfile(path)
    assert running.is_mmpretrain(cfg)
    cfg.default_scope = None
    cfg.model.type = f'mmpretrain.{cfg.model.type.rpartition(".")[2]}'
    assert running.is_mmpretrain(cfg)
    cfg.model.type = MODELS.get(cfg.model.type)  # of a lazy config
    assert running.is_mmpretrain(cfg)
    assert not running.is_mmpretrain(Config(dict(model=dict(type='Other'))))
    args = test_tool.parse_args([path, checkpoint, '--out', 'p.txt'])
    with pytest.raises(ValueError, match=r'p\.txt: .*ends with \.pkl'):
        test_tool.load_config(args)


def test_each_image_is_saved(run, tmp_path):
    test_tool.main([*run, '--show-dir', str(tmp_path / 'painted')])
    names = [path.name for path in (tmp_path / 'painted').iterdir()]
    assert sorted(names) == [f'{index}_0.png' for index in range(IMAGES)]


def test_each_image_is_shown(run, monkeypatch):
    waits = []
    monkeypatch.setattr(
        Visualizer,
        'show',
        lambda self, *args, wait_time, **kwargs: waits.append(wait_time),
    )
    test_tool.main([*run, '--show', '--wait-time', '0.5'])
    assert waits == [0.5] * IMAGES


def test_predictions_are_kept(run, tmp_path):
    out = tmp_path / 'predictions.pkl'
    test_tool.main([*run, '--out', str(out)])
    predictions = mmengine.load(out)
    assert len(predictions) == IMAGES
    assert {'pred_label', 'gt_label'} <= predictions[0].keys()


@pytest.fixture
def settings_of(run, monkeypatch):
    """A function from a tool and flags to our config and theirs."""
    if not THEIRS.exists():
        pytest.skip('mmpretrain has no tools')

    def settings(*flags, ours=test_tool):
        name = ours.__name__.rpartition('.')[2]
        arguments = [*run[: 1 if ours is train else 2], *flags]
        spec = spec_from_file_location(
            f'mmpretrain_tools_{name}', THEIRS / f'{name}.py'
        )
        theirs = module_from_spec(spec)
        spec.loader.exec_module(theirs)
        monkeypatch.setattr('sys.argv', [f'{name}.py', *arguments])
        cfg = Config.fromfile(run[0])
        found = ours.load_config(ours.parse_args(arguments))
        return found, theirs.merge_args(cfg, theirs.parse_args())

    return settings


@pytest.fixture
def accelerator(monkeypatch):
    """What their tools take for granted."""
    for module in (running, train):
        monkeypatch.setattr(module, 'get_device', lambda: 'cuda')


@pytest.mark.parametrize(
    'flags',
    [
        ['--show'],
        ['--show-dir', 'painted'],
        ['--wait-time', '9'],
        ['--show-dir', 'painted', '--interval', '3'],
    ],
)
def test_the_hook_is_set_as_theirs(settings_of, flags):
    ours, theirs = settings_of(*flags)
    hook = ours.default_hooks.visualization
    assert hook == theirs.default_hooks.visualization


@pytest.mark.parametrize(
    'known',
    [{}, {'tta_model': dict(type='Mine')}, {'tta_pipeline': [dict(type='A')]}],
)
def test_images_are_augmented_as_theirs(settings_of, known, run):
    cfg = Config.fromfile(run[0])
    cfg.merge_from_dict(known)
    cfg.dump(run[0])
    ours, theirs = settings_of('--tta')
    assert ours.model == theirs.model
    pipeline = ours.test_dataloader.dataset.pipeline
    assert pipeline == theirs.test_dataloader.dataset.pipeline


def test_an_image_and_its_mirror_are_averaged(run, tmp_path):
    out = tmp_path / 'predictions.pkl'

    def scores(name, *flags):
        # mmengine warns of two runs of one name in a process.
        names = [f'experiment_name={name}', f'visualizer.name={name}']
        options = ['--out', str(out), '--cfg-options', *names]
        test_tool.main([*run, *options, *flags])
        return torch.stack([p['pred_score'] for p in mmengine.load(out)])

    plain, both = scores('tta-off'), scores('tta-on', '--tta')
    cfg = Config.fromfile(run[0])
    flip = dict(type='RandomFlip', prob=1.0)
    cfg.test_dataloader.dataset.pipeline.insert(0, flip)
    cfg.dump(run[0])
    mirrored = scores('tta-mirrored')
    assert not torch.allclose(plain, mirrored)
    torch.testing.assert_close(both, (plain + mirrored) / 2)


def test_one_image_of_some_is_saved(run, tmp_path):
    painted = tmp_path / 'painted'
    test_tool.main([*run, '--show-dir', str(painted), '--interval', '2'])
    assert len(list(painted.iterdir())) == IMAGES // 2


def test_the_metrics_are_kept(run, tmp_path):
    out = tmp_path / 'metrics.json'
    test_tool.main([*run, '--out', str(out), '--out-item', 'metrics'])
    assert mmengine.load(out).keys() == {'accuracy/top1'}


def test_an_item_without_a_file_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        test_tool.main([*run, '--out-item', 'pred'])
    assert '--out-item pred needs --out' in capsys.readouterr().err


def test_mixed_precision_is_set_as_theirs(settings_of):
    ours, theirs = settings_of('--amp')
    assert ours.test_cfg == theirs.test_cfg == dict(fp16=True)


@pytest.mark.parametrize('flags', [[], ['--no-pin-memory']])
def test_the_loader_of_a_test_is_completed_as_theirs(
    settings_of, accelerator, flags, run
):
    cfg = Config.fromfile(run[0])
    del cfg.test_dataloader['collate_fn']
    cfg.dump(run[0])
    ours, theirs = settings_of(*flags)
    loader = ours.test_dataloader.to_dict()
    assert loader.pop('persistent_workers') is False  # without workers
    assert loader == theirs.test_dataloader.to_dict()


# train


def complete(cfg_file):
    """Let a config have all that the flags of training change."""
    cfg = Config.fromfile(cfg_file)
    cfg.train_dataloader.num_workers = 1
    cfg.auto_scale_lr = dict(base_batch_size=8)
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[key] = cfg[key.replace('val_', 'test_')]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for key in ('collate_fn', 'pin_memory', 'persistent_workers'):
            loader.pop(key, None)
    cfg.dump(cfg_file)


@pytest.mark.parametrize(
    'flags',
    [
        [],
        ['--resume'],
        ['--resume', 'some.pth'],
        ['--amp'],
        ['--no-validate'],
        ['--auto-scale-lr'],
        ['--no-pin-memory'],
        ['--no-persistent-workers'],
        ['--cfg-options', 'resume=True', 'load_from=other.pth'],
        ['--resume', '--cfg-options', 'load_from=other.pth'],
        ['--amp', '--cfg-options', 'optim_wrapper.loss_scale=512.'],
    ],
    ids=' '.join,
)
def test_a_run_is_set_as_theirs(settings_of, accelerator, flags, run):
    complete(run[0])
    ours, theirs = (cfg.to_dict() for cfg in settings_of(*flags, ours=train))
    # Theirs sets it, for loaders without workers too, which torch refuses.
    for name in ('val_dataloader', 'test_dataloader'):
        for cfg in (ours, theirs):
            (cfg[name] or {}).pop('persistent_workers', None)
    assert ours.pop('resume') == theirs.pop('resume', False)
    assert ours.pop('load_from', None) == theirs.pop('load_from', None)
    assert ours == theirs


def test_a_rate_that_cannot_be_scaled_is_refused(run):
    args = train.parse_args([run[0], '--auto-scale-lr'])
    with pytest.raises(ValueError, match='base_batch_size'):
        train.load_config(args)


def test_names_of_packages_are_read_by_both():
    name = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    trained = train.load_config(train.parse_args([name]))
    tested = test_tool.load_config(test_tool.parse_args([name, 'some.pth']))
    assert tested.model == trained.model
    assert tested.test_dataloader == trained.test_dataloader
    assert tested.test_dataloader.collate_fn == dict(type='default_collate')


# infobatch report: a run of mmpretrain


class NotedMetrics(Hook):
    """Keeps what the last validation found."""

    def after_val_epoch(self, runner, metrics):
        self.metrics = metrics


@pytest.mark.parametrize('pruned', [True, False], ids=['pruned', 'stock'])
def test_a_run_of_mmpretrain(tmp_path, pruned):
    cfg = cls_toys.config(tmp_path, pruned=pruned)
    cfg.train_cfg.val_interval = 2
    cfg.val_dataloader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=cls_toys.blobs(8),
        collate_fn=dict(type='default_collate'),
    )
    cfg.val_evaluator = [
        dict(type='Accuracy', topk=(1,)),
        dict(type='SingleLabelMetric', average=None),
    ]
    cfg.val_cfg = dict(type='ValLoop')
    cfg.default_hooks.checkpoint.interval = 4
    cfg.log_level = 'INFO'  # at which the log has the results by class
    noted = NotedMetrics()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(noted)
    runner.train()
    page = Page(report.render(tmp_path))
    check(page)
    assert 'accuracy/top1 over samples' in page.images[0]['alt']
    # A column for each list that the metric gives, a row for each class.
    for metric in ('precision', 'recall', 'f1-score'):
        values = noted.metrics[f'single-label/{metric}_classwise']
        shown = [float(page.row(name)[metric]) for name in 'abcde']
        assert shown == pytest.approx(values, abs=0.005)
    # Each sample is an image with the name of its class.
    assert len(page.pictures('image/png')) == (16 if pruned else 0)
    if pruned:
        labels = {card.label for card in report.gallery(tmp_path).hardest}
        assert labels <= set('abcde')


# estimate and rank


def test_a_pilot_of_mmpretrain(tmp_path, capsys):
    cfg = cls_toys.config(tmp_path / 'unused', pruned=False, epochs=8)
    del cfg.train_dataloader['collate_fn']
    cfg.custom_imports = dict(imports=['cls_toys'])
    cfg.dump(tmp_path / 'config.py')
    text, rows = say(capsys, str(tmp_path / 'config.py'), '--pilot', '2')
    assert 'Pilot: 2 rounds' in text
    assert rows[0][4:6] == ['48', '192']
    counts = re.findall(r'^ .* to \S+ +(\d+)', text, re.MULTILINE)
    assert sum(map(int, counts)) == 24


def test_samples_of_mmpretrain_have_no_paths(tmp_path, capsys):
    cfg = cls_toys.config(tmp_path, epochs=8)
    cfg.default_hooks.checkpoint.interval = 8
    runner = Runner.from_cfg(cfg)
    runner.train()
    capsys.readouterr()
    rows, notes = read_rank(capsys, tmp_path, '--top', '5')
    # The last round kept all samples.
    assert len(notes) == 1
    [hook] = [hook for hook in runner.hooks if hasattr(hook, 'board')]
    hardest = hook.board.scores.argsort(descending=True)[:5].tolist()
    assert [int(row['index']) for row in rows] == hardest
    assert {row['path'] for row in rows} == {''}
    assert {row['last_weight'] for row in rows} == {'1.0'}
