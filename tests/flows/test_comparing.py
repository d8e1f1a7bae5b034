"""Policies of several studies side by side: paired where prompts are shared, left out with the reason where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest

from flows.cli import main
from flows.comparing import compare, tables
from registry.methods.comparison import interval, win_rates
from registry.methods.significance import holm, permutation_p
from specs.problems import UserError
from tasks.view import View

PROMPTS = [f"Question {i}?" for i in range(6)]
POLICIES = ("base", "sft", "bon[n=2]", "bon[n=4]")

KL: list[dict[str, Any]] = [
    {"point_mass": {"estimate": 31.25, "low": 30.0, "high": 32.0}},
    {"rao_blackwell": {"estimate": 1.25, "low": 1.0, "high": 1.5}},
    {"bound": {"estimate": 0.193, "low": 0.193, "high": 0.193}},
    {},
]
COST = {"prompt_positions": 4.0, "decode_positions": 9.5, "guide_positions": 2.0}


def rewards(policy: int, prompt: int, shift: float) -> list[list[float]]:
    """Of two samples, under both rewards."""
    value = ((prompt * 7 + policy * 3) % 5) / 2 + shift * policy
    return [[value + s / 4, -value - s / 8] for s in range(2)]


def put(study: View, shift: float, prompts: list[str] = PROMPTS, limit: int = 16, samples: int = 2) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": text}], "policy": i, "sample": s, "response": "r", "tokens": 1,
            "finished": True, "rewards": rewards(i, int(text.split()[1][:-1]), shift)[s],
        }
        for text in prompts
        for i in range(len(POLICIES))
        for s in range(samples)
    ]  # fmt: skip
    table = study.artifact("table")
    reference = [p.fingerprint for p in table.inputs["policies"]].index(table.one("against").fingerprint)
    results = {
        "prompts": len(prompts), "samples_per_prompt": samples, "max_new_tokens": limit, "reference": reference, "chooser": 0,
        "policies": [
            {"fingerprint": p.fingerprint, "kl": KL[i], "cost": COST} for i, p in enumerate(table.inputs["policies"])
        ],
        "rewards": [r.fingerprint for r in table.inputs["rewards"]],
    }  # fmt: skip
    files = {"evaluation.json": json.dumps(results), "measured.json": json.dumps([{}] * 4)}
    handmade.put(study, "table", files | {"generations.jsonl": handmade.lines(*rows)})


@pytest.fixture
def first(tmp_path: Path, home: Path) -> View:
    view = handmade.view(tmp_path)
    put(view, 0.0)
    return view


def second(folder: Path, *changes: tuple[str, str], **options: Any) -> View:
    """A study with another fine-tuning."""
    text = handmade.STUDY
    for old, new in (("name: small", "name: other"), ("data: pairs}", "data: pairs, epochs: 3}"), *changes):
        text = text.replace(old, new)
    view = handmade.view(folder, text)
    put(view, 0.5, **options)
    return view


def values(policy: int, shift: float) -> np.ndarray:
    return np.array([[sample[0] for sample in rewards(policy, prompt, shift)] for prompt in range(len(PROMPTS))])


def test_policies_of_two_studies_are_paired_prompt_by_prompt(first: View, tmp_path: Path) -> None:
    found = compare([first, second(tmp_path)])
    assert found.reference == "small:base" and not found.left_out
    rows = {row["policy"]: row for row in found.rows if row["judged_by"] == "gold"}
    # The two bases are one policy with one set of answers.
    assert list(rows) == [*(f"small:{p}" for p in POLICIES), *(f"other:{p}" for p in POLICIES[1:])]
    ours, theirs = values(1, 0.5), values(0, 0.0)
    difference = ours.mean(1) - theirs.mean(1)
    entry = first.artifact("table").entry
    expected = interval(difference, confidence=0.95, resamples=2000, seed=3)
    row = rows["other:sft"]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == pytest.approx(tuple(expected))
    assert row["win_rate"] == pytest.approx(win_rates(ours, theirs).mean())
    assert row["p"] == permutation_p(difference, resamples=entry.resamples, seed=3)
    others = [row for name, row in rows.items() if name != "small:base"]
    assert [row["p_holm"] for row in others] == holm([row["p"] for row in others])
    assert "p" not in rows["small:base"] and rows["small:base"]["difference"] == 0


def test_what_part_a_reward_had_in_each_policy_stands_beside_it(first: View, tmp_path: Path) -> None:
    found = compare([first, second(tmp_path)])
    parts = {row["policy"]: row["part"] for row in found.rows if row["judged_by"] == "gold"}
    assert parts.pop("small:base") == "held out"
    assert set(parts.values()) == {"guides"}
    assert {row["part"] for row in found.rows if row["judged_by"] == "tone"} == {"held out"}
    (table, _) = tables(found)
    assert list(table.columns[1].cells).count("guides") == len(parts)


def test_divergence_and_cost_stand_beside_the_rewards(first: View, tmp_path: Path) -> None:
    rows = {row["policy"]: row for row in compare([first, second(tmp_path)]).rows if row["judged_by"] == "gold"}
    assert [rows["other:sft"][f"kl{end}"] for end in ("", "_low", "_high")] == [1.25, 1.0, 1.5]
    assert rows["small:bon[n=2]"]["kl"] == 0.193 and "kl" not in rows["small:bon[n=4]"]
    assert {row["positions_per_answer"] for row in rows.values()} == {15.5}


def test_how_a_divergence_is_known_and_from_which_model_stands_beside_it(first: View, tmp_path: Path) -> None:
    found = compare([first])
    assert {row["policy"]: row.get("kl_estimator") for row in found.rows} == {
        "small:base": "point_mass", "small:sft": "rao_blackwell", "small:bon[n=2]": "bound", "small:bon[n=4]": None,
    }  # fmt: skip
    (table, _) = tables(found)
    assert dict(zip(table.columns[0].cells, table.columns[-2].cells, strict=True)) == {
        "small:base": "31.250 (one answer)", "small:sft": "1.250", "small:bon[n=2]": "<= 0.193", "small:bon[n=4]": "",
    }  # fmt: skip
    assert table.columns[-2].header == "KL, nats" and table.caption == "KL from the model of small:base"


SFT = ("against: base", "against: sft")
LESS = ("tone: {kind: lexicon}", "tone: {kind: length, per_word: -1.0}")


def test_a_divergence_from_another_reference_is_another_thing(first: View, tmp_path: Path) -> None:
    found = compare([first, second(tmp_path, SFT)])
    others = [row for row in found.rows if row["policy"].startswith("other:")]
    assert others and not any("kl" in row for row in others)
    assert any("kl" in row for row in found.rows)
    assert "other:sft, its divergence: it was not measured from the model of small:base" in found.left_out
    assert not any("kl" in row for row in compare([first], "small:sft").rows), "base is what it was measured from"
    # Where both saw the base, what the second study measured from its own reference is known of it too.
    rows = {row["policy"]: row for row in compare([first, second(tmp_path, SFT)], "other:sft").rows}
    assert rows["small:base"]["kl"] == 31.25 and "kl" not in rows["small:sft"]


def test_only_what_both_were_asked_is_compared(first: View, tmp_path: Path) -> None:
    found = compare([first, second(tmp_path, prompts=PROMPTS[:4])])
    rows = {row["policy"]: row for row in found.rows if row["judged_by"] == "tone"}
    assert (rows["small:sft"]["prompts"], rows["other:sft"]["prompts"]) == (6, 4)
    found = compare([first, second(tmp_path, prompts=["Question 7?", "Question 8?"])])
    assert {row["policy"].split(":")[0] for row in found.rows} == {"small"}
    assert "other:sft by gold: 0 prompts in common with small:base" in found.left_out


def test_a_reward_that_only_one_study_asked_is_no_comparison(first: View, tmp_path: Path) -> None:
    found = compare([first, second(tmp_path, LESS)])
    assert {row["policy"].split(":")[0] for row in found.rows if row["judged_by"] == "tone"} == {"small"}
    assert "other:sft by tone: it was asked `other:tone`, which is another reward" in found.left_out


def test_a_reward_that_a_later_study_alone_asked_is_told(first: View, tmp_path: Path) -> None:
    other = second(tmp_path, LESS, ("tone", "mood"))
    found = compare([first, other])
    # Both saw the base answer, so that what either study's reward said of it is known.
    rows = [row["policy"] for row in found.rows if row["judged_by"] == "mood"]
    assert rows == ["small:base", *(f"other:{p}" for p in POLICIES[1:])]
    assert "other:sft by tone: it was not asked" in found.left_out
    assert "small:sft by mood: it was not asked" in found.left_out
    left_out = compare([first, other], "small:sft").left_out
    assert [line for line in left_out if line.startswith(("small:base by", "other:sft by"))] == [
        "other:sft by tone: it was not asked", "small:base by mood: small:sft was not asked",
        "other:sft by mood: small:sft was not asked",
    ]  # fmt: skip
    left_out = compare([first, second(tmp_path, LESS)], "small:sft").left_out
    assert "other:sft by other:tone: small:sft was asked `tone`, which is another reward" in left_out


def test_a_policy_of_two_studies_is_found_by_either_name(first: View, tmp_path: Path) -> None:
    both = [first, second(tmp_path)]
    assert compare(both, "other:base") == compare(both, "small:base")


def test_answers_under_other_limits_are_left_out_and_it_says_so(first: View, tmp_path: Path) -> None:
    found = compare([first, second(tmp_path, limit=64)])
    assert {row["policy"].split(":")[0] for row in found.rows} == {"small"}
    told = "its answers had other limits (64 new tokens, 2 samples a prompt, not 16 new tokens, 2 samples a prompt)"
    assert f"other:sft: {told}" in found.left_out


def test_any_policy_can_be_the_reference_and_a_misspelt_one_is_told(first: View) -> None:
    found = compare([first], "small:bon[n=2]")
    assert {row["against"] for row in found.rows} == {"small:bon[n=2]"}
    with pytest.raises(UserError, match=r"there is no `small:sfd`; did you mean `small:sft`\?"):
        compare([first], "small:sfd")


def test_draws_that_share_their_numbers_have_no_win_rate_with_one_sample_a_prompt(tmp_path: Path, home: Path) -> None:
    view = handmade.view(tmp_path)
    put(view, 0.0, samples=1)
    found = compare([view], "small:base")
    rows = {row["policy"]: row for row in found.rows if row["judged_by"] == "gold"}
    assert {name for name, row in rows.items() if "win_rate" in row} == {"small:base"}
    assert sum("its win rate: with one sample a prompt" in line for line in found.left_out) == 6
    assert all("difference" in row for row in rows.values())


def test_studies_without_an_evaluation_have_nothing_to_compare(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match="has a stored `evaluate` stage"):
        compare([handmade.view(tmp_path)])


def test_a_study_that_was_not_run_is_named(first: View, tmp_path: Path) -> None:
    other = handmade.view(
        tmp_path,
        handmade.STUDY.replace("name: small", "name: other").replace("data: pairs}", "data: pairs, epochs: 3}"),
    )
    assert compare([first, other]).left_out == ["other: it has no stored `evaluate` stage; run it"]


def test_two_studies_of_one_name_are_told_apart_by_their_number(first: View, tmp_path: Path) -> None:
    again = second(tmp_path, ("name: other", "name: small"))
    found = compare([first, again])
    assert found.reference == "small#1:base"
    assert "small#2:sft" in {row["policy"] for row in found.rows}


def test_the_command_prints_a_table_for_each_reward(
    first: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path / "s.yaml")]) == 0
    told = capsys.readouterr().out
    assert "judged by gold, against small:base" in told and "judged by tone" in told and "small:bon[n=4]" in told
    assert main(["compare", str(tmp_path / "s.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "small:base"


def test_two_runs_of_one_changed_file_are_compared_by_their_ids(
    first: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = "aa11" * 8, "bb22" * 8
    handmade.end(first, runs[0])
    handmade.end(second(tmp_path, ("name: other", "name: small")), runs[1])  # the file says something else now
    assert main(["compare", runs[0], "bb22", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "small#1:base"
    assert {"small#1:sft", "small#2:sft"} <= {row["policy"] for row in found["rows"]}
    assert main(["compare", "cc33"]) == 2 and "knows no run or study `cc33`" in capsys.readouterr().err
