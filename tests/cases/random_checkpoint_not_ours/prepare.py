from pathlib import Path

from llamagen import api

api.random_checkpoint("tiny.yaml", "out")
Path("out/thesis.tex").write_text("keep me")
