"""The laboratory: experiments on what trained models compute internally."""
