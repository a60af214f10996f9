import struct

from broken import read, whole, write

file = whole() / "model.safetensors"
tensors = read(file)
entry, data = tensors["model.norm.weight"]
tensors["model.norm.weight"] = (entry, data[:20] + struct.pack("<f", float("nan")) + data[24:])
write(file, tensors)
