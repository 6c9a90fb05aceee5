"""Arms of models, and their differences from a baseline."""
