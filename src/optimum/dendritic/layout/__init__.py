"""What a checkpoint says of a compressed model, as JSON; no torch is needed to read it."""
