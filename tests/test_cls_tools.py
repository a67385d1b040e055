"""tools/test.py treats predictions as mmpretrain's own tools/test.py does."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import cls_toys
import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.visualization import Visualizer
from test_tools import test_tool

pytest.importorskip('mmpretrain')
import mmpretrain
from mmpretrain.registry import MODELS

THEIRS = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'test.py'
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
    """A function from flags to our config and theirs."""
    if not THEIRS.exists():
        pytest.skip('mmpretrain has no tools')
    spec = spec_from_file_location('mmpretrain_tools_test', THEIRS)
    theirs = module_from_spec(spec)
    spec.loader.exec_module(theirs)

    def settings(*flags):
        monkeypatch.setattr('sys.argv', ['test.py', *run, *flags])
        cfg = Config.fromfile(run[0])
        ours = test_tool.load_config(test_tool.parse_args([*run, *flags]))
        return ours, theirs.merge_args(cfg, theirs.parse_args())

    return settings


@pytest.mark.parametrize(
    'flags', [['--show'], ['--show-dir', 'painted'], ['--wait-time', '9']]
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
