"""The base of every widget."""
