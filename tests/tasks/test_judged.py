"""An evaluation with judges: whom they are shown beside whom, what is asked again, and what comes of their verdicts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import stages
import tiny
from judge_endpoint import Endpoint, always_first, fault, longer, rambles, serving

from registry.methods.comparison import interval
from specs.problems import UnfitError
from tasks.evaluation_table import named

STAGES = """\
models: {{base: {{source: ./model, precision: fp32}}, other: {{source: ./other, precision: fp32}}}}
data: {{prompts: {{source: ./prompts.jsonl, format: prompt}}}}
rewards: {{words: {{kind: length}}}}
judges:
  careful: {{base_url: "{url}", model: some-model{fields}}}
  second: {{base_url: "{url}", model: other-model}}
stages:
  greedy: {{do: decode, method: greedy, from: base}}
  again: {{do: decode, method: greedy, from: base}}
  table:
    do: evaluate
    policies: {policies}
    against: {against}
    prompts: prompts
    rewards: [words]
    judges: {judges}
    budget: {{max_new_tokens: 12, samples_per_prompt: {samples}}}
    resamples: 300
"""
PROMPTS = [f"Tell me of number {i}." for i in range(6)]

Evaluate = Callable[..., stages.Built]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    tiny.language_model(folder / "model")
    tiny.language_model(folder / "other", seed=1)
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    return folder


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(longer) as made:
        yield made


@pytest.fixture
def evaluate(models: Path, tmp_path: Path, home: Path, endpoint: Endpoint) -> Evaluate:
    """Builds an evaluation; equal ones are built again, each in a place of its own, with one home between them."""
    numbers = itertools.count()

    def built(
        policies: str = "[base, other]",
        against: str = "base",
        judges: str = "[careful]",
        samples: int = 2,
        fields: str = "",
    ) -> stages.Built:
        given = {"policies": policies, "against": against, "judges": judges, "samples": samples}
        study = stages.study(models, STAGES.format(url=endpoint.url, fields=fields, **given))
        return stages.build(study, "table", tmp_path / f"{next(numbers)}")

    return built


def results(built: stages.Built) -> Any:
    return json.loads((built.folder / "evaluation.json").read_text())


def lines(built: stages.Built, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (built.folder / name).read_text().splitlines()]


def answers(built: stages.Built) -> dict[tuple[str, int, int], str]:
    """By prompt, policy and sample, out of the generation table alone."""
    rows = lines(built, "generations.jsonl")
    return {(row["prompt"][0]["content"], row["policy"], row["sample"]): row["response"] for row in rows}


def row(built: stages.Built, policy: str = "other") -> dict[str, Any]:
    (found,) = [r for r in named(built.artifact).verdicts() if r["policy"] == policy]
    return found


def test_each_sample_is_shown_beside_the_next_of_the_reference_in_both_orders(
    evaluate: Evaluate, endpoint: Endpoint
) -> None:
    built = evaluate(samples=3, fields=", pairs_per_prompt: 2")
    text = answers(built)
    expected = {
        order
        for prompt in PROMPTS
        for s in range(2)
        for ours, theirs in [(text[prompt, 1, s], text[prompt, 0, (s + 1) % 3])]
        for order in ((prompt, ours, theirs), (prompt, theirs, ours))
    }
    assert set(endpoint.asked) == expected
    assert len(endpoint.asked) == len(expected) == row(built)["requests"] == 6 * 2 * 2


def test_of_two_samples_the_last_is_shown_beside_the_first(evaluate: Evaluate, endpoint: Endpoint) -> None:
    text = answers(evaluate(fields=", pairs_per_prompt: 2"))
    shown = {(prompt, text[prompt, 1, s], text[prompt, 0, 1 - s]) for prompt in PROMPTS for s in range(2)}
    assert shown <= set(endpoint.asked)


def test_the_win_rate_is_the_share_of_pairs_that_the_judge_gives_us_with_an_interval_over_prompts(
    evaluate: Evaluate,
) -> None:
    built = evaluate(fields=", pairs_per_prompt: 2")
    text = answers(built)
    by_prompt = [
        fmean(
            (len(ours) > len(theirs)) + (len(ours) == len(theirs)) / 2
            for ours, theirs in ((text[prompt, 1, s], text[prompt, 0, 1 - s]) for s in range(2))
        )
        for prompt in PROMPTS
    ]
    assert 0 < fmean(by_prompt) < 1
    found = row(built)
    expected = interval(np.array(by_prompt), confidence=0.95, resamples=300, seed=3)
    assert (found["win_rate"], found["win_rate_low"], found["win_rate_high"]) == pytest.approx(tuple(expected))
    assert (found["position_bias"], found["agreement"], found["unparsable"]) == (0.5, 1.0, 0)
    assert (found["prompts"], found["prompts_left_out"], found["pairs"]) == (6, 0, 12)


def test_a_judge_that_always_takes_the_first_is_found_out(evaluate: Evaluate, endpoint: Endpoint) -> None:
    endpoint.rule = always_first
    found = row(evaluate())
    assert (found["win_rate"], found["win_rate_low"], found["win_rate_high"]) == (0.5, 0.5, 0.5)
    assert (found["position_bias"], found["agreement"], found["unparsable"]) == (1.0, 0.0, 0)


def test_a_judge_that_rambles_is_counted_and_gives_no_win_rate(evaluate: Evaluate, endpoint: Endpoint) -> None:
    endpoint.rule = rambles
    built = evaluate()
    found = row(built)
    assert found["win_rate"] is found["position_bias"] is found["agreement"] is None
    assert (found["unparsable"], found["requests"], found["prompts"], found["prompts_left_out"]) == (12, 12, 0, 6)
    notes = [content for kind, content in built.events if kind == "note"]
    assert f"careful: to a first question it said {rambles('', '')[:60]!r}, in which there is no verdict" in notes
    evaluation = named(built.artifact)
    assert not evaluation.metric("other", "judge.careful") >= 0  # no number, so it meets no bar
    assert not [name for name in evaluation.metrics() if name.startswith("other/judge/")]
    assert evaluation.metrics()["other/judge_unparsable/careful"] == 12


def test_prompts_without_a_verdict_in_both_orders_are_left_out_and_counted(
    evaluate: Evaluate, endpoint: Endpoint
) -> None:
    built = evaluate()
    text = answers(built)
    silent = {text[prompt, 1, 0] for prompt in PROMPTS[:2]}
    whole = row(built)
    # Another judge; shown ours first it says nothing of two prompts, and of the others what the first one said.
    endpoint.rule = lambda first, second: "" if first in silent else longer(first, second)
    part = row(evaluate(fields=", instruction: again"))
    assert (part["unparsable"], part["prompts"], part["prompts_left_out"], part["pairs"]) == (2, 4, 2, 4)

    def won(prompt: str) -> float:
        ours, theirs = len(text[prompt, 1, 0]), len(text[prompt, 0, 1])
        return (ours > theirs) + (ours == theirs) / 2

    assert whole["win_rate"] == pytest.approx(fmean(map(won, PROMPTS)))
    assert part["win_rate"] == pytest.approx(fmean(map(won, PROMPTS[2:])))


def test_a_pair_of_equal_answers_is_one_request_and_a_tie(evaluate: Evaluate, endpoint: Endpoint) -> None:
    """A greedy policy beside itself under another name: both orders are the same question."""
    endpoint.rule = always_first
    built = evaluate("[again, greedy]", against="greedy", samples=1)
    assert results(built)["reference"] == 0
    found = row(built, "greedy")
    assert len(endpoint.asked) == found["requests"] == 6
    assert (found["win_rate"], found["pairs"]) == (0.5, 6)


def test_the_reference_is_compared_with_nothing_and_wins_one_half(evaluate: Evaluate) -> None:
    built = evaluate("[other]")  # the reference comes last
    assert results(built)["policies"][1]["judges"] == [None]
    evaluation = named(built.artifact)
    assert [r["policy"] for r in evaluation.verdicts()] == ["other"]
    assert evaluation.metric("base", "judge.careful") == 0.5
    assert evaluation.metric("other", "judge.careful") == row(built)["win_rate"]


def test_every_reply_is_written_down_with_its_place(evaluate: Evaluate, endpoint: Endpoint) -> None:
    built = evaluate(judges="[careful, second]")
    text = answers(built)
    rows = lines(built, "verdicts.jsonl")
    assert len(rows) == 2 * 6 * 2
    assert [r["judge"] for r in rows] == [0] * 12 + [1] * 12
    ids = {r["prompt"] for r in rows}
    assert len(ids) == 6
    for r, (prompt, first) in zip(rows, itertools.product(PROMPTS, ("policy", "reference")), strict=False):
        shown = [text[prompt, 1, 0], text[prompt, 0, 1]]
        assert (r["policy"], r["samples"], r["first"]) == (1, [0, 1], first)
        assert r["reply"] == longer(*(shown if first == "policy" else shown[::-1]))
        assert r["verdict"] == {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}[r["reply"]]
        assert r["completion_tokens"] == 1 and r["prompt_tokens"] > 50
    careful = [r for r in rows if r["judge"] == 0]
    found = results(built)["policies"][1]["judges"][0]
    assert found["requests"] == 12 == found["completion_tokens"]
    assert found["prompt_tokens"] == sum(r["prompt_tokens"] for r in careful)
    assert {body["model"] for body in endpoint.bodies} == {"some-model", "other-model"}


def test_tokens_that_an_endpoint_does_not_count_are_not_made_up(evaluate: Evaluate, endpoint: Endpoint) -> None:
    endpoint.usage = False
    found = row(evaluate())
    assert found["prompt_tokens"] is found["completion_tokens"] is None
    assert found["requests"] == 12


def test_one_more_policy_costs_its_own_pairs_and_no_more(evaluate: Evaluate, endpoint: Endpoint) -> None:
    before = evaluate()
    assert len(endpoint.asked) == 12
    endpoint.asked.clear()
    after = evaluate("[greedy, base, other]")
    text = answers(after)
    shown = {(prompt, text[prompt, 0, 0], text[prompt, 1, 1]) for prompt in PROMPTS}
    assert set(endpoint.asked) == shown | {(prompt, theirs, ours) for prompt, ours, theirs in shown}
    assert len(endpoint.asked) == 12
    assert row(after) == row(before)
    notes = [content for kind, content in after.events if kind == "note"]
    assert "asking careful for 12 verdicts; 12 are there already" in notes


def test_an_evaluation_again_asks_for_nothing_and_comes_to_the_same_bytes(
    evaluate: Evaluate, endpoint: Endpoint
) -> None:
    before = evaluate()
    endpoint.asked.clear()
    endpoint.rule = always_first  # it is not asked
    after = evaluate()
    assert endpoint.asked == []
    for name in ("evaluation.json", "verdicts.jsonl"):
        assert (before.folder / name).read_bytes() == (after.folder / name).read_bytes()


def test_a_second_pair_of_each_prompt_is_all_that_is_asked_when_two_are_shown(
    evaluate: Evaluate, endpoint: Endpoint
) -> None:
    evaluate()
    endpoint.asked.clear()
    text = answers(evaluate(fields=", pairs_per_prompt: 2"))
    assert {shown[0] for shown in endpoint.asked} == set(PROMPTS)
    assert len(endpoint.asked) == 12
    assert all({first, second} == {text[p, 1, 1], text[p, 0, 0]} for p, first, second in endpoint.asked)


def test_an_evaluation_that_dies_among_its_verdicts_has_kept_those_it_got(
    evaluate: Evaluate, endpoint: Endpoint
) -> None:
    def five(first: str, second: str) -> str:
        if len(endpoint.asked) == 5:
            endpoint.faults = [fault(400, "Out of credit")]
        return longer(first, second)

    endpoint.rule = five
    with pytest.raises(UnfitError, match=r"judges\.careful: .* gave no reply \(400: Out of credit\)"):
        evaluate(fields=", parallel: 1")
    given = set(endpoint.asked)
    assert len(given) < 12
    endpoint.rule = longer
    endpoint.asked.clear()
    row(evaluate(fields=", parallel: 1"))
    assert len(endpoint.asked) == 12 - len(given)
    assert not set(endpoint.asked) & given


def test_a_fault_that_passes_changes_no_byte(evaluate: Evaluate, endpoint: Endpoint, home: Path) -> None:
    before = evaluate()
    (home / "verdicts.db").unlink()

    def once(first: str, second: str) -> str:
        if len(endpoint.asked) == 15:
            endpoint.faults.append(fault(500, "Out of order"))
        return longer(first, second)

    endpoint.rule = once
    after = evaluate()
    assert len(endpoint.asked) == 24 and endpoint.faults == []
    assert (before.folder / "evaluation.json").read_bytes() == (after.folder / "evaluation.json").read_bytes()


@pytest.mark.parametrize(("status", "told"), [(401, "wants a key"), (404, "has no `some-model`")])
def test_a_judge_that_cannot_be_asked_is_told_before_anything_is_sampled(
    evaluate: Evaluate, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int, told: str
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("answers were drawn")

    monkeypatch.setattr("tasks.evaluate.answer", never)
    endpoint.faults = [fault(status, "No")]
    with pytest.raises(UnfitError, match=rf"judges\.careful: .* {told}"):
        evaluate()


def test_as_many_requests_are_on_their_way_as_the_study_says(evaluate: Evaluate, endpoint: Endpoint) -> None:
    endpoint.seconds = 0.1
    evaluate(fields=", parallel: 3")
    assert endpoint.most_at_once == 3


def test_an_evaluation_without_judges_asks_nobody_and_writes_no_verdicts(
    evaluate: Evaluate, endpoint: Endpoint, home: Path
) -> None:
    built = evaluate(judges="[]")
    assert endpoint.bodies == []
    assert not (built.folder / "verdicts.jsonl").exists() and not (home / "verdicts.db").exists()
    assert results(built)["judges"] == [] == results(built)["policies"][0]["judges"]
    assert list(named(built.artifact).verdicts()) == []


def test_what_a_judge_is_called_changes_no_byte(models: Path, tmp_path: Path, home: Path, endpoint: Endpoint) -> None:
    given = {"policies": "[base, other]", "against": "base", "judges": "[careful]", "samples": 2}
    text = STAGES.format(url=endpoint.url, fields="", **given)
    one = stages.build(stages.study(models, text), "table", tmp_path / "one")
    other = stages.build(stages.study(models, text.replace("careful", "stern")), "table", tmp_path / "other")
    assert one.artifact.fingerprint == other.artifact.fingerprint
    for name in ("evaluation.json", "verdicts.jsonl"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    assert named(other.artifact).judges == ("stern",)


def test_the_terminals_table_shows_what_was_measured(evaluate: Evaluate, endpoint: Endpoint) -> None:
    from tasks.verdict_table import verdict_cells

    endpoint.rule = always_first
    cells = verdict_cells(row(evaluate()))
    tokens = row(evaluate())["prompt_tokens"]
    assert cells == [
        "0.500 [0.500, 0.500]", "6 of 6", "1.000", "0.000", "0", "12", f"{tokens:,} in, 48 out",
    ]  # fmt: skip
    endpoint.rule, endpoint.usage = rambles, False
    assert verdict_cells(row(evaluate(fields=", instruction: again"))) == [
        "none", "0 of 6", "none", "none", "12", "12", "not told",
    ]  # fmt: skip
