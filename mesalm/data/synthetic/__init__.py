"""Seeded generators of synthetic tasks that are learned in context; none knows a model."""
