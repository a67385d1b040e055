"""What ``import infobatch_mm`` does to a process: it registers, no more."""

import subprocess
import sys
from importlib import util

import pytest

# Names that can be replaced, by the modules where their users look.
SNAPSHOT = """
import importlib, sys, warnings
warnings.simplefilter('ignore')
MODULES = [
    'torch.nn.functional', 'torch.distributed', 'mmengine.dist.utils',
    'mmengine.dataset.base_dataset', 'mmengine.hooks.checkpoint_hook',
    'mmengine.optim.optimizer.optimizer_wrapper', 'mmengine.runner.runner',
    'mmengine.runner._flexible_runner', 'mmengine.runner.loops',
    'mmengine.runner.checkpoint', 'mmengine.config.config',
    *EXTRA,
]
for name in MODULES:
    importlib.import_module(name)

def names(owner):
    return {
        f'{owner.__name__}.{key}': id(value)
        for key, value in vars(owner).items()
        if key != '__warningregistry__'
    }

def look():
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.registry import LOOPS
    from mmengine.runner.checkpoint import CheckpointLoader
    found = {}
    for name in MODULES:
        module = sys.modules[name]
        found |= names(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name:
                found |= names(value)
    found |= {f'scheme {k!r}': v for k, v in CheckpointLoader._schemes.items()}
    found |= {f'package of {k}': v for k, v in MODULE2PACKAGE.items()}
    # Registered names stay what they were; new ones may come.
    return found, dict(LOOPS.module_dict)

before, loops = look()
import infobatch_mm
after, loops_after = look()
# A submodule that is imported becomes a name of its package.
changed = [
    key for key in before.keys() | after.keys()
    if before.get(key) != after.get(key)
    and sys.modules.get(key) is None
]
changed += [key for key in loops if loops_after[key] is not loops[key]]
print(sorted(changed))
"""
EXTRA = {
    'mmseg': [
        'mmseg.models.losses.cross_entropy_loss',
        'mmseg.models.decode_heads.decode_head',
    ],
    'mmpretrain': [
        'mmpretrain.models.losses',
        'mmpretrain.models.heads.cls_head',
    ],
}


@pytest.mark.parametrize('task', EXTRA)
def test_importing_the_package_changes_nothing_else(task):
    if not util.find_spec(task):
        pytest.skip(f'needs {task}')
    code = f'EXTRA = {EXTRA[task]!r}\n{SNAPSHOT}'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == '[]'
