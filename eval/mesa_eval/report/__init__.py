"""Write a comparison for readers: terminal, Markdown, one HTML page."""
