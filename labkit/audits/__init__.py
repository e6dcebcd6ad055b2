"""What open weights let anyone check: which answers a model prefers, and how well it does on a set of items."""
