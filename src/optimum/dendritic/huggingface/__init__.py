"""The contact with transformers: checkpoints, cards, the Hub, and the callback of the Trainer."""
