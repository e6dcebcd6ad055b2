"""What can be read off activations by a linear map."""
