"""What is left of a model, in words, numbers and pictures."""
