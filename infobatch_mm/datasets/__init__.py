"""Data sets: the wrapper that numbers samples, and two to train on."""
