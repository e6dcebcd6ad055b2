"""LensView: the lens as a map of words, and direct attribution."""
