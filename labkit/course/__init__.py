"""Checks for the exercises in the notebooks."""
