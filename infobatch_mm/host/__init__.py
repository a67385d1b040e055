"""Where the package reaches into its hosts beyond their public names.

Each use of a private name of mmengine, mmcv, mmseg, mmpretrain or torch, and
each patch of theirs, is a function or a class here that says why it is
needed. ``tests/test_host.py`` asserts that the names still exist.
"""
