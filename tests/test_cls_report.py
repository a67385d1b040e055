"""infobatch report: a run of mmpretrain."""

import pytest

pytest.importorskip('mmpretrain')
import cls_toys
from mmengine.runner import Runner
from test_report import Page, check, report

from infobatch_mm.report import results


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
    cfg.val_evaluator = dict(type='Accuracy', topk=(1,))
    cfg.val_cfg = dict(type='ValLoop')
    cfg.default_hooks.checkpoint.interval = 4
    Runner.from_cfg(cfg).train()
    page = Page(report.render(tmp_path))
    check(page)
    assert 'accuracy/top1 over samples' in page.images[0]['alt']
    assert results.NO_CLASSES in page.missing
    # Each sample is an image with the name of its class.
    assert len(page.pictures('image/png')) == (16 if pruned else 0)
    if pruned:
        labels = {card.label for card in report.gallery(tmp_path).hardest}
        assert labels <= set('abcde')
