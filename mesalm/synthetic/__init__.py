"""Models of synthetic tasks, trained in grids, and what came out."""
