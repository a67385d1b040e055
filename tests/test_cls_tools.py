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


@pytest.mark.skipif(not THEIRS.exists(), reason='mmpretrain has no tools')
@pytest.mark.parametrize(
    'flags', [['--show'], ['--show-dir', 'painted'], ['--wait-time', '9']]
)
def test_the_hook_is_set_as_theirs(run, flags, monkeypatch):
    spec = spec_from_file_location('mmpretrain_tools_test', THEIRS)
    theirs = module_from_spec(spec)
    spec.loader.exec_module(theirs)
    monkeypatch.setattr('sys.argv', ['test.py', *run, *flags])
    expected = theirs.merge_args(Config.fromfile(run[0]), theirs.parse_args())
    ours = test_tool.load_config(test_tool.parse_args([*run, *flags]))
    hook = ours.default_hooks.visualization
    assert hook == expected.default_hooks.visualization
