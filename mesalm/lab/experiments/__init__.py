"""Experiments that test the paper's claims, one function per claim."""
