"""Stages that stand for several: rounds become chains, grids of weights become soups, and names keep their meaning."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from specs.graph import Graph
from specs.kinds import KINDS, kind
from specs.load import load
from specs.plan import steps
from specs.problems import SpecError
from specs.spread import IN_ROUNDS, simplex
from specs.study import entries

HEAD = """\
version: 1
name: s
models: {base: {source: ./m}}
data:
  prompts: {source: ./p.jsonl, format: prompt}
  pairs: {source: ./q.jsonl, format: preference}
rewards: {joy: {kind: lexicon}, short: {kind: length, per_word: -1.0}}
stages:
"""
RAFT = "do: raft, from: base, prompts: prompts, reward: joy"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(stages: str) -> Path:
        path = tmp_path / "s.yaml"
        path.write_text(HEAD + stages)
        return path

    return written


def graph(path: Path) -> Graph:
    return Graph(entries(load(path).study))


def problems(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path)
    return [str(p).split(":", 1)[1] for p in caught.value.problems]


def test_rounds_become_a_chain_whose_last_keeps_the_name(write: Write) -> None:
    study = load(write(f"  raft: {{{RAFT}, rounds: 3}}\n")).study
    assert [(n, s.round, s.previous, s.from_) for n, s in study.stages.items()] == [
        ("raft[round=1]", 1, None, "base"),
        ("raft[round=2]", 2, "raft[round=1]", "base"),
        ("raft", 3, "raft[round=2]", "base"),
    ]


def test_the_name_of_rounds_means_the_last_of_them_and_each_can_be_named(write: Write) -> None:
    stages = f"""\
  raft: {{{RAFT}, rounds: 2}}
  rl: {{do: rl, from: raft, prompts: prompts, reward: joy}}
  first: {{do: rl, from: "raft[round=1]", prompts: prompts, reward: joy}}
"""
    found = graph(write(stages))
    assert next(iter(found.inputs("rl"))) == ("from", "raft")
    assert next(iter(found.inputs("first"))) == ("from", "raft[round=1]")


def test_more_rounds_reuse_those_that_are_there(write: Write) -> None:
    prints = [
        {n: s.fingerprint for n, s in steps(load(write(f"  raft: {{{RAFT}, rounds: {r}}}\n")).study, {}).items()}
        for r in (2, 4)
    ]
    assert prints[1]["raft[round=1]"] == prints[0]["raft[round=1]"]
    assert prints[1]["raft[round=2]"] == prints[0]["raft"]
    assert len(set(prints[1].values())) == len(prints[1])


def test_the_kinds_with_rounds_are_those_that_are_trained_in_rounds() -> None:
    assert set(IN_ROUNDS) == {do for do in KINDS if "rounds" in getattr(kind(do), "model_fields", {})}


def test_one_round_is_the_stage_itself(write: Write) -> None:
    plain, one = (
        steps(load(write(f"  raft: {{{RAFT}{rounds}}}\n")).study, {})["raft"].fingerprint
        for rounds in ("", ", rounds: 1")
    )
    assert plain == one


def test_what_an_export_writes_out_is_read_as_it_stands(write: Write) -> None:
    stages = f"""\
  expert: {{{RAFT.replace(", reward: joy", "")}, rounds: 2, sweep: {{reward: [joy, short]}}}}
  soup: {{do: soup, experts: expert, weights: {{grid: 3}}}}
"""
    study = load(write(stages)).study
    path = write("")
    YAML().dump(study.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"spread": False}, path)
    again = load(path).study
    assert list(again.stages) == list(study.stages)
    assert len(again.stages) == 7
    assert steps(again, {}) == steps(study, {})
    path.write_text(path.read_text().replace("spread: false", "spread: true"))
    told = problems(path)
    assert any("unknown key" in problem for problem in told)
    assert any("brackets name the members of a `sweep:`" in problem for problem in told)


def test_a_sweep_of_rounds_names_the_last_round_of_each_member(write: Write) -> None:
    stages = """\
  expert: {do: raft, from: base, prompts: prompts, rounds: 2, sweep: {reward: [joy, short]}}
  mixed: {do: soup, experts: expert}
