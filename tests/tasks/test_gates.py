"""A bar is met by the end of the interval that is nearer to missing it, in every evaluation that compares the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluated
import handmade
import pytest

from specs.problems import UserError
from tasks.gates import Gate, gates
from tasks.view import View


def study(folder: Path, expect: str = "") -> View:
    """Of `sft` the win rate by gold is 0.531 [0.406, 0.656], the length 11 [10.5, 11.5]."""
    text = handmade.STUDY.replace("rewards: [gold, tone]}", f"rewards: [gold, tone], expect: {{{expect}}}}}")
    made = handmade.view(folder, text)
    evaluated.put(made)
    return made


@pytest.mark.parametrize(
    ("bar", "is_met"),
    [
        ("win_rate.gold >= 0.5", False),  # though the estimate does
        ("win_rate.gold >= 0.4", True),
        ("length <= 11.2", False),
        ("length <= 11.5", True),
        ("length < 11.5", False),
        ("length > 10.4", True),
    ],
)
def test_not_the_estimate_is_to_meet_a_bar(tmp_path: Path, home: Path, bar: str, is_met: bool) -> None:
    (gate,) = gates(study(tmp_path), "sft", [bar])
    assert gate.is_met == is_met


def test_the_bars_of_the_study_come_first_and_those_of_a_sweep_bind_each_member(tmp_path: Path, home: Path) -> None:
    made = study(tmp_path, 'bon: {win_rate.tone: ">= 0.9"}, sft: {length: "<= 20"}')
    assert [(g.metric, g.bar, g.is_met) for g in gates(made, "bon[n=4]", ["reward.gold >= 3"])] == [
        ("win_rate.tone", ">= 0.9", False),
        ("reward.gold", ">= 3", True),
    ]
    assert str(gates(made, "sft", [])[0]) == "table: length is 11 [10.5, 11.5], and its upper end meets <= 20"
    assert gates(made, "base", []) == []


def test_a_judge_that_gave_no_verdict_meets_no_bar(tmp_path: Path, home: Path) -> None:
    text = handmade.STUDY.replace(
        "stages:", "judges:\n  careful: {base_url: http://127.0.0.1:1, model: m}\nstages:"
    ).replace("rewards: [gold, tone]}", "rewards: [gold, tone], judges: [careful]}")
    made = handmade.view(tmp_path, text)

    def without_verdicts(found: dict[str, Any]) -> None:
        for policy, judged in zip(found["policies"], (None, {"win_rate": None, "prompts": 0}, None, None), strict=True):
            policy["judges"] = [judged]

    evaluated.put(made, without_verdicts)
    found = gates(made, "sft", ["judge.careful >= 0", "judge.careful <= 1"])
    assert [gate.is_met for gate in found] == [False, False]


def test_a_few_prompts_meet_no_bar_whatever_their_interval_is(tmp_path: Path, home: Path) -> None:
    """Of five even one sign at all of them is chance one time in sixteen, and at 90 % five are enough; of one prompt the interval is
    the estimate."""
    made = handmade.view(tmp_path)

    def of(prompts: int) -> Gate:
        evaluated.put(made, lambda found: found.update(prompts=prompts, confidence=0.95))
        (gate,) = gates(made, "bon[n=4]", ["win_rate.gold >= 0.4"])
        return gate

    assert [of(prompts).is_met for prompts in (1, 5, 6)] == [False, False, True]
    assert str(of(1)).endswith("[0.4688, 0.7188] on 1 prompt, too few to be sure of >= 0.4")


@pytest.mark.parametrize(
    ("policy", "bar", "told"),
    [
        ("sft", "win_rate", "a bar is written `win_rate.gold >= 0.55`"),
        ("sft", "win_rat.gold >= 1", r"`win_rat.gold` is not a metric of `table`; did you mean `win_rate.gold`\?"),
        ("rolls", "length > 1", "no evaluation of this study compares `rolls`"),
    ],
)
def test_a_bar_that_nothing_can_tell_about_is_refused(
    tmp_path: Path, home: Path, policy: str, bar: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        gates(study(tmp_path), policy, [bar])


def test_so_is_one_of_an_evaluation_that_is_not_stored(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match="a bar for `sft` needs `table`, which is not stored; run the study first"):
        gates(handmade.view(tmp_path), "sft", ["length > 1"])
