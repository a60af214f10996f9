import struct
import zlib
from pathlib import Path

from seeing import exported


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


exported()
header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
Path("bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
