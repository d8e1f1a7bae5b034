"""What stands under the table: equal spending, fronts, over-optimisation, answers side by side, guidance, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluated
import handmade
import pytest
from markupsafe import escape
from report_page import drawn, rows_of

from flows.fronts import _paths, on_front
from flows.optimisation import families, gains
from flows.report_generations import most, pairs
from flows.report_spending import at_equal_spending
from flows.reward_roles import first_judge, order, part
from registry.methods.best_of_n import kl_bound
from specs.load import load
from tasks.evaluation_table import Evaluation, generations, named
from tasks.view import View


@pytest.fixture
def study(tmp_path: Path, home: Path) -> View:
    made = handmade.view(tmp_path)
    evaluated.put(made)
    return made


def of(study: View) -> Evaluation:
    return named(study.artifact("table"))


def answers(study: View) -> list[dict[str, Any]]:
    found = of(study)
    return list(generations(study.artifact("table"), found.policies, found.rewards))


def shown(study: View) -> tuple[Path, str]:
    """The report's folder and its source."""
    path, _ = drawn(study)
    return path.parent, path.read_text(encoding="utf-8")


def test_the_judge_that_had_the_least_part_is_looked_at_first(study: View, tmp_path: Path) -> None:
    found = of(study)
    assert first_judge(found) == 1 and order(found) == [1, 0]
    assert (part(found, 0), part(found, 1)) == ("guides 3 of 4", "held out")
    # A reward model that `tone` labelled chooses, `gold` does no more: behind the guide is nearer than guiding.
    learned = handmade.STUDY.replace("reward: gold}", "reward: tone}").replace(
        "  bon:", "  rm: {do: reward_model, from: base, data: pairs}\n  bon:"
    )
    learned = learned.replace("reward: gold, sweep", "reward: rm, sweep").replace("[gold, tone]", "[rm, tone, gold]")
    # The same numbers, whoever judges: only the names matter here.
    view = handmade.view(tmp_path, learned.replace("policies: [base, sft, bon]", "policies: [base, bon]"))

    def three(results: dict[str, Any]) -> None:
        results["policies"].pop(1)
        for policy in results["policies"]:
            policy["rewards"].append(policy["rewards"][0])
            policy["best_of"].append(policy["best_of"][0])

    evaluated.put(view, three)
    found = of(view)
    assert [part(found, i) for i in range(3)] == [
        "guides bon[n=2], bon[n=4]",
        "behind the guide of bon[n=2], bon[n=4]",
        "held out",
    ]
    assert order(found) == [2, 0, 1]


def test_at_equal_spending_each_policy_has_the_draws_that_the_dearest_answer_pays_for(study: View) -> None:
    """Of tokens a draw of base costs 11 (11 an answer), of sft 12, of best-of-2 11 (22 an answer), of best-of-4 11 (44): 44 pay
    for 4, 3, 4 and 4. Of positions 10, 11, 10 and 10, and
    2 of the prompt once: 42 pay for 4, 3, 4 and 4. Two were drawn of base and of sft."""
    found = {(r["measure"], r["policy"], r["judged_by"]): r for r in at_equal_spending(of(study))}
    assert len(found) == 3 * 4 * 2
    for measure, paid, read in (
        ("draws", [4, 4, 4, 4], [2, 2, 4, 4]),
        ("tokens", [4, 3, 4, 4], [2, 2, 4, 4]),
        ("positions", [4, 3, 4, 4], [2, 2, 4, 4]),
    ):
        for i, policy in enumerate(evaluated.POLICIES):
            row = found[measure, policy, "tone"]
            assert (row["affordable_draws"], row["read_at"]) == (paid[i], read[i]), (measure, policy)
            assert row["reward"] == 1 + i + read[i] / 16 + 1 / 64
    assert found["tokens", "sft", "gold"]["cost_of_an_answer"] == 12
    _, text = shown(study)
    assert "The dearest answer is that of bon[n=4]: 44 tokens." in text
    assert "<td>2, all there are</td>" in text


def test_a_policy_without_randomness_gives_its_one_answer_at_any_spending(study: View) -> None:
    def greedy(results: dict[str, Any]) -> None:
        results["policies"][1]["best_of"] = []

    evaluated.put(study, greedy)
    rows = [r for r in at_equal_spending(of(study)) if r["policy"] == "sft" and r["judged_by"] == "gold"]
    assert [(r["affordable_draws"], r["read_at"], r["reward"]) for r in rows] == [(4, 1, 2.0), (3, 1, 2.0), (3, 1, 2.0)]
    assert "<td>its one answer</td>" in shown(study)[1]


