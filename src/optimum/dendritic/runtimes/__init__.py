"""Packed models in other runtimes, each run there and compared with the model before its files are kept."""
