"""Learn a soft prefix for a frozen language model, and use it."""
