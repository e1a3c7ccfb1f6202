"""The Trainer callback and what it handles: logs, resuming, teachers, engines, pushes."""
