"""What no commit holds of the code: its changes and new files, as far as they are code, and no more of them than a person reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from registry import environments
from registry.environments import LONGEST_DIFFERENCE, _code
from registry.provenance import code_state


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in (("registry/store.py", "one = 1\n"), (".env", "PASSWORD=old\n"), (".gitignore", ".venv\n")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
    return root


def test_a_clean_checkout_has_a_commit_and_no_difference(checkout: Path) -> None:
    code = _code(checkout)
    assert (len(code["commit"]), code["dirty"], code["difference"], code["untracked"]) == (40, False, "", {})


def test_changes_to_code_are_kept_and_those_to_other_files_are_not(checkout: Path) -> None:
    (checkout / "registry" / "store.py").write_text("one = 2\n")
    (checkout / "registry" / "new.py").write_text("two = 2\n")
    (checkout / ".env").write_text("PASSWORD=sesame\n")
    code = _code(checkout)
    assert code["dirty"] and "-one = 1\n+one = 2" in code["difference"]
    assert "sesame" not in str(code)
    assert list(code["untracked"]) == ["registry/new.py"]


def test_more_than_a_person_reads_is_told_and_not_kept(checkout: Path) -> None:
    (checkout / "registry" / "store.py").write_text("x = 1\n" * (LONGEST_DIFFERENCE // 6))
    code = _code(checkout)
    assert code["difference"] is None and "bytes are more than 200,000" in code["why"]


def test_code_that_only_lies_in_a_checkout_has_no_commit_but_what_it_is_told(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / ".venv" / "registry"
    installed.mkdir(parents=True)
    (installed / "store.py").write_text("")
    assert code_state(installed) == {}
    code_state.cache_clear()
    monkeypatch.setenv("ALIGNFLOW_COMMIT", "0123abcd")  # as an image says it, in which there is no history
    assert code_state(installed) == {"commit": "0123abcd"}
    code_state.cache_clear()


def test_what_is_remembered_is_found_by_its_digest_and_kept_once(tmp_path: Path) -> None:
    name = environments.remember(tmp_path)
    assert environments.remember(tmp_path) == name
    kept = environments.recall(tmp_path, name)
    assert kept is not None
    assert {"torch", "pydantic"} <= set(kept["packages"])
    assert [p.name for p in (tmp_path / "environments").iterdir()] == [f"{name}.json"]
    assert environments.recall(tmp_path, "0" * 16) is None
