"""Try the paper's claims, one function a claim."""
