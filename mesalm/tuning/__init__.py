"""Learn a soft prefix for a frozen language model, and read with it."""
