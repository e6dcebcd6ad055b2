"""Reading and writing one forward pass."""
