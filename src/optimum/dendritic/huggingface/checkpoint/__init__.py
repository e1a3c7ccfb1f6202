"""Checkpoints: written, checked and loaded by way of transformers' own registry."""
