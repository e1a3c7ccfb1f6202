"""What a model is made of: its targets, how they depend on each other, what they cost."""
