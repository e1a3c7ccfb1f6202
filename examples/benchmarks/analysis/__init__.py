"""Measurements of why rankings differ; each script writes a card."""
