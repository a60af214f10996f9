from pathlib import Path

from seeing import exported

exported()
Path("cut.png").write_bytes(Path("cat.png").read_bytes()[:200])
