"""The report of a study: words, tables, figures and CSV files say what the artifacts hold, and nothing of it is markup."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import handmade
import pytest

from flows.figures import curves, intervals
from flows.report import verdict, write_report
from tasks.evaluation_table import named
from tasks.view import View

POLICIES = ("base", "sft", "bon[n=2]", "bon[n=4]")
EVIL = "<script>alert('x')</script> & more"


def interval(estimate: float, width: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def results(sft: float = -0.75) -> dict[str, Any]:
    """Every number differs from every other, so that none can stand for another."""
    return {
        "prompts": 2, "samples_per_prompt": 1, "confidence": 0.9, "reference": 0,
        "policies": [
            {
                "fingerprint": policy, "length": interval(10 + i, 0.5), "finished": i / 4,
                "rewards": [
                    {
                        "reward": interval(1 + i + j / 8, 0.25),
                        "difference": interval((0.0, sft, 0.125, 1.5)[i] + j / 16, 0.5 if i else 0.0),
                        "win_rate": interval(0.5 + i / 32 + j / 64, 0.125 if i else 0.0),
                    }
                    for j in range(2)
                ],
            }
            for i, policy in enumerate(POLICIES)
        ],
        "rewards": ["gold", "tone"],
    }  # fmt: skip


def generations() -> str:
    return handmade.lines(
        *(
            {
                "prompt": [{"role": "user", "content": f"prompt {p} {EVIL}"}], "policy": i, "sample": 0,
                "response": f"answer {p}{i} {EVIL}", "tokens": 4, "finished": True, "rewards": [p + i / 4, p - i / 4],
            }
            for p in range(2)
            for i in range(len(POLICIES))
        )
    )  # fmt: skip


def evaluated(study: View, **changes: float) -> None:
    files = {"evaluation.json": json.dumps(results(**changes)), "generations.jsonl": generations()}
    handmade.put(study, "table", files)


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    """Evaluated and trained; its responses and pairs are not there any more."""
    made = handmade.view(tmp_path)
    evaluated(made)
    curve = [{"step": 1, "loss": 2.5, "learning_rate": 0.1}, {"step": 2, "loss": 1.25, "accuracy": 0.75}]
    handmade.put(made, "sft", {"training.jsonl": handmade.lines(*curve)}, {"rows": 8.0, "test/accuracy": 0.625})
    return made


def test_a_report_is_drawn_again_only_when_what_it_shows_was_built_again(
    study: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(study)
    assert path is not None
    path.write_text(path.read_text() + "<!-- left alone -->")
    write_report(study)
    assert "left alone" in path.read_text()
    # A forced stage has the same fingerprint, and other numbers.
    monkeypatch.setitem(handmade.PROVENANCE, "finished", "2026-11-22T00:00:00+00:00")
    evaluated(study, sft=0.25)
    write_report(study)
    assert "left alone" not in path.read_text()
    assert "0.250" in path.read_text()


def test_new_names_of_rewards_reach_the_report(study: View, tmp_path: Path) -> None:
    path = write_report(study)
    assert path is not None and "gold" in path.read_text()
    renamed = handmade.view(tmp_path, handmade.STUDY.replace("gold", "words"))
    write_report(renamed)
    assert "words" in path.read_text() and "gold" not in path.read_text()


class Page(HTMLParser):
    """A page as a browser takes it: the tags, the cells of every table, the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.cells[-1][-1] += data


def drawn(study: View) -> tuple[Path, Page]:
    path = write_report(study)
    assert path is not None
    return path, Page(path.read_text(encoding="utf-8"))


def texts(svg: str) -> set[str]:
    return {"".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.5, "higher than"),
        (-0.5, -0.01, "lower than"),
        (-0.5, 0.5, "not told apart from"),
        (0.0, 0.5, "not told apart from"),
        (-0.5, 0.0, "not told apart from"),
    ],
    ids=["above zero", "below zero", "across zero", "from zero", "up to zero"],
)
def test_a_verdict_is_no_stronger_than_its_interval(low: float, high: float, words: str) -> None:
    row = {"policy": "bon[n=4]", "against": "base", "judged_by": "gold", "prompts": 50, "difference": 0.125}
    row |= {"difference_low": low, "difference_high": high}
    row |= {"win_rate": 0.5625, "win_rate_low": 0.4, "win_rate_high": 0.7}
    assert verdict(row) == (
        f"Judged by gold, bon[n=4] is {words} base: difference +0.125 [{low:+.3f}, {high:+.3f}], "
        "win rate 0.562 [0.400, 0.700] on 50 prompts."
    )


def test_the_summary_has_a_verdict_for_each_policy_and_reward_but_the_reference(study: View) -> None:
    _, page = drawn(study)
    for words in (
        "Judged by gold, sft is lower than base: difference -0.750 [-1.250, -0.250]",
        "Judged by tone, bon[n=2] is not told apart from base: difference +0.188 [-0.312, +0.688]",
        "Judged by gold, bon[n=4] is higher than base: difference +1.500 [+1.000, +2.000]",
    ):
        assert words in page.text
    assert page.text.count("Judged by") == 3 * 2
    assert page.tags.count("li") == 3 * 2


