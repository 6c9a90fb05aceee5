"""Uncertainty of results: bootstrap over units, intervals over seeds, and correction for multiple tests."""
