"""What is recorded of a command: no key and no password."""

from __future__ import annotations

import pytest

from registry.provenance import command


@pytest.mark.parametrize("words", [["--api-key", "hush"], ["--api-key=hush"], ["postgresql://me:hush@host/db"]])
def test_a_key_on_the_command_line_is_in_no_record(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/alignflow", "serve", *words, "--port", "8000"])
    told = command()
    assert told[:2] == ["alignflow", "serve"] and told[-2:] == ["--port", "8000"]
    assert "hush" not in " ".join(told)
