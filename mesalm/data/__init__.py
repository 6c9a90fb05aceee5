"""Corpora, tokenizers and packed rows; knows no model."""
