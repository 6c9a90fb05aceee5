"""The laboratory: what trained models really do inside."""
