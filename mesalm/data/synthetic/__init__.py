"""Seeded generators of synthetic tasks that are learned in context, independent of any model."""
