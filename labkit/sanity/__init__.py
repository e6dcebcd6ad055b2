"""Is it real? Controls for a finished grid."""
