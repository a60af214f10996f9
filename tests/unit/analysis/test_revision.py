"""REVISION:PATH for everybody's repository, and nothing of a repository that runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llamagen
from llamagen import api
from llamagen.analysis import targets
from llamagen.analysis.targets import resolved_of
from llamagen.diagnostics import LlamagenError
from tests.unit.analysis import models

Git = Callable[..., str]
HEIR = "spec: 1\nid: {}\nextends: {}\ntitle: Heir\n"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Runs git in a new repository, which is the working folder."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    place = tmp_path / "repository"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("init", "-q")
    return run


def commit(git: Git, files: dict[str, str]) -> None:
    """Commit the files, and remove them from the working tree: what is read is the commit."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "one")
    for name in files:
        Path(name).unlink()


def model(spec_id: str) -> str:
    assert models.TINY.count("id: t/base\n") == 1
    return models.TINY.replace("id: t/base\n", f"id: {spec_id}\n")


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"x.yaml": HEIR.format("x", "llama/3.2/1b")}, "x.yaml"),
        ({"x.yaml": HEIR.format("mine", "base.yaml"), "base.yaml": model("any/thing")}, "x.yaml"),
        ({"x.yaml": HEIR.format("x", "base"), "base.yaml": model("base")}, "x.yaml"),
        ({"spec/x.yaml": HEIR.format("my/x", "llama/3/8b")}, "spec/x.yaml"),
        ({"a/b/x.yaml": HEIR.format("x", "../c.yaml"), "a/c.yaml": model("c")}, "a/b/x.yaml"),
        ({"a b/ü x.yaml": model("ü/x".replace("ü", "u"))}, "a b/ü x.yaml"),
        ({"-x.yaml": model("t/x")}, "-x.yaml"),
        ({"a:b.yaml": model("t/x")}, "a:b.yaml"),
        ({"*.yaml": model("t/x"), "y.yaml": model("t/y")}, "*.yaml"),
        ({"llama/x.yaml": HEIR.format("llama/x", "llama/y"), "llama/y.yaml": model("llama/y")}, "llama/x.yaml"),
    ],
)  # fmt: skip
def test_for_everybody(git: Git, files: dict[str, str], path: str) -> None:
    commit(git, files)
    found = resolved_of(f"HEAD:{path}")
    assert f"id: {found.spec.id}\n" in files[path]
    assert llamagen.load(f"HEAD:{path}").spec == found.spec
    assert api.model_of(f"HEAD:{path}").graphs


def test_a_path_may_count_from_the_working_folder(
    git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(git, {"a/x.yaml": model("t/x"), "y.yaml": model("t/y"), "x.yaml": model("t/z")})
    monkeypatch.chdir("a")
    paths = {"./x.yaml": "t/x", "../y.yaml": "t/y", "x.yaml": "t/z", "./../a/x.yaml": "t/x"}
    for path, spec_id in paths.items():
        assert resolved_of(f"HEAD:{path}").spec.id == spec_id
    with pytest.raises(LlamagenError, match="LG901"):
        resolved_of("HEAD:../../y.yaml")


def test_a_bare_repository(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(git, {"a/x.yaml": HEIR.format("x", "b.yaml"), "a/b.yaml": model("t/b")})
    git("clone", "-q", "--bare", ".", str(tmp_path / "bare.git"))
    monkeypatch.chdir(tmp_path / "bare.git")
    assert resolved_of("HEAD:a/x.yaml").spec.id == "x"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "bare.git"))
    assert resolved_of("HEAD:a/x.yaml").spec.id == "x"


