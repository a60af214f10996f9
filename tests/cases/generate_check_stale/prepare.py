from pathlib import Path

from llamagen import api
from llamagen.emit.options import Target

list(api.generate(["tiny.yaml"], [Target.TEXT], Path("out")))
spec = Path("tiny.yaml")
spec.write_text(spec.read_text().replace("num_layers: 2", "num_layers: 3"))
