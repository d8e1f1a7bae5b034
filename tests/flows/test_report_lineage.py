"""Where the report says that results come from, and the tables that Prefect and the terminal show of them."""

from __future__ import annotations

import json
from pathlib import Path

import evaluated
import handmade
import pytest
from report_page import drawn

from tasks.evaluation_table import named
from tasks.view import View


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    return evaluated.and_trained(tmp_path)


def test_the_stages_are_listed_with_what_was_not_built(study: View) -> None:
    _, page = drawn(study)
    stages = {row[0]: row for row in page.cells if len(row) == 7 and row[0] != "stage"}
    assert set(stages) == {"rolls", "pairs", "sft", "bon[n=2]", "bon[n=4]", "table"}
    assert stages["sft"][1:3] == ["sft", "base, pairs"]
    assert stages["sft"][4:] == ["12.3 s", "rows 8", "2026-11-21 10:11"]
    assert stages["pairs"][4:] == ["not built", "", ""]
    assert "2 of 6 stages are built; building them took 24.7 s in all." in page.text
    assert "0123456789ab with uncommitted changes" in page.text
    assert ["test/accuracy", "0.6250"] in page.cells
    assert "90 % BCa bootstrap" in page.text


def test_what_was_dropped_of_the_data_is_told_where_the_data_are(study: View) -> None:
    dropped = {"prompts": {"read": 40, "dropped": {"empty prompt": 2, "no prompt": 1}}}
    handmade.put(
        study, "rolls", {"responses.jsonl": "", "dropped.json": json.dumps(dropped)}, {"dropped_rows/prompts": 3.0}
    )
    _, page = drawn(study)
    assert [
        "prompts.train",
        "quickstart-eval, prompt",
        "6",
        "rolls",
        "3 of 40 (empty prompt 2, no prompt 1)",
    ] in page.cells
    assert ["prompts.eval", "quickstart-eval, prompt", "2", "table", "none"] in page.cells
    (model,) = (row for row in page.cells if row[:2] == ["base", "smollm2-135m-instruct"])
    assert model[2] == "sha256 b179c9523d0e6a0f, precision fp32"


def test_how_to_run_it_again_is_what_was_run_without_its_passwords(
    study: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["alignflow", "run", "my study.yaml", "--set", "tracking.uri=postgresql://me:sesame@host/runs"]
    monkeypatch.setitem(handmade.PROVENANCE, "command", asked)
    handmade.put(study, "pairs", {"pairs.jsonl": ""})
    path, page = drawn(study)
    told = "'my study.yaml' --set 'tracking.uri=postgresql://me:***@host/runs'"
    before = "git checkout 0123456789abcdef\npip install torch==2.9.0"
    assert f"{before}\nalignflow replay small" in page.text
    assert f"{before}\nalignflow plan {told}\nalignflow run {told}" in page.text
    assert "The code had changes that no commit holds" in page.text
    assert "sesame" not in path.read_text(encoding="utf-8")


def test_an_evaluation_is_a_markdown_table(study: View) -> None:
    from flows.summary import evaluation_markdown

    lines = evaluation_markdown(named(study.artifact("table"))).splitlines()
    assert [lines[i] for i in (0, 1, 2, 9)] == [
        "| policy | judged by | part | reward | win rate | KL | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| base | gold | held out | 1.000 [0.750, 1.250] | 0.500 [0.500, 0.500] | 0.000 | 10.0 |",
        "| bon[n=4] | tone | held out | 4.125 [3.875, 4.375] | 0.609 [0.484, 0.734] | <= 0.640 | 13.0 |",
    ]


def test_the_terminal_marks_rewards_that_guide_and_tells_divergences(study: View) -> None:
    from flows.summary import evaluation_tables

    (table,) = evaluation_tables(study)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["judged by"] == ["gold", "tone", *["gold (guides)", "tone"] * 3]
    assert columns["KL"] == ["0.000"] * 2 + ["1.500"] * 2 + ["0.190"] * 2 + ["<= 0.640"] * 2
