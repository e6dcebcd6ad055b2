"""AttentionView: every head at a glance."""
