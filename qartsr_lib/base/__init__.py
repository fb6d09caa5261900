"""What everything stands on: errors, files, paths, the cache, the registry, progress."""
