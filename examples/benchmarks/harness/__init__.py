"""What the result tables share: planning and resuming runs, training, timing, summaries, figures and cards."""
