"""Running a generated file: for verification and tests."""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from llamagen import files
from llamagen.emit.torch.check import check_source


def load_module(source: str | Path) -> ModuleType:
    """The module of a generated file, given its text or its path. Imports torch.

    The text passes the same allow-list as at emission first (LlamagenError LG742): what a spec could smuggle into it
    does not run. It is no sandbox for a file that somebody edited: torch reaches everything. The same text gives the
    same module object.
    """
    text = files.read_text(source, files.EXPORTED) if isinstance(source, Path) else source
    name = f"llamagen_generated_{sha256(text.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    check_source(text)
    module = ModuleType(name)
    module.__file__ = str(source) if isinstance(source, Path) else f"<{name}>"
    # torch.compile and dataclasses look a class's module up by name.
    sys.modules[name] = module
    try:
        exec(compile(text, module.__file__, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
