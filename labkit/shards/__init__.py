"""Much work in shards: kept on disk, resumed where it ended, done here or on workers."""
