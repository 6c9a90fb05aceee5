"""Grids of models trained on synthetic tasks, and their results."""