def test_links_in_the_tree_are_followed_and_those_out_of_it_are_not(git: Git) -> None:
    Path("absolute").symlink_to("/etc")
    Path("out.yaml").symlink_to("/etc/passwd")
    Path("in.yaml").symlink_to("a/x.yaml")
    Path("gone.yaml").symlink_to("nowhere.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("folder").symlink_to("a")
    base = {"heir.yaml": HEIR.format("heir", "out.yaml")}
    commit(git, {"a/x.yaml": model("t/x"), **base})
    assert resolved_of("HEAD:a/x.yaml").spec.id == "t/x"
    assert resolved_of("HEAD:in.yaml").spec.id == "t/x"
    assert resolved_of("HEAD:folder/x.yaml").spec.id == "t/x"
    wrong = (
        "out.yaml",
        "gone.yaml",
        "loop.yaml",
        "absolute/passwd",
        "heir.yaml",
        "a",
        "a/x.yaml/b",
    )
    for path in wrong:
        with pytest.raises(LlamagenError, match="LG901"):
            resolved_of(f"HEAD:{path}")


@pytest.mark.parametrize("extends", ["../../{}", "{}", "../{}"])
def test_a_base_is_never_a_file_outside_of_the_repository(
    git: Git, tmp_path: Path, extends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "secret.yaml").write_text(model("t/secret"), encoding="utf-8")
    name = str(tmp_path / "secret.yaml") if extends == "{}" else "secret.yaml"
    commit(git, {"x.yaml": HEIR.format("x", extends.format(name))})
    with pytest.raises(LlamagenError, match="LG202"):
        resolved_of("HEAD:x.yaml")


def test_a_family_of_the_revision_is_not_completed_with_that_of_today(git: Git) -> None:
    heir = {"spec/llama/3/x.yaml": HEIR.format("llama/3/x", "llama/3/8b")}
    commit(git, heir)
    with pytest.raises(LlamagenError, match="LG202"):
        resolved_of("HEAD:spec/llama/3/x.yaml")


def test_too_large_is_not_read(git: Git) -> None:
    commit(git, {"x.yaml": "#" * (1 << 20) + "\n"})
    with pytest.raises(LlamagenError, match="LG002"):
        resolved_of("HEAD:x.yaml")


@pytest.mark.parametrize(
    "target",
    [
        *("--all:x.yaml", "-p:x.yaml", "--output=made:x.yaml", "HEAD:/x.yaml", "HEAD:a/../x.yaml"),
        *("HEAD\nHEAD:x.yaml", "HEAD:x.yaml\nHEAD:y.yaml", "nope:x.yaml", "HEAD x:x.yaml", ":x.yaml"),
        *("HEAD:", "HEAD:.", "HEAD:./", "HEAD:\ud800", "HEAD:\0", "HEAD:" + "a" * 5000),
        *("HEAD^{blob}:x.yaml", "HEAD:x.yaml:y.yaml", "symlink 3:x.yaml"),
    ],
)  # fmt: skip
def test_what_is_no_revision_or_path(git: Git, target: str) -> None:
    commit(git, {"x.yaml": model("t/x")})
    with pytest.raises(LlamagenError, match="LG901"):
        resolved_of(target)
    assert not Path("made").exists()


def test_a_revision_that_begins_with_a_minus_or_has_a_colon(git: Git) -> None:
    commit(git, {"x.yaml": model("t/x")})
    git("update-ref", "refs/heads/-p", "HEAD")
    git("commit", "-q", "--allow-empty", "-m", "fix: all")
    for name in ("refs/heads/-p", "-p", "HEAD^{/fix: all}", "HEAD^0", "HEAD@{0}", "@~1"):
        assert resolved_of(f"{name}:x.yaml").spec.id == "t/x"


def test_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(LlamagenError, match="not a git repository"):
        resolved_of("HEAD:x.yaml")


def sprung(trap: Path) -> bool:
    """Whether the program was started since this was last asked."""
    mark = trap.with_name("mark")
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program that leaves a mark where it was started; at the end of a test there is none."""
    mark, program = tmp_path / "mark", tmp_path / "trap.sh"
    program.write_text(f"#!/bin/sh\necho $0 $* >> '{mark}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path}")
    yield program
    assert not mark.exists(), mark.read_text(encoding="utf-8")


def test_nothing_that_a_configuration_names_is_started(git: Git, trap: Path) -> None:
    attributes = "*.yaml filter=evil diff=evil merge=evil ident export-subst\n"
    commit(git, {"x.yaml": model("t/x"), ".gitattributes": attributes})
    Path(".gitattributes").write_text(attributes, encoding="utf-8")
    for key in (
        *("filter.evil.smudge", "filter.evil.clean", "filter.evil.process", "diff.evil.textconv"),
        *("diff.evil.command", "diff.external", "core.fsmonitor", "core.pager", "pager.cat-file"),
        *("pager.rev-parse", "core.sshCommand", "core.editor", "core.askPass", "credential.helper"),
        *("gpg.program", "alias.cat-file", "alias.rev-parse", "core.gitProxy", "uploadpack.packObjectsHook"),
        *("core.alternateRefsCommand", "sequence.editor", "interactive.diffFilter", "merge.evil.driver"),
    ):  # fmt: skip
        value = f"!{trap}" if key.startswith("alias.") else str(trap)
        git("config", key, value)
    git("config", "core.hooksPath", str(trap.parent / "hooks"))
    (trap.parent / "hooks").mkdir()
    for hook in (
        "post-checkout",
        "post-index-change",
        "reference-transaction",
        "fsmonitor-watchman",
    ):
        (trap.parent / "hooks" / hook).symlink_to(trap)
    assert resolved_of("HEAD:x.yaml").spec.id == "t/x"
    assert resolved_of("HEAD:./x.yaml").spec.id == "t/x"
    assert not sprung(trap)
    # git may fail here: the trap speaks no filter's protocol, and whether git notices is a race
    subprocess.run(["git", "archive", "HEAD"], capture_output=True, check=False)
    assert sprung(trap), "the trap does not work"


def test_a_partial_clone_fetches_nothing(git: Git, trap: Path) -> None:
    commit(git, {"x.yaml": model("t/x")})
    blob = git("rev-parse", "HEAD:x.yaml").strip()
    Path(".git/objects", blob[:2], blob[2:]).unlink()
    git("config", "core.repositoryFormatVersion", "1")
    git("config", "extensions.partialClone", "origin")
    git("config", "remote.origin.promisor", "true")
    for url in (f"ext::{trap} %S", "ssh://example.org/x", f"file://{trap.parent}", "trap.sh::x"):
        git("config", "remote.origin.url", url)
        git("config", "remote.origin.uploadpack", str(trap))
        git("config", "core.sshCommand", str(trap))
        git("config", "protocol.allow", "always")
        with pytest.raises(LlamagenError, match="LG901"):
            resolved_of("HEAD:x.yaml")
    assert not sprung(trap)
    git("config", "remote.origin.url", f"ext::{trap} %S")
    subprocess.run(
        ["git", "cat-file", "-p", blob], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert sprung(trap), "the trap does not work"


def test_no_transport_is_left_to_a_git_that_fetches(
    git: Git, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git before 2.45 does not know the variable that the test above has to thank."""
    left = {name: value for name, value in targets._FORBID.items() if "LAZY" not in name}
    monkeypatch.setattr(targets, "_FORBID", left)
    test_a_partial_clone_fetches_nothing(git, trap)


def test_variables_of_git_that_start_or_trace_do_not_reach_it(
    git: Git, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(git, {"x.yaml": model("t/x")})
    for name in ("GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS"):
        monkeypatch.setenv(name, str(trap))
    for name in ("GIT_TRACE", "GIT_TRACE2_EVENT", "GIT_TRACE_SETUP"):
        monkeypatch.setenv(name, str(tmp_path / "mark"))
    monkeypatch.setenv("GIT_EXEC_PATH", str(tmp_path))
    assert resolved_of("HEAD:x.yaml").spec.id == "t/x"


def test_a_commit_is_what_it_is_and_not_what_replaces_it(git: Git) -> None:
    commit(git, {"x.yaml": model("t/x")})
    Path("y").write_text(model("t/y"), encoding="utf-8")
    git("replace", git("rev-parse", "HEAD:x.yaml").strip(), git("hash-object", "-w", "y").strip())
    assert resolved_of("HEAD:x.yaml").spec.id == "t/x"


def test_a_git_in_the_working_folder_is_not_the_one_that_is_run(
    git: Git, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(git, {"x.yaml": model("t/x")})
    Path("git").write_bytes(trap.read_bytes())
    Path("git").chmod(0o755)
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    with pytest.raises(LlamagenError, match="LG901"):
        resolved_of("HEAD:x.yaml")
