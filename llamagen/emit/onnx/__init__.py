"""The ONNX backend: a graph as an ONNX model in a profile, its data file, and a canonical text form."""
