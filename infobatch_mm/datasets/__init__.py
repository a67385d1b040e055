"""Data sets: the wrapper that every pruned run needs, and two to train on."""
