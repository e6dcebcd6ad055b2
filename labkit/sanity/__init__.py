"""Sanity checks: controls for a finished grid."""