def test_what_a_model_says_is_text_and_never_markup(study: View) -> None:
    _, page = drawn(study)
    assert "script" not in page.tags
    assert [f"prompt 0 {EVIL}", "bon[n=4]", f"answer 03 {EVIL}", "0.750", "-0.750"] in page.cells
    assert len([row for row in page.cells if row[0].startswith("prompt ")]) == 2 * 4


def test_the_tables_show_what_was_found_and_what_was_not_built(study: View) -> None:
    _, page = drawn(study)
    assert [
        "sft", "tone", "2.125 [1.875, 2.375]", "-0.688 [-1.188, -0.188]", "0.547 [0.422, 0.672]", "11.0 [10.5, 11.5]",
        "25 %",
    ] in page.cells  # fmt: skip
    stages = {row[0]: row for row in page.cells if len(row) == 6 and row[0] != "stage"}
    assert set(stages) == {"rolls", "pairs", "sft", "bon[n=2]", "bon[n=4]", "table"}
    assert stages["sft"][3:] == ["12.3 s", "rows 8", "2026-11-21T10:11:12"]
    assert stages["pairs"][3:] == ["not built", "", ""]
    assert "Code: 0123456789ab with uncommitted changes." in page.text
    assert ["test/accuracy", "0.6250"] in page.cells
    assert "90 % BCa bootstrap" in page.text


def test_the_csv_files_hold_the_artifacts_own_numbers(study: View) -> None:
    path, _ = drawn(study)
    with (path.parent / "table.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [(r["policy"], r["judged_by"]) for r in read] == [(p, r) for p in POLICIES for r in ("gold", "tone")]
    for row, expected in zip(read, named(study.artifact("table")).rows(), strict=True):
        assert {k: type(expected[k])(v) for k, v in row.items()} == expected
    found = results()["policies"][1]
    assert float(read[3]["win_rate_high"]) == found["rewards"][1]["win_rate"]["high"]
    assert float(read[3]["length_low"]) == found["length"]["low"]
    with (path.parent / "sft.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "loss": "2.5", "learning_rate": "0.1", "accuracy": ""},
            {"step": "2", "loss": "1.25", "learning_rate": "", "accuracy": "0.75"},
        ]


def test_a_report_is_left_alone_until_an_artifact_changes(study: View, tmp_path: Path) -> None:
    path, page = drawn(study)
    before = path.stat().st_mtime_ns, path.read_bytes()
    (path.parent / "table.csv").unlink()
    assert write_report(handmade.view(tmp_path)) == path
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert not (path.parent / "table.csv").exists()

    handmade.put(study, "pairs", {"pairs.jsonl": ""}, {"pairs": 7.0})
    _, more = drawn(study)
    assert "pairs 7" not in page.text
    assert "pairs 7" in more.text
    assert (path.parent / "table.csv").exists()

    changed = handmade.view(tmp_path, handmade.STUDY.replace("rewards: [gold, tone]", "rewards: [gold, tone], seed: 4"))
    evaluated(changed, sft=2.0)
    assert "sft is higher than base: difference +2.000" in drawn(changed)[1].text


def test_a_study_without_artifacts_has_no_report(tmp_path: Path, home: Path) -> None:
    study = handmade.view(tmp_path)
    assert write_report(study) is None
    assert not list((home / "studies").iterdir())


def test_figures_name_what_they_show(study: View) -> None:
    rows = list(named(study.artifact("table")).rows())
    labels = texts(intervals(rows, "base"))
    assert {"mean reward by gold", "mean reward by tone", "win rate against base", "judged by", *POLICIES} <= labels
    assert intervals(rows, "base") == intervals(rows, "base")
    one = [r for r in rows if r["judged_by"] == "gold"]
    assert "mean reward by tone" not in texts(intervals(one, "base"))
    labels = texts(curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "accuracy": 0.5}]))
    assert {"training loss", "training accuracy", "optimizer step"} <= labels
    assert "training margin" not in labels


def test_the_page_carries_its_figures(study: View) -> None:
    path, page = drawn(study)
    assert page.tags.count("svg") == 2
    assert {"mean reward by gold", "training loss"} <= {line.strip() for line in page.text.splitlines()}
    assert path.parent.name == "small"


def test_an_evaluation_is_a_markdown_table(study: View) -> None:
    from flows.align import markdown_table

    rows = list(named(study.artifact("table")).rows())
    assert markdown_table([rows[0], rows[7]]) == (
        "| policy | judged by | reward | win rate | tokens |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| base | gold | 1.000 [0.750, 1.250] | 0.500 [0.500, 0.500] | 10.0 |\n"
        "| bon[n=4] | tone | 4.125 [3.875, 4.375] | 0.609 [0.484, 0.734] | 13.0 |"
    )
