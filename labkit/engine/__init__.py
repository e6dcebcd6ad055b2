"""Many patched passes at once, and what is computed from their outputs."""
