"""Pruning without training: calibration, selection, reconstruction."""
