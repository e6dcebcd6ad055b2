"""Small public building blocks."""
