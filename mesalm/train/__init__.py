"""Training: typed recipes, one loop on accelerate, checkpoints that resume to the last bit."""
