from pathlib import Path

from llamagen import api

api.load("tiny.yaml").export("out", random_weights=7)
spec = Path("out/spec.yaml")
spec.write_text(spec.read_text().replace("theta: 10000.0", "theta: 20000.0"))
