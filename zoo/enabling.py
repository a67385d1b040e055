"""The check that ``infobatch_mm.enable`` changes what it should alone."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

import infobatch_mm


def check_enabled(stock: Config, weighted: Mapping[str, str]) -> None:
    """Raise an AssertionError unless enabling changes what it should alone.

    Args:
        stock (Config): A stock config.
        weighted (dict): The type of the weighted head by the name of the
            stock one, see :class:`Package`.
    """
    enabled = infobatch_mm.enable(stock)
    loader = enabled.train_dataloader
    assert loader.sampler.type == 'infobatch_mm.InfoBatchSampler'
    assert loader.dataset.type == 'infobatch_mm.IndexedDataset'
    assert enabled.train_cfg == pruned_loop(stock.train_cfg)
    assert enabled.custom_hooks[-1]['type'] == 'infobatch_mm.InfoBatchHook'
    assert enabled.custom_imports['imports'][-1] == 'infobatch_mm'
    check_undone(enabled, stock, weighted)
    with tempfile.TemporaryDirectory() as folder:
        enabled.dump(Path(folder, 'enabled.py'))
        again = Config.fromfile(Path(folder, 'enabled.py'))
    assert again.to_dict() == enabled.to_dict(), 'not the same when reloaded'


def check_undone(
    enabled: Config, stock: Config, weighted: Mapping[str, str]
) -> None:
    """Raise an AssertionError unless what is undone is the stock config."""
    undone, expected = enabled.to_dict(), stock.to_dict()
    loader = undone['train_dataloader']
    loader['dataset'] = loader['dataset']['dataset']
    loader['sampler']['type'] = stock.train_dataloader.sampler.type
    undone['train_cfg'] = expected['train_cfg']
    for name, kind in weighted.items():
        heads = undone['model'].get(name)
        if isinstance(heads, list):
            undone['model'][name] = [unwrapped(head, kind) for head in heads]
        elif heads:
            undone['model'][name] = unwrapped(heads, kind)
    for name in ('custom_hooks', 'custom_imports'):
        undone.pop(name), expected.pop(name, None)
    assert undone == expected, 'enable() changed more than it should'


def pruned_loop(train_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stock loop's config must become."""
    settings = dict(train_cfg)
    by_epoch = settings.pop('by_epoch', True)
    kind = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    kind = settings.get('type', kind)
    return dict(settings, type=f'infobatch_mm.InfoBatch{kind}')


def unwrapped(head: Any, kind: str) -> Any:
    """Return the stock head's config within that of a weighted head."""
    assert head['type'] == f'infobatch_mm.{kind}', f'{head["type"]} is stock'
    return head['head']
