"""The Trainer callback and what it looks after: logs, resuming, teachers, engines, pushes."""
