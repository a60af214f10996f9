"""The main job through the command line: every kind of checkpoint of a model gives the same folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llamagen.cli import main
from llamagen.emit.onnx.session import OpenOptions
from llamagen.runtime.session import Session
from llamagen.verify.folder import verify_folder
from llamagen.verify.limits import TOLERANCES, difference, largest_of
from llamagen.verify.report import EXACTLY
from tests.unit.export.checkpoints import REDUCED, ROUTES, Reduced
from tests.unit.verify.test_folder import CASES

IDS = [5, 17, 90, 3, 3, 41, 66, 8, 23, 77, 12, 58]
STEPS = [9, 64, 31, 2]
WEIGHTS = "model.onnx_data"
WITNESSES = ("torch", "reference", "transformers")


def exported(model: Reduced, route: str, folder: Path) -> Path:
    out = folder / f"{route}-onnx"
    ROUTES[route](model, folder / route)
    command = ["export", str(model.spec), "--checkpoint", str(folder / route), "--out", str(out)]
    assert main(command) == 0
    return out


def logits(out: Path) -> np.ndarray:
    """[1 + len(STEPS), V]: after the prompt, then after each decoded token."""
    session = Session(out, OpenOptions(threads=1))
    return np.stack([session.step(IDS), *(session.step([token]) for token in STEPS)])


@pytest.mark.parametrize("model", REDUCED, ids=lambda model: model.name)
def test_four_routes_to_one_folder(model: Reduced, tmp_path: Path) -> None:
    folders = {route: exported(model, route, tmp_path) for route in ROUTES}
    first, *others = folders.values()
    expected = logits(first)
    assert expected.std() > 0.5
    for out in others:
        assert (out / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes(), out.name
        assert np.array_equal(logits(out), expected), out.name
    with torch.no_grad():
        theirs = model.peer(torch.tensor([IDS + STEPS])).logits[0, len(IDS) - 1 :]
    found = difference(expected.astype(np.float64), theirs.double().numpy())
    assert found.within(largest_of(TOLERANCES["float32"], found.count)), found
    # weights of a Meta folder, the config.json that was generated for it, transformers' own code
    report = verify_folder(folders["meta_double"], WITNESSES, steps=3)
    assert report.passed, [row.cells() for row in report.rows]
    cases = (*CASES, "around 64") if model.name == "llama-3.1-8b" else CASES
    exactly = [("spec", f"{case}{EXACTLY}") for case in cases]
    compared = [(r.witness, r.case) for r in report.rows if not r.case.startswith("table ")]
    assert sorted(compared) == sorted(
        [*exactly, *((witness, case) for witness in WITNESSES for case in cases)]
    )


def test_the_routes_are_told_apart(tmp_path: Path) -> None:
    """A Meta file whose rows are not permuted has the same shapes: only the values show it."""
    (model,) = (one for one in REDUCED if one.name == "llama-2-70b")
    out = exported(model, "meta_single", tmp_path)
    right = logits(out)
    torch_file = tmp_path / "meta_single" / "consolidated.00.pth"
    state = torch.load(torch_file, weights_only=True)
    state["layers.0.attention.wq.weight"] = model.state["model.layers.0.self_attn.q_proj.weight"]
    torch.save(state, torch_file)
    command = ["export", str(model.spec), "--checkpoint", str(torch_file), "--out", str(out)]
    assert main([*command, "--overwrite"]) == 0
    wrong = difference(logits(out).astype(np.float64), right.astype(np.float64))
    assert wrong.max_over_std > 0.1
