"""Say what log-probabilities mean: perplexity, loss by position, few-shot scores, recall in text."""
