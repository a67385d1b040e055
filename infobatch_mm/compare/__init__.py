"""Train a config as arms x seeds, and say what pruning gains and costs.

From the ground up: ``setup`` (what all arms have in common), ``arms`` (how
they differ), ``cells`` (one run of an arm, and the file of finished ones),
``processes`` (how runs start, and where) and ``running`` (train them side by
side); ``statistics`` and ``tables`` say and draw what came out. For a
config of a user's own there are also ``stock`` (its unpruned form, its
metric), ``planning`` (what will be trained, and what that takes) and
``summary`` (the verdict). ``parts`` is what the runs themselves import.
"""