def test_who_is_beaten_is_not_on_the_front() -> None:
    costs = {"a": 0.0, "b": 1.0, "c": 1.0, "d": 2.0, "e": 3.0}
    rewards = {"a": 0.0, "b": 2.0, "c": 1.0, "d": 2.0, "e": 2.5}
    assert on_front(costs, rewards) == {"a", "b", "e"}  # c is beaten by b, and so is d, which costs more for as much
    assert on_front({}, {}) == set()


def test_the_fronts_numbers_are_the_artifacts(study: View) -> None:
    folder, text = shown(study)
    rows = {(r["policy"], r["judged_by"]): r for r in rows_of(folder / "table.kl.csv")}
    assert [rows[p, "gold"]["kl"] for p in evaluated.POLICIES] == ["0.0", "1.5", "0.19", "0.64"]
    ends = [(rows[p, "tone"]["reward_low"], rows[p, "tone"]["reward_high"]) for p in evaluated.POLICIES]
    assert ends == [("0.875", "1.375"), ("2.875", "3.375"), ("1.875", "2.375"), ("3.875", "4.375")]
    assert [rows[p, "gold"]["kl_estimator"] for p in evaluated.POLICIES] == ["rao_blackwell"] * 2 + [
        "best_of_n",
        "bound",
    ]
    # By gold 1, 2, 3 and 4 at 0, 1.5, 0.19 and 0.64 nats; by tone sft has 3.125 and is beaten by bon[n=4] all the same.
    assert [rows[p, "gold"]["on_front"] for p in evaluated.POLICIES] == ["True", "False", "True", "True"]
    compute = {(r["policy"], r["judged_by"]): r for r in rows_of(folder / "table.compute.csv")}
    assert [compute[p, "tone"]["positions_per_answer"] for p in evaluated.POLICIES] == ["12.0", "13.0", "22.0", "42.0"]
    assert [compute[p, "tone"]["on_front"] for p in evaluated.POLICIES] == ["True", "True", "False", "True"]
    assert [(compute[p, "tone"]["reward_low"], compute[p, "tone"]["reward_high"]) for p in evaluated.POLICIES] == ends
    both = {r["policy"]: r for r in rows_of(folder / "table.rewards.csv")}
    assert [(both[p]["x_reward_low"], both[p]["x_reward_high"]) for p in evaluated.POLICIES] == ends
    assert (both["sft"]["y"], both["sft"]["y_reward"]) == ("gold", "2.0")
    assert (both["sft"]["y_reward_low"], both["sft"]["y_reward_high"]) == ("1.75", "2.25")
    assert "full: token by token; full on the left: for best-of-n; full below: at most" in text
    assert "The line is the best of n draws of base by gold" in text, (
        "for base is 0 nats from itself and chooses by nothing"
    )
    best_of = rows_of(folder / "table.best_of.csv")
    assert {(r["policy"], r["n"], r["kl_bound"]) for r in best_of} >= {("bon[n=4]", "8", str(kl_bound(8)))}


def test_the_hypervolume_is_told_with_its_reference_point(study: View) -> None:
    """Tone and gold of base, sft, bon[n=2], bon[n=4]: (1.125, 1), (3.125, 2), (2.125, 3), (4.125, 4). The last beats all; the
    reference point lies a tenth of the range of 3 below (1.125, 1), so the volume is 3.3 squared."""
    folder, text = shown(study)
    (row,) = rows_of(folder / "table.hypervolume.csv")
    assert row["rewards"] == "tone gold" and row["reference_point"] == "0.825, 0.7"
    assert float(row["hypervolume"]) == pytest.approx(3.3**2)
    assert "tone and gold: hypervolume 10.89 above (0.825, 0.7)" in text
    assert [r["on_front"] for r in rows_of(folder / "table.rewards.csv")] == ["False", "False", "False", "True"]


def test_that_positions_of_all_models_count_alike_is_said_where_compute_is_compared(study: View) -> None:
    _, text = shown(study)
    spending, fronts = text.split("At equal spending", 1)[1].split("Reward against compute", 1)
    for caption in (spending, fronts):
        assert "a position counts alike whichever model reads it" in caption


