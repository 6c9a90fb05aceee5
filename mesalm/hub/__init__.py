"""Hugging Face interoperability: open, sample from, convert, publish and serve models."""
