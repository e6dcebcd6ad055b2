"""Activations of many texts, on disk."""
