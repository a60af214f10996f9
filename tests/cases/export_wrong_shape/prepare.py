from broken import read, whole, write

file = whole() / "model.safetensors"
tensors = read(file)
entry, data = tensors["model.layers.0.self_attn.k_proj.weight"]
tensors["model.layers.0.self_attn.k_proj.weight"] = ({**entry, "shape": [32, 16]}, data)
write(file, tensors)
