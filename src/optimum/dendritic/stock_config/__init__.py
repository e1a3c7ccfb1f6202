"""The native form: what a stock config can say of a pruned model."""
