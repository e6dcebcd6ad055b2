"""What openness lets anyone check: what a model prefers, refuses, follows and repeats, and what it costs."""
