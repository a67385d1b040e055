"""Settings of all tests."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_config_text(monkeypatch):
    """Skip yapf, with which mmengine lays the config out in a second a run."""

    def text(config):
        lines = [
            f'{key} = {value!r}' for key, value in config.to_dict().items()
        ]
        return '\n'.join(lines)

    monkeypatch.setattr(Config, 'pretty_text', property(text))


@pytest.fixture(autouse=True)
def _no_default_scope():
    """Forget the scope of the last run, in which registries would look."""
    DefaultScope._instance_dict.clear()
