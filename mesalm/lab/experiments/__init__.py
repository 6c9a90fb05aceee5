"""Experiments on the paper's claims, one function per claim."""
