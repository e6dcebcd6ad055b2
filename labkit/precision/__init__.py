"""What quantisation does to a model, and to what one finds in it."""
