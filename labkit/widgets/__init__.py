"""Notebook widgets: small public building blocks and the tools made of them."""
