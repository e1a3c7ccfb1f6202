"""What several processes agree on, and what each holds of a sharded parameter."""
