"""What in a prompt made a model write what it wrote."""
