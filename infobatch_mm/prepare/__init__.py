"""Unpacking and checking the data sets that the configs train on."""
