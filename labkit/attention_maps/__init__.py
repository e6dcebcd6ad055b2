"""Where heads look, what they move, and what happens without them."""
