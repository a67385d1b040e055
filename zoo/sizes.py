"""The sizes of a small run, and the weights that its model is probed at."""

SAMPLES = 8
BATCH = 2
ROUNDS = 3
BUDGET = ROUNDS * SAMPLES // BATCH  # three full passes, in iterations

WEIGHTS = (0.5, 3.0)  # of a batch
