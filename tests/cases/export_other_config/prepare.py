"""A checkpoint whose config.json is that of Llama 3: no rotary scaling."""

import json
from pathlib import Path

from llamagen import api

api.random_checkpoint("scaled.yaml", "checkpoint")
file = Path("checkpoint/config.json")
file.write_text(json.dumps({**json.loads(file.read_text()), "rope_scaling": None}, indent=2) + "\n")
