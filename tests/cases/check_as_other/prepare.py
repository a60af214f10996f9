"""Headers of a checkpoint of LLaMA 3.2 3B: the data is a hole in the file, no disk is used."""

import json
import struct
from math import prod
from pathlib import Path

from llamagen import api

header: dict[str, object] = {}
end = 0
for name, parameter in api.load("llama/3.2/3b").parameters.items():
    start, end = end, end + 2 * prod(parameter.shape)
    header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [start, end]}
text = json.dumps(header).encode()
Path("checkpoint").mkdir()
with Path("checkpoint/model.safetensors").open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + end)
