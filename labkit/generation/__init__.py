"""What a model writes, and how probable a text is to it."""
