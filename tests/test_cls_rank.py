"""infobatch rank: a run of mmpretrain, whose samples have no paths."""

import pytest

pytest.importorskip('mmpretrain')
import cls_toys
from mmengine.runner import Runner
from test_rank import read


def test_a_run_of_mmpretrain(tmp_path, capsys):
    cfg = cls_toys.config(tmp_path, epochs=8)
    cfg.default_hooks.checkpoint.interval = 8
    runner = Runner.from_cfg(cfg)
    runner.train()
    capsys.readouterr()
    rows, notes = read(capsys, tmp_path, '--top', '5')
    # The last round kept all samples.
    assert len(notes) == 1
    [hook] = [hook for hook in runner.hooks if hasattr(hook, 'board')]
    hardest = hook.board.scores.argsort(descending=True)[:5].tolist()
    assert [int(row['index']) for row in rows] == hardest
    assert {row['path'] for row in rows} == {''}
    assert {row['last_weight'] for row in rows} == {'1.0'}
