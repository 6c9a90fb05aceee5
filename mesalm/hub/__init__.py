"""The exchange with the Hugging Face world: opening, sampling from and publishing models."""
