"""Run a model: its folder, its tokenizer, rows cut into batches, log-probabilities."""
