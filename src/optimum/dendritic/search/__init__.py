"""How much each dependency group and layer keeps, searched for on calibration batches."""
