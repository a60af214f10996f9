from broken import read, whole, write

file = whole() / "model.safetensors"
tensors = read(file)
del tensors["model.layers.1.mlp.up_proj.weight"]
write(file, tensors)
