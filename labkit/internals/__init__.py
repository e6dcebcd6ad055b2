"""Reading and writing activations."""
