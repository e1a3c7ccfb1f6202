"""Other packages that prune, each by its own means, on the tasks, bases and recipes of the tables."""
