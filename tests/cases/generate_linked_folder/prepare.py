from pathlib import Path

Path("elsewhere").mkdir()
Path("elsewhere/card.md").write_text("keep me")
Path("generated/test").mkdir(parents=True)
Path("generated/test/tiny").symlink_to("../../elsewhere")
