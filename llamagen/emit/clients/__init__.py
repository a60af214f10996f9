"""What a folder needs for the clients that people run it with: their configuration files, and how to call them."""

from llamagen.emit.clients.files import GENAI_FILE, README_FILE, write_client_files

__all__ = ["GENAI_FILE", "README_FILE", "write_client_files"]