def test_a_column_of_the_texts_says_what_it_counts_and_of_whom(study: View) -> None:
    def given(results: dict[str, Any]) -> None:
        for policy in results["policies"]:
            policy["perplexity"]["given"] = evaluated.interval(2, 0.25)

    evaluated.put(study, given)
    _, page = drawn(study)
    assert [heads[-2:] for heads in page.cells if "whole texts scored per answer" in heads] == [
        ["device time per answer", "peak memory"]
    ]
    (heads,) = (heads for heads in page.cells if "perplexity: given answers under the policy" in heads)
    assert "perplexity: own answers under the model of base" in heads
    assert not any("texts scored per answer" in row for row in page.cells)


def test_policies_whose_divergence_is_not_known_are_named_beneath(study: View) -> None:
    def unknown(results: dict[str, Any]) -> None:
        results["policies"][3]["kl"] = {}

    evaluated.put(study, unknown)
    folder, text = shown(study)
    assert "Not drawn, for their divergence is not known: bon[n=4]." in text
    assert {r["policy"] for r in rows_of(folder / "table.kl.csv")} == {"base", "sft", "bon[n=2]"}
    assert "<small>not known</small>" in text


def test_soups_are_told_by_their_gap_and_the_least_of_it(study: View) -> None:
    assert "the chord between" not in shown(study)[1]

    def soups(results: dict[str, Any]) -> None:
        for i in (2, 3):
            for j in range(2):
                results["policies"][i]["rewards"][j]["lmc_gap"] = evaluated.interval(0.25 - i / 8 - j / 16, 0.5)

    evaluated.put(study, soups)
    handmade.put(study, "pairs", {"pairs.jsonl": ""})  # so that the report is drawn again
    _, text = shown(study)
    assert "Least under gold: -0.125 [-0.625, 0.375], of bon[n=4]." in text
    assert "Least under tone: -0.188 [-0.688, 0.312], of bon[n=4]." in text


FAMILIES = """\
version: 1
name: families
models:
  base: {source: smollm2-135m-instruct}
data:
  prompts: {source: quickstart-eval, format: prompt}
rewards:
  gold: {kind: length}
stages:
  raft: {do: raft, from: base, prompts: prompts, reward: gold, rounds: 3}
  bon: {do: decode, method: best_of_n, from: base, reward: gold, sweep: {n: [2, 4, 8], temperature: [0.5, 1.0]}}
  pair: {do: decode, method: best_of_n, from: base, reward: gold, sweep: {n: [2, 4]}}
"""


