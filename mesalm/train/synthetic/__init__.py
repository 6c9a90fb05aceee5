"""Train grids of small models on synthetic tasks, and keep what came out."""
