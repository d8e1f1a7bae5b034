"""Rows and their lengths before a run: as the tokenizer of the run itself counts them, and counted once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from transformers import AutoTokenizer

from registry import lengths as module
from registry.dialogue_text import encode_answer, encode_prompt, set_template
from registry.lengths import lengths
from specs.load import load
from tasks.view import View

QUESTIONS = ["How was it?", "Ünïcödé, and 你好?", "A longer question than the others, is it not?"]


def view(folder: Path, rows: list[dict], form: str = "preference", template: str = "tokenizer") -> View:
    if not (folder / "model").exists():
        tiny.language_model(folder / "model")
    tiny.write_lines(folder / "rows.jsonl", rows)
    (folder / "study.yaml").write_text(
        f"version: 1\nname: small\nmodels: {{base: {{source: {folder}/model, template: {template}}}}}\n"
        f"data: {{rows: {{source: {folder}/rows.jsonl, format: {form}, max_dropped: 50%}}}}\n"
        "stages: {s: {do: decode, method: greedy, from: base}}\n"
    )
    return View.of(load(folder / "study.yaml").study, folder / "home", folder, offline=True)


@pytest.mark.parametrize("template", ["tokenizer", "hh", "text"])
def test_tokens_are_those_that_the_run_will_count(tmp_path: Path, template: str) -> None:
    rows = [{"prompt": q, "chosen": f"yes {i}" * i or "y", "rejected": "no"} for i, q in enumerate(QUESTIONS)]
    study = view(tmp_path, rows, template=template)
    found = lengths(study.artifact("rows"), study.artifact("base"), tmp_path / "home")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    set_template(tokenizer, template)
    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    assert found is not None
    assert found.rows == 3
    assert list(found.prompts) == [len(encode_prompt(tokenizer, p)) for p in asked]
    assert [list(a) for a in found.answers] == [
        [len(encode_answer(tokenizer, p, row[side])) for side in ("chosen", "rejected")]
        for p, row in zip(asked, rows, strict=True)
    ]


def test_rows_that_cannot_be_used_are_told_with_their_reasons(tmp_path: Path) -> None:
    study = view(tmp_path, [{"prompt": "a"}, {"prompt": 3}, {"prompt": "c"}], "prompt")
    found = lengths(study.artifact("rows"), study.artifact("base"), tmp_path / "home")
    assert found is not None
    assert (found.read, found.rows) == (3, 2)
    assert found.dropped == "1 of 3 rows dropped: `prompt` is neither text nor messages: 1 (row 2)"


def test_of_many_rows_some_are_counted_from_all_over_the_file(tmp_path: Path) -> None:
    study = view(tmp_path, [{"prompt": "x" * (1 + i // 100)} for i in range(1000)], "prompt")
    found = lengths(study.artifact("rows"), study.artifact("base"), tmp_path / "home")
    assert found is not None
    assert found.rows == 1000
    assert len(found.prompts) <= module.COUNTED
    assert len(set(found.prompts)) == 10


def test_what_was_counted_is_kept_in_a_home_that_is_there_and_counted_anew_for_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = view(tmp_path, [{"prompt": "a"}], "prompt")
    home = tmp_path / "home"
    lengths(first.artifact("rows"), first.artifact("base"), home)
    assert not home.exists()  # a plan writes nothing where nothing ever ran
    home.mkdir()
    found = lengths(first.artifact("rows"), first.artifact("base"), home)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_counted", None)
        assert lengths(first.artifact("rows"), first.artifact("base"), home) == found
    other = view(tmp_path, [{"prompt": "a"}, {"prompt": "b"}], "prompt")
    again = lengths(other.artifact("rows"), other.artifact("base"), home)
    assert again is not None
    assert again.rows == 2


@pytest.mark.parametrize(
    ("part", "written"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", None),
        ("chat_template.jinja", "{% if %}"),
        ("chat_template.jinja", "{{ messages[0].content + 1 }}"),
    ],
)
def test_a_tokenizer_that_is_not_in_order_is_guessed_here_and_told_by_whoever_loads_it(
    tmp_path: Path, part: str, written: str | None
) -> None:
    study = view(tmp_path, [{"prompt": "x" * 450}], "prompt")
    (tmp_path / "model" / part).unlink(missing_ok=True)
    if written is not None:
        (tmp_path / "model" / part).write_text(written)
    study = view(tmp_path, [{"prompt": "x" * 450}], "prompt")
    found = lengths(study.artifact("rows"), study.artifact("base"), tmp_path / "home")
    assert found is not None
    assert not found.exact
    assert found.prompts == (module.AROUND + 1 + round(450 / module.BYTES_A_TOKEN),)
