"""Corpora, tokenizers and packed rows; independent of any model."""
