"""Single heads, neurons and directions: what makes them fire over many texts, and what they read and write."""
