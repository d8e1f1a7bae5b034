"""The report of a study: words, tables, figures and CSV files say what the artifacts hold, and nothing of it is markup."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import evaluated
import handmade
import pytest
from evaluated import EVIL, POLICIES
from report_page import drawn, rows_of

from flows.report import Report, write_report
from flows.report_question import verdict
from tasks.evaluation_table import named
from tasks.view import View


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    return evaluated.and_trained(tmp_path)


def test_a_report_is_drawn_again_only_when_what_it_shows_was_built_again(
    study: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = drawn(study)
    path.write_text(path.read_text() + "<!-- left alone -->")
    assert write_report(study) == Report(path, {})
    assert "left alone" in path.read_text()
    # A forced stage has the same fingerprint, and other numbers.
    monkeypatch.setitem(handmade.PROVENANCE, "finished", "2026-11-22T00:00:00+00:00")
    evaluated.put(study, sft=0.25)
    drawn(study)
    assert "left alone" not in path.read_text()
    assert "+0.250" in path.read_text()


def test_new_names_of_rewards_reach_the_report(study: View, tmp_path: Path) -> None:
    path, _ = drawn(study)
    assert "gold" in path.read_text()
    drawn(handmade.view(tmp_path, handmade.STUDY.replace("gold", "words")))
    assert "words" in path.read_text() and "gold" not in path.read_text()
    # Two rewards that change names are the same artifacts under the same names, otherwise.
    swapped = handmade.STUDY.replace("gold", "QQ").replace("tone", "gold").replace("QQ", "tone")
    drawn(handmade.view(tmp_path))
    _, page = drawn(handmade.view(tmp_path, swapped))
    assert "Judged by tone, sft is lower than base: difference -0.750" in page.text


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
    said = (
        f"Judged by gold, bon[n=4] is {words} base: difference +0.125 [{low:+.3f}, {high:+.3f}], "
        "win rate 0.562 [0.400, 0.700] on 50 prompts"
    )
    assert verdict(row, 0.95) == f"{said}."
    row |= {"p": 0.0004, "p_holm": 0.25, "detectable": 0.3125}
    missed = ". A difference of 0.312 would by itself have been found four times in five" if "not" in words else ""
    assert verdict(row, 0.95) == f"{said}; p < 0.001{missed}."
    assert verdict(row, 0.95, 3) == f"{said}; p < 0.001, p = 0.250 with all 3 policies counted (Holm){missed}."
    row["prompts"] = 5  # of so few even one sign at all of them is no rare thing
    assert f"{row['policy']} is not told apart from base" in verdict(row, 0.95)


def test_the_question_is_the_study_in_a_sentence(study: View, tmp_path: Path) -> None:
    _, page = drawn(study)
    assert (
        "How do sft and bon compare with base, judged by tone (held out) and gold (guides 3 of 4)? Each policy "
        "gave 2 answers of at most 24 tokens to each of 8 prompts (prompts.eval), all with the same random numbers (seed 3)."
    ) in page.text


def test_what_was_expected_stands_beside_what_was_found_and_another_bar_draws_the_report_again(
    study: View, tmp_path: Path
) -> None:
    assert "expectation" not in drawn(study)[1].text
    evaluation = "rewards: [gold, tone]"

    def with_bars(bars: str) -> View:
        return handmade.view(tmp_path, handmade.STUDY.replace(evaluation, f"{evaluation}, expect: {bars}"))

    met = drawn(with_bars("{bon: {reward.tone: '> 0'}}"))[1]
    assert "All 2 expectations were met" in met.text
    path, page = drawn(with_bars("{sft: {win_rate.gold: '> 0.1', reward.tone: '>= 99'}}"))
    assert "1 of 2 expectations missed" in page.text
    assert ["sft", "win_rate.gold", "> 0.1"] in [cells[:3] for cells in page.cells if cells[-1] == "met"]
    assert ["sft", "reward.tone", ">= 99"] in [cells[:3] for cells in page.cells if cells[-1] == "missed"]
    assert "<details open><summary>1 of 2 expectations missed" in path.read_text(encoding="utf-8")


def test_there_is_a_verdict_for_each_policy_and_reward_but_the_reference_and_they_are_counted(study: View) -> None:
    _, page = drawn(study)
    for words in (
        "Judged by gold, sft is lower than base: difference -0.750 [-1.250, -0.250]",
        "Judged by tone, bon[n=2] is not told apart from base: difference +0.188 [-0.312, +0.688]",
        "Judged by gold, bon[n=4] is higher than base: difference +1.500 [+1.000, +2.000]",
        "p = 0.011, p = 0.031 with all 3 policies counted (Holm)",
    ):
        assert words in page.text
    assert page.text.count("Judged by ") == 3 * 2 + 2
    # Of 0.031, 0.061 and 0.091 all are below one less the confidence of 0.9.
    counted = "1 higher, 1 lower, 1 not told apart; with all 3 policies counted (Holm), 3 told apart"
    assert f"Judged by tone (held out): {counted}" in page.text
    assert f"Judged by gold (guides 3 of 4): {counted}" in page.text
    assert page.text.index("Judged by tone (held out)") < page.text.index("Judged by gold (guides")


def test_what_a_model_says_is_text_and_never_markup(study: View) -> None:
    path, page = drawn(study)
    (own,) = page.of("script")
    assert own == {}, "the only script is the page's own"
    assert f"prompt 0 {EVIL}" in page.text and f"answer 031 {EVIL}" in page.text
    script = re.search(r"<script>(.*?)</script>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policies = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def test_nothing_is_loaded_from_anywhere(study: View) -> None:
    path, page = drawn(study)
    pointing = {value for _, a in page.tags for key, value in a.items() if key.endswith(("href", "src", "srcset"))}
    beside = {name for name in pointing if name and not name.startswith("#")}
    assert beside and all((path.parent / name).exists() for name in beside), "links lead to files beside the page"
    assert not re.search(r"https?:|@import|url\((?!#)", path.read_text(encoding="utf-8"))
    for file in path.parent.glob("*.svg"):
        assert not re.search(r"https?:(?!//www\.w3\.org/(2000/svg|1999/xlink)\")", file.read_text(encoding="utf-8"))


def test_every_figure_has_a_name_in_words_and_its_numbers_beside_it(study: View) -> None:
    path, page = drawn(study)
    shown = [a for a in page.of("svg") if a.get("aria-hidden") != "true"]
    assert len(shown) > 8
    for attributes in shown:
        assert attributes["role"] == "img" and len(attributes["aria-label"] or "") > 30
    text = path.read_text(encoding="utf-8")
    captions = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert sum(caption.count("<svg viewBox") for caption in captions) == len(shown)
    for caption in captions:
        (file,) = re.findall(r"<a href='([^']+\.csv)'>", caption)
        assert rows_of(path.parent / file)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)), "two figures share an id"
    assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text)) <= set(ids)


def test_the_table_has_a_row_a_policy_sorted_by_the_reward_that_had_no_part(study: View) -> None:
    _, page = drawn(study)
    heads = next(row for row in page.cells if row[:2] == ["policy", "reward"])
    assert heads == [
        "policy", "reward", "win rate", "reward", "win rate", "KL, nats", "length, tokens", "tokens drawn", "positions", "time",
        "built in",
    ]  # fmt: skip
    at = page.cells.index(heads)
    assert page.cells[at - 1][1:3] == ["tone held out", "gold guides 3 of 4"]
    best, second, third, last = page.cells[at + 1 : at + 5]
    assert [row[0] for row in (best, second, third, last)] == ["bon[n=4]", "sft", "bon[n=2]", "base (reference)"]
    assert second == [
        "sft", "3.125 [2.875, 3.375]", "0.547 [0.422, 0.672]", "2.000 [1.750, 2.250] guides", "0.531 [0.406, 0.656]",
        "1.500 [1.250, 1.750] token by token", "11.0 [10.5, 11.5]", "12", "13", "0.750 s", "at least 12.3 s",
    ]  # fmt: skip
    assert last[-1] == "0.000 s", "nothing had to be made of the base"
    assert best[5] == "at most 0.640 [0.640, 0.640]"
    assert third[5] == "0.190 [0.180, 0.200] for best-of-n"
    keys = [a["data-key"] for tag, a in page.tags if tag in ("td", "th") and "data-key" in a]
    assert keys[:5] == ["bon[n=4]", "4.125", "0.609375", "4.0", "0.59375"], (
        "what a column is sorted by is the whole number"
    )


def test_a_bar_shows_its_interval_on_the_scale_of_all(study: View) -> None:
    path, _ = drawn(study)
    bars = re.findall(
        r"<line class=mark x1=(\S+) .*?/><line x1=(\S+) x2=(\S+) .*?/><circle cx=(\S+) ",
        path.read_text(encoding="utf-8"),
    )
    # By tone all lies between 0.875 and 4.375, 76 units of 3.5; base is at 1.125. First stands bon[n=4]: 4.125 +- 0.25.
    assert [float(x) for x in bars[0]] == pytest.approx(
        [4 + 76 * (1.125 - 0.875) / 3.5, 80 - 76 * 0.5 / 3.5, 80, 80 - 76 * 0.25 / 3.5], abs=0.06
    )


def test_the_csv_files_hold_the_artifacts_own_numbers(study: View) -> None:
    path, _ = drawn(study)
    read = rows_of(path.parent / "table.csv")
    assert [(r["policy"], r["judged_by"]) for r in read] == [(p, r) for p in POLICIES for r in ("gold", "tone")]
    for row, expected in zip(read, named(study.artifact("table")).rows(), strict=True):
        assert {k: type(expected[k])(v) for k, v in row.items() if k in expected} == expected
    found = evaluated.results()["policies"][1]
    assert float(read[3]["win_rate_high"]) == found["rewards"][1]["win_rate"]["high"]
    assert float(read[3]["length_low"]) == found["length"]["low"]
    of_policies = rows_of(path.parent / "table.policies.csv")
    for row, expected in zip(of_policies, named(study.artifact("table")).policy_rows(), strict=True):
        assert {k: type(expected[k])(v) for k, v in row.items() if k in expected} == expected
    made = [(row["making_seconds"], row["at_least_making_seconds"]) for row in of_policies]
    assert made == [("0.0", ""), ("", "12.34"), ("", "0.0"), ("", "0.0")]
    assert rows_of(path.parent / "sft.csv") == [
        {"step": "1", "loss": "2.5", "learning_rate": "0.1", "accuracy": ""},
        {"step": "2", "loss": "1.25", "learning_rate": "", "accuracy": "0.75"},
    ]


def test_a_report_is_left_alone_until_an_artifact_changes(study: View, tmp_path: Path) -> None:
    path, page = drawn(study)
    before = path.stat().st_mtime_ns, path.read_bytes()
    (path.parent / "table.csv").unlink()
    assert write_report(handmade.view(tmp_path)) == Report(path, {})
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert not (path.parent / "table.csv").exists()

    handmade.put(study, "pairs", {"pairs.jsonl": ""}, {"pairs": 7.0})
    _, more = drawn(study)
    assert "pairs 7" not in page.text
    assert "pairs 7" in more.text
    assert (path.parent / "table.csv").exists()

    changed = handmade.view(tmp_path, handmade.STUDY.replace("rewards: [gold, tone]", "rewards: [gold, tone], seed: 4"))
    evaluated.put(changed, sft=2.0)
    assert "sft is higher than base: difference +2.000" in drawn(changed)[1].text


def test_a_study_without_artifacts_has_no_report(tmp_path: Path, home: Path) -> None:
    study = handmade.view(tmp_path)
    assert write_report(study) is None
    assert not list((home / "studies").iterdir())


def test_each_stage_is_given_the_figures_that_were_drawn_of_it_and_their_numbers(study: View) -> None:
    written = write_report(study)
    assert written is not None and set(written.figures) == {"table", "sft"}
    assert [path.name for path in written.figures["sft"]] == ["sft.loss.svg", "sft.accuracy.svg", "sft.csv"]
    names = [path.name for path in written.figures["table"]]
    assert {
        "table.difference.tone.svg",
        "table.kl.gold.svg",
        "table.compute.tone.svg",
        "table.best_of.gold.svg",
    } <= set(names)
    assert "table.rewards.tone.gold.svg" in names
    assert sorted(path.name for path in written.path.parent.glob("*.svg")) == sorted(
        path.name for paths in written.figures.values() for path in paths if path.suffix == ".svg"
    )
