"""Many pairs, here or on workers, shard by shard."""
