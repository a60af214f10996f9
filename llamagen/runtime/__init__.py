"""Running an exported folder with ONNX Runtime: sessions, sampling, text."""
