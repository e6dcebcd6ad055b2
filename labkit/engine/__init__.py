"""Many patched passes at once, and what is computed from what they leave."""
