from broken import whole

whole(shard_bytes=20_000)
