"""What is kept of a result: its file, its recipe, its intervals."""
