"""Render a comparison as terminal tables, Markdown and a single HTML page."""