def test_a_family_differs_in_one_number_alone_and_has_three_members(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(FAMILIES)
    stages = load(tmp_path / "s.yaml").study.stages
    found = {family.name: family for family in families(stages, ["base", *stages])}
    assert {name: family.number for name, family in found.items()} == {
        "raft": "round", "bon[temperature=0.5]": "n", "bon[temperature=1.0]": "n",
    }  # fmt: skip
    assert found["raft"].members == {1: "raft[round=1]", 2: "raft[round=2]", 3: "raft"}
    assert found["bon[temperature=0.5]"].members == {n: f"bon[n={n:g},temperature=0.5]" for n in (2.0, 4.0, 8.0)}
    assert list(families(stages, ["raft", "raft[round=1]"])) == []


def test_rounds_and_mixtures_are_joined_in_their_order(tmp_path: Path) -> None:
    two = (
        "raft: {do: raft, from: base, prompts: prompts.train, reward: gold, rounds: 3}\n  low: {do: raft, from: base, "
    )
    two += "prompts: prompts.train, reward: tone}\n  soup: {do: soup, experts: [raft, low], weights: {grid: 3}}\n  bon:"
    stages = load(handmade.view(tmp_path, handmade.STUDY.replace("bon:", two)).folder / "s.yaml").study.stages
    mixtures = ["soup[1,0]", "soup[0.5,0.5]", "soup[0,1]"]
    found = _paths(stages, ["base", "raft", "raft[round=2]", "raft[round=1]", *mixtures, "bon[n=2]", "bon[n=4]"])
    assert found == [["raft[round=1]", "raft[round=2]", "raft"], mixtures]


def test_over_optimisation_is_told_in_the_deviations_of_the_references_answers(tmp_path: Path, home: Path) -> None:
    """Base scores 0, 1/8, 1 and 9/8 by gold: its deviation is sqrt(65) / 16."""
    view = handmade.view(
        tmp_path, handmade.STUDY.replace("n: [2, 4]", "n: [2, 4, 8]").replace("[base, sft, bon]", "[base, bon]")
    )
    evaluated.put(view)
    (family,) = families(view.study.stages, of(view).policies)
    rows = list(gains(of(view), answers(view), family))
    assert [(r["n"], r["judged_by"], r["reward_had_part"]) for r in rows] == [
        *((n, "gold", "guides") for n in (2, 4, 8)), *((n, "tone", "held out") for n in (2, 4, 8)),
    ]  # fmt: skip
    unit = 65**0.5 / 16
    assert [r["difference"] for r in rows[:3]] == pytest.approx([-0.75 / unit, 0.125 / unit, 1.5 / unit])
    assert rows[0]["difference_high"] == pytest.approx(-0.25 / unit)
    folder, text = shown(view)
    assert "Over-optimisation" in text and "gold (guides)" in text and "tone (held out)" in text
    assert len(rows_of(folder / "table.optimisation.csv")) == 6


def test_without_a_family_there_is_no_curve_of_over_optimisation(study: View) -> None:
    assert "Over-optimisation" not in shown(study)[1]


def test_answers_are_paired_by_prompt_and_number_and_the_most_gained_come_first(study: View) -> None:
    rows = answers(study)
    for row in rows:  # sft gains 1, 2, 3 and -1 on the four answers of base
        if row["policy"] in ("base", "sft"):
            at = (row["prompt"][7], row["sample"])
            gain = {("0", 0): 1.0, ("0", 1): 2.0, ("1", 0): 3.0, ("1", 1): -1.0}[at]
            row["reward.gold"] = gain if row["policy"] == "sft" else 0.0
    found = pairs(of(study), rows, "sft", "gold")
    assert [pair.gain for pair in found] == [3.0, 2.0, 1.0, -1.0]
    for pair in found:
        assert (pair.answer["policy"], pair.reference["policy"]) == ("sft", "base")
        assert pair.answer["prompt"] == pair.reference["prompt"] and pair.answer["sample"] == pair.reference["sample"]
    assert [pair.gain for pair in most(found)] == [3.0, 2.0], "no prompt is shown twice"
    assert most([pair for pair in found if pair.gain < 0]) == []


def test_two_prompts_that_end_alike_are_two_prompts(study: View) -> None:
    rows = [row | {"prompt": "Go on."} for row in answers(study)]
    found = pairs(of(study), rows, "bon[n=4]", "gold")
    assert [pair.gain for pair in found] == [0.75] * 4
    assert {pair.answer["response"][:10] for pair in found} == {"answer 030", "answer 031", "answer 130", "answer 131"}


def test_a_dialogue_of_several_turns_is_folded_beneath_its_last(study: View) -> None:
    before = [{"role": "user", "content": "What is <it>?"}, {"role": "assistant", "content": "This."}]
    rows = [json.loads(line) for line in evaluated.generations().splitlines()]
    asked = rows[0]["prompt"]
    told = [row | {"prompt": before + asked} if row["prompt"] == asked else row for row in rows]
    event = {"draws": [{"draw": 1, "text": "whole", "reward": 2.5, "chosen": True}]}
    trace = handmade.lines({"policy": 2, "prompt": asked[0]["content"], "events": [event]})
    evaluated.put(study, generations=handmade.lines(*told), traces=trace)
    _, text = shown(study)
    dialogue = "<summary>The whole dialogue</summary>\n<div class=said tabindex=0>"
    dialogue += "User: What is &lt;it&gt;?\n\nAssistant: This.\n\nUser: prompt 0"
    answered, traced = text.split("Guidance, token by token")
    # Of each policy but the reference one pair at that prompt, and one at the other, which has a single turn.
    assert answered.count("The whole dialogue") == answered.count(dialogue) == 3
    assert traced.count(dialogue) == 1
    assert f"<p class=prompt>prompt 0 {escape(evaluated.EVIL)} <span" in answered


def test_two_dialogues_that_end_alike_are_both_shown(study: View) -> None:
    rows = [row | {"prompt": "Go on.", "dialogue": f"{row['prompt']}, go on."} for row in answers(study)]
    assert len(most(pairs(of(study), rows, "bon[n=4]", "gold"))) == 2


def test_answers_stand_side_by_side_with_all_their_scores(study: View) -> None:
    _, text = shown(study)
    # By tone every policy loses i / 4: none gained.
    assert "0 of 4 answers score higher than the reference's, 4 lower" in text
    assert "Gained most: no answer did." in text
    assert "tone 0.125, gold 1.875" in text and "tone 0.875, gold 1.125" in text
    assert "tone -0.750</span>" in text


def test_there_is_nothing_of_guidance_where_none_was_kept(study: View) -> None:
    assert "token by token</h3>" not in shown(study)[1]


def test_what_guided_a_policy_is_shown_choice_by_choice(study: View) -> None:
    def candidate(token: str, log_prob: float, score: float, share: float, chosen: bool = False) -> dict[str, Any]:
        return {"token": token, "log_prob": log_prob, "scores": [score], "share": share, "chosen": chosen}

    tokens = [
        {"step": 0, "candidates": [candidate(" kind", -1.5, 0.75, 0.625, True), candidate("<b>", -0.5, -0.25, 0.375)]},
        {"step": 1, "candidates": [candidate("\n", -0.25, 0.5, 1.0, True)]},
    ]
    blocks = [
        {
            "step": 0,
            "branches": [
                {"text": "one way", "score": 0.5, "chosen": False},
                {"text": "another", "score": 0.7, "chosen": True},
            ],
        }
    ]
    tried = [{"step": 4, "segment": {"text": "a part", "reward": 0.25, "threshold": 0.375, "verdict": "refused"}}]
    draws = [{"draws": [{"draw": 1, "text": "whole", "reward": 2.5, "chosen": True}]}]
    kept = [{"policy": 2, "prompt": f"why {evaluated.EVIL}?", "events": e} for e in (tokens, blocks, tried, draws)]
    evaluated.put(study, traces=handmade.lines(*kept))
    _, text = shown(study)
    assert "1 of 2 tokens are not the policy&#39;s own most probable candidate." in text
    assert (
        "<tr><th scope=row>0</th><td><code>\u00b7kind</code></td><td>-1.500</td><td>0.750</td><td>0.625</td>"
        "<td><code>&lt;b&gt;</code></td><td>&#39;&lt;b&gt;&#39; 0.38</td></tr>"
    ) in text
    assert "<th scope=col>score by gold</th>" in text, "the guide's name is this study's"
    assert "<code>\u21b5</code></td><td>-0.250</td><td>0.500</td><td>1.000</td><td>the same</td>" in text
    assert "<code>another</code></span></td><td>0.700</td><td>taken</td>" in text.replace("\u00b7", " ")
    assert "<td>0.250</td><td>0.375</td><td>refused</td>" in text
    assert "<code>whole</code></span></td><td>2.500</td><td>taken</td>" in text
    assert "<b>" not in text.split("Guidance, token by token", 1)[1].split("</section>", 1)[0]


def test_audits_stand_with_their_intervals(study: View) -> None:
    path, page = drawn(study)
    assert ["bon[n=4]", "gold", "tone", "0.875 [0.375, 1.375]"] in page.cells
    assert ["sft", "0.210 [0.190, 0.230]", "0.110 [0.090, 0.130]"] in page.cells
    (row,) = rows_of(path.with_name("table.apart.csv"))
    assert (row["policy"], row["gained_more_low"]) == ("bon[n=4]", "0.375")
    rows = list(of(study).rows())
    for row in rows:  # all of them: to show those alone that leave 0 out would be a verdict
        interval = f"{row['length_bias']:.3f} [{row['length_bias_low']:.3f}, {row['length_bias_high']:.3f}]"
        assert [row["policy"], row["judged_by"], interval, "2"] in page.cells


def test_trainings_that_differ_by_their_seed_stand_together(study: View) -> None:
    path, page = drawn(study)
    assert ["sft, bon[n=2]", "gold", "7.000 [6.500, 7.500]", "6.000 [5.500, 6.500]"] in page.cells
    assert [row["judged_by"] for row in rows_of(path.with_name("table.seeds.csv"))] == ["gold", "tone"]
