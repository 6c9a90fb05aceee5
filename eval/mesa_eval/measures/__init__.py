"""Measures from log-probabilities: perplexity, loss by position, few-shot scores, recall in text."""
