"""Scores of models trained on synthetic tasks, compared with guesses that need no trained model."""
