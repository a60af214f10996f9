from pathlib import Path

from llamagen import api

Path("checkpoint").mkdir()
Path("checkpoint/config.json").write_text(api.load("llama/3.2/1b").files()["config.json"])
