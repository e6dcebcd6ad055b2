"""What can be computed from runs: patching, attention patterns, metrics."""
