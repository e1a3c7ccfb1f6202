"""Every formula: tensors in, tensors out."""
