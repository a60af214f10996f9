from broken import whole

folder = whole(shard_bytes=20_000)
shard = sorted(folder.glob("model-*.safetensors"))[-1]
data = shard.read_bytes()
shard.write_bytes(data[: len(data) - 1000])