"""
    found = graph(write(stages))
    assert found.members("expert") == ["expert[reward=joy]", "expert[reward=short]"]
    assert list(found.inputs("mixed")) == [("experts", "expert[reward=joy]"), ("experts", "expert[reward=short]")]
    assert ("previous", "expert[reward=joy,round=1]") in found.inputs("expert[reward=joy]")


@pytest.mark.parametrize(
    ("experts", "grid", "count"), [("[a, b]", 11, 11), ("[a, b, c]", 3, 6), ("[a, b, c, d]", 3, 10)]
)
def test_a_grid_becomes_a_soup_for_each_point_of_the_simplex(write: Write, experts: str, grid: int, count: int) -> None:
    stages = "".join(f"  {name}: {{{RAFT}, seed: {i}}}\n" for i, name in enumerate("abcd"))
    found = graph(write(f"{stages}  soup: {{do: soup, experts: {experts}, weights: {{grid: {grid}}}}}\n"))
    members = [found.nodes[name].entry for name in found.members("soup")]
    assert len(members) == len({m.weights for m in members}) == count
    assert all(sum(m.weights) == pytest.approx(1, abs=1e-12) for m in members)


def test_the_points_of_a_grid_go_from_the_first_expert_to_the_last_and_are_named_by_their_weights(write: Write) -> None:
    stages = f"  a: {{{RAFT}}}\n  b: {{{RAFT}, seed: 1}}\n"
    found = graph(write(f"{stages}  soup: {{do: soup, experts: [a, b], weights: {{grid: 3}}}}\n"))
    assert found.members("soup") == ["soup[1,0]", "soup[0.5,0.5]", "soup[0,1]"]
    assert found.nodes["soup[1,0]"].entry.weights == (1, 0)


@given(st.integers(1, 5), st.integers(2, 9))
def test_a_grid_has_as_many_points_as_compositions_and_each_is_an_average(experts: int, points: int) -> None:
    grid = simplex(experts, points)
    assert len(set(grid)) == len(grid) == math.comb(points - 1 + experts - 1, experts - 1)
    assert grid == sorted(grid, reverse=True)
    assert all(min(point) >= 0 and math.fsum(point) == pytest.approx(1, abs=1e-9) for point in grid)


def test_a_grid_over_the_members_of_a_sweep_counts_them_and_not_their_rounds(write: Write) -> None:
    stages = """\
  expert: {do: raft, from: base, prompts: prompts, rounds: 3, sweep: {reward: [joy, short]}}
  soup: {do: soup, experts: expert, weights: {grid: 2}, sweep: {rule: [delta, factors]}}
"""
    assert graph(write(stages)).members("soup") == [
        "soup[rule=delta,1,0]", "soup[rule=delta,0,1]", "soup[rule=factors,1,0]", "soup[rule=factors,0,1]",
    ]  # fmt: skip


def test_a_soup_is_what_its_experts_are(write: Write) -> None:
    stages = """\
  one: {do: reward_model, from: base, data: pairs}
  other: {do: reward_model, from: base, data: pairs, seed: 1}
  warm: {do: soup, experts: [one, other]}
  twice: {do: soup, experts: [warm, one]}
  raft: {do: raft, from: base, prompts: prompts, reward: twice}
"""
    found = graph(write(stages))
    assert {found.nodes[name].produces for name in ("warm", "twice")} == {"reward"}


def test_what_only_judges_may_be_calibrated_and_then_only_judges(write: Write) -> None:
    stages = """\
  cal: {do: calibrate, reward: gold, reference: base, prompts: prompts}
  rl: {do: rl, from: base, prompts: prompts, reward: cal}
