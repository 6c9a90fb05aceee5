"""Inspection of one trained checkpoint: gates, condition numbers, and where heads read from."""
