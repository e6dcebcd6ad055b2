"""Activation patching, exact and estimated."""