"""
    path = write(stages)
    path.write_text(path.read_text().replace("rewards: {", "rewards: {gold: {kind: lexicon, use: evaluation}, "))
    (found,) = problems(path)
    assert found.endswith("`cal` is kept for evaluation (`use: evaluation`) and may not serve training")


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (f"  a: {{{RAFT}, rounds: 2, round: 1}}\n", "stages.a.round  is written by `rounds`; leave it out"),
        (f"  a: {{{RAFT}, previous: base}}\n", "stages.a.previous  is written by `rounds`; leave it out"),
        (f"  a: {{{RAFT}, rounds: 0}}\n", "stages.a.rounds  must be greater than or equal to 1, not `0`"),
        (f"  a: {{{RAFT}, rounds: 5000}}\n", "stages.a.rounds  at most 1,000"),
        (
            "  a: {do: rl, from: base, prompts: prompts, reward: joy, transform: {kind: best_of_n, n: 4}}\n",
            "stages.a.transform  `best_of_n` is for calibrated rewards, and `joy` is none; put a `do: calibrate` stage between",
        ),
        (
            "  c: {do: calibrate, reward: joy, reference: base, prompts: prompts}\n"
            "  a: {do: rl, from: base, prompts: prompts, reward: c, beta: 0, transform: "
            "{kind: best_of_n, n: 4}}\n",
            "stages.a.beta  the optimum for `n` is one for a `beta` above 0; give one, or the transform `t` in place of `n`",
        ),
        (
            "  a: {do: qrpo, from: base, data: pairs, reward: joy}\n",
            "stages.a.reward  `joy` is a reward; this takes a calibrated reward",
        ),
        (
            "  a: {do: rrhf, from: base, data: prompts, reward: joy, candidates: {by: data}}\n",
            "stages.a.data  `prompts` is prompts, which have no answers; give preference pairs here",
        ),
        (
            "  a: {do: rrhf, from: base, data: pairs, reward: joy, test: prompts}\n",
            "stages.a.test  `prompts` is prompts; this takes preference pairs; what fits: `pairs`",
        ),
        ("  a: {do: dpo, from: base}\n", "stages.a  takes pairs from `data`, or makes its own from `prompts` and `reward`"),
        (
            "  a: {do: dpo, from: base, data: pairs, prompts: prompts, reward: joy}\n",
            "stages.a  takes pairs from `data`, or makes its own from `prompts` and `reward`",
        ),
        ("  a: {do: soup, experts: [base]}\n", "stages.a.experts  a soup has at least two experts"),
        (
            "  a: {do: soup, experts: nobody}\n",
            "stages.a.experts[0]  `nobody` is not defined; what fits: `base`, `joy`, `short`, `a`",
        ),
        (
            "  a: {do: soup, experts: [joy, short]}\n",
            "stages.a.experts  `joy` is not trained, so it has no weights to average",
        ),
        (
            f"  b: {{{RAFT}}}\n  a: {{do: soup, experts: [b, base], weights: [0.5, 0.2, 0.3]}}\n",
            "stages.a.weights  3 weights for 2 experts: `b`, `base`",
        ),
        (
            f"  b: {{{RAFT}}}\n  a: {{do: soup, experts: [b, base], weights: [0.5, 0.2]}}\n",
            "stages.a.weights  weights sum to 1; these sum to 0.7",
        ),
        (
            f"  b: {{{RAFT}}}\n  c: {{do: reward_model, from: base, data: pairs}}\n  a: {{do: soup, experts: [b, c]}}\n",
            "stages.a.experts  language models and reward models do not mix",
        ),
        (
            f"  b: {{{RAFT}, sweep: {{seed: [1, 2, 3]}}}}\n  a: {{do: soup, experts: b, rule: slerp}}\n",
            "stages.a.rule  `slerp` goes between two experts, and there are 3",
        ),
        (
            f"  b: {{{RAFT}, sweep: {{seed: [1, 2]}}}}\n  a: {{do: soup, experts: b, weights: {{gird: 3}}}}\n",
            "stages.a.weights.gird  unknown key; did you mean `grid`?",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_place(write: Write, stages: str, expected: str) -> None:
    assert any(line.endswith(expected) for line in problems(write(stages))), problems(write(stages))


def test_a_grid_of_more_soups_than_anyone_means_is_refused_with_their_number(write: Write) -> None:
    experts = f"  e: {{{RAFT}, sweep: {{seed: [1, 2, 3, 4]}}}}\n"
    # Four weights in steps of 1/100: 103 over 3; in steps of 1/16: 19 over 3, in steps of 1/17: 20 over 3.
    for grid, count in ((101, "176,851"), (18, "1,140")):
        (line,) = problems(write(f"{experts}  a: {{do: soup, experts: e, weights: {{grid: {grid}}}}}\n"))
        assert line.endswith(f"stages.a.weights.grid  {count} soups of 4 experts; at most 1,000: take fewer values")
    assert len(graph(write(f"{experts}  a: {{do: soup, experts: e, weights: {{grid: 17}}}}\n")).members("a")) == 969


def test_a_grid_that_is_refused_is_not_missed_where_it_is_named(write: Write) -> None:
    stages = f"  e: {{{RAFT}, sweep: {{seed: [1, 2, 3, 4]}}}}\n  a: {{do: soup, experts: e, weights: {{grid: 101}}}}\n"
    assert len(problems(write(f"{stages}  b: {{do: sample, from: a, prompts: prompts}}\n"))) == 1


def test_a_sweep_of_more_combinations_than_anyone_means_is_refused_with_their_number(write: Write) -> None:
    def swept(seeds: int) -> Path:
        sweep = f"{{seed: {list(range(seeds))}, samples: {list(range(1, 21))}}}"
        return write(f"  a: {{do: raft, from: base, prompts: prompts, reward: joy, sweep: {sweep}}}\n")

    assert len(graph(swept(50)).members("a")) == 1000
    (line,) = problems(swept(51))
    assert line.endswith("stages.a.sweep  1,020 combinations; at most 1,000")
