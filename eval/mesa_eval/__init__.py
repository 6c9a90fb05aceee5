"""Measure language models: text, use of the context, few-shot tasks, and comparisons with intervals."""
