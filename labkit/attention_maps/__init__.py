"""Where heads look, what that carries, and what happens without them."""
