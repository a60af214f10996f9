from pathlib import Path

from llamagen import api

api.random_checkpoint("tiny.yaml", "checkpoint")
Path("id_rsa").write_text("secret")
Path("checkpoint/LICENSE").symlink_to("../id_rsa")
