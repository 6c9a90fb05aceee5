"""Seeded generators of synthetic tasks that are learnt in context; none knows a model."""
