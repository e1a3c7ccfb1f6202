"""One module for each way to prune: what a user of that package writes, and nothing else."""
