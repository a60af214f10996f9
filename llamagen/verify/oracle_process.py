"""The process of an oracle: a Python file of the user's, asked call by call. Started by ``oracles.py``.

A question is an .npz with the arguments and ``first``, whether a text begins; an answer has the logits, and whether
the function keeps a past. The empty question asks for nothing but that the file is run.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np


def answering(arguments: Sequence[str]) -> Callable[[bytes], bytes]:
    file, folder = arguments
    sys.path.insert(0, os.path.dirname(file))

    def run(function: Callable[..., Any], *values: object) -> Any:
        """Errors say where in the file they come from."""
        try:
            return function(*values)
        except (Exception, SystemExit) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
            place = f", line {frames[-1].lineno}" if frames else ""
            said = f": {error}" if str(error) else ""
            raise RuntimeError(f"{type(error).__name__}{said}{place}") from error

    function: Callable[..., Any] | None = None
    past: Any = None

    def opened() -> Callable[..., Any]:
        found = spec_from_file_location("oracle", file)
        assert found is not None and found.loader is not None
        module = module_from_spec(found)
        run(found.loader.exec_module, module)
        logits: Any = getattr(module, "logits", None)
        if not callable(logits):
            raise RuntimeError("it defines no function `logits`")
        if callable(getattr(module, "load", None)):
            run(module.load, folder)
        given: Callable[..., Any] = logits
        return given

    def answer(question: bytes) -> bytes:
        nonlocal past, function
        function = function or opened()  # with the first question: only answers carry errors
        if not question:
            return b""
        with np.load(io.BytesIO(question), allow_pickle=False) as asked:
            given = [asked[name] for name in ("input_ids", "position_ids", "attention_mask")]
            past = None if asked["first"] else past
        result = run(function, *given, past)
        keeps = isinstance(result, tuple) and len(result) == 2
        logits, past = result if keeps else (result, None)
        if hasattr(logits, "detach"):
            logits = logits.detach().cpu()
            logits = logits.double() if logits.is_floating_point() else logits
        numbers = run(np.asarray, logits)
        if numbers.dtype.kind not in "fiub" and numbers.dtype.name != "bfloat16":
            raise RuntimeError(f"its logits are {numbers.dtype}, not real numbers")
        answered = io.BytesIO()
        np.savez(answered, logits=numbers.astype(np.float64), keeps=keeps)
        return answered.getvalue()

    return answer
