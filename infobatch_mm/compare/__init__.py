"""Train a config as arms x seeds, and say what pruning gains and costs.

From the ground up: ``setup`` (what all arms have in common), ``arms`` (how
they differ), ``results`` (the file of finished runs), ``cells`` (one run of
an arm), ``running`` (train them side by side); ``statistics``, ``tables`` and
``pictures`` say what came out. ``parts`` and ``class_iou`` are what the runs
themselves import.
"""
