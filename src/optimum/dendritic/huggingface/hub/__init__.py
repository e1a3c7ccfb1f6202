"""Pushing to the Hub: one commit, retried where that may help."""
