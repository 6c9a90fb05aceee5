"""Training: typed recipes, one loop on accelerate, checkpoints from which runs resume bit-identically."""
