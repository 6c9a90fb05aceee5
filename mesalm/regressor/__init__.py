"""The model for sequences of vectors, trained by synthetic tasks and the laboratory."""
