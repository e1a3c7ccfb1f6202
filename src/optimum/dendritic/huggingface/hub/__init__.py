"""Pushing to the Hub: one commit, retried after a transient failure."""
