from pathlib import Path

Path("out").mkdir()
Path("out/mine.txt").write_text("keep me")
