"""infobatch estimate: a config of mmpretrain, without its tool's defaults."""

import re

import pytest

pytest.importorskip('mmpretrain')
import cls_toys
from test_estimate import say


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
