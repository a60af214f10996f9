"""A model with another epsilon, under the name of the right one: only the numbers can tell."""

from pathlib import Path

import onnx

from llamagen import api

api.load("tiny.yaml").export("right", random_weights=7)
wrong = Path("wrong.yaml")
wrong.write_text(Path("tiny.yaml").read_text().replace("norm_eps: 1.0e-5", "norm_eps: 1.0e-3"))
api.load(wrong).export("out", random_weights=7)
right = onnx.load("right/model.onnx", load_external_data=False)
model = onnx.load("out/model.onnx", load_external_data=False)
del model.metadata_props[:]
model.metadata_props.extend(right.metadata_props)
onnx.save(model, "out/model.onnx")
Path("out/spec.yaml").write_bytes(Path("right/spec.yaml").read_bytes())
