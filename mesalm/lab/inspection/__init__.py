"""Look inside one trained checkpoint: gates, condition numbers, where heads read from."""
