"""The model of continuous tokens, which synthetic tasks and the laboratory train."""
