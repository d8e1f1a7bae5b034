"""Identity and the plan: what moves a fingerprint, what does not, and what a run would do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.data import Data
from specs.judges import Judge
from specs.kinds import any_stage
from specs.load import load, models_of
from specs.models import Model
from specs.plan import Fact, canonical, changes, plan, steps
from specs.rewards import Reward
from specs.study import Study

BASE = {
    "version": 1,
    "name": "s",
    "seed": 3,
    "models": {"base": {"source": "m"}},
    "data": {"p": {"source": "./p.jsonl", "format": "prompt", "split": {"train": 8, "eval": 4}}},
    "rewards": {
        "gold": {"kind": "lexicon"}, "judge": {"kind": "length", "use": "evaluation"},
        "mix": {"kind": "weighted", "of": {"gold": 0.7, "rm": 0.3}},
    },
    "stages": {
        "rolls": {"do": "sample", "from": "base", "prompts": "p.train", "samples": 4},
        "pairs": {"do": "label", "responses": "rolls", "reward": "gold"},
        "rm": {"do": "reward_model", "from": "base", "data": "pairs"},
        "bon": {"do": "decode", "method": "best_of_n", "from": "base", "reward": "mix", "n": 4},
        "table": {
            "do": "evaluate", "policies": ["base", "bon"], "against": "base", "prompts": "p.eval", "rewards": ["rm", "gold"],
        },
    },
}  # fmt: skip
FACTS = {
    "base": Fact({"sha256": "a"}, ("source",)),
    "p.train": Fact({"sha256": "b"}, ("source",)),
    "p.eval": Fact({"sha256": "b"}, ("source",)),
}


def study(*edits: tuple[str, object]) -> Study:
    """The study above with values written at dotted paths."""
    tree = json.loads(json.dumps(BASE))
    for path, value in edits:
        *inner, last = path.split("/")
        node = tree
        for key in inner:
            node = node.setdefault(key, {})
        node[last] = value
    return Study.model_validate(tree)


def prints(*edits: tuple[str, object], facts: dict[str, Fact] = FACTS) -> dict[str, str]:
    return {name: step.fingerprint for name, step in steps(study(*edits), facts).items()}


def moved(*edits: tuple[str, object]) -> set[str]:
    before, after = prints(), prints(*edits)
    return {name for name in before if before[name] != after[name]}


RUNTIME = [
    ("execution/gpus", 2),
    ("execution/threads", 1),
    ("execution/rows", 8),
    ("execution/micro_batch", 1),
    ("execution/retries", 0),
    ("execution/timeout", "2h"),
    ("execution/checkpoint_every", "1m"),
    ("execution/gradient_checkpointing", True),
    ("tracking/experiment", "other"),
    ("tracking/uri", "http://x"),
    ("schedule", {"cron": "0 2 * * *"}),
    ("name", "other"),
    ("data/p/max_dropped", "5%"),
    ("rewards/judge/use", "any"),
    ("stages/table/expect", {"bon": {"length": "> 1"}}),
]
IDENTITY = [
    ("seed", 4, {"rolls", "pairs", "rm", "mix", "bon", "table"}),
    ("models/base/template", "hh", {"base", "rolls", "pairs", "rm", "mix", "bon", "table"}),
    ("data/p/split/train", 6, {"p.train", "p.eval", "rolls", "pairs", "rm", "mix", "bon", "table"}),
    ("stages/rolls/samples", 5, {"rolls", "pairs", "rm", "mix", "bon", "table"}),
    ("stages/rolls/seed", 9, {"rolls", "pairs", "rm", "mix", "bon", "table"}),
    ("stages/pairs/min_gap", 0.1, {"pairs", "rm", "mix", "bon", "table"}),
    ("stages/rm/beta", 2.0, {"rm", "mix", "bon", "table"}),
    ("stages/rm/lora", None, {"rm", "mix", "bon", "table"}),
    ("rewards/mix/of", {"gold": 0.6, "rm": 0.4}, {"mix", "bon", "table"}),
    ("stages/bon/n", 8, {"bon", "table"}),
    ("stages/table/resamples", 500, {"table"}),
    ("stages/table/budget", {"max_new_tokens": 9}, {"table"}),
]


@given(st.lists(st.sampled_from(RUNTIME), unique_by=lambda e: e[0]))
@settings(max_examples=40, deadline=None)
def test_no_combination_of_runtime_settings_moves_any_fingerprint(edits) -> None:
    assert moved(*edits) == set()


@pytest.mark.parametrize(("path", "value", "expected"), IDENTITY, ids=[i[0] for i in IDENTITY])
def test_an_identity_field_moves_its_stage_and_all_below_and_nothing_else(path, value, expected) -> None:
    assert moved((path, value)) == expected


ONLINE = {"from", "lora", "learning_rate", "warmup_steps", "weight_decay", "epochs", "batch_size", "seed"}
TRAINING = ONLINE | {"max_length", "too_long"}
ROUNDS = TRAINING | {"round", "previous"}
PREFIX = TRAINING | {"loss"}
HASHED = {
    "sft": TRAINING | {"data"},
    "rm": TRAINING | {"data", "test", "beta", "center"},
    "arm": TRAINING | {"data", "test", "beta"},
    "cal": {"reward", "reference", "prompts", "samples", "max_new_tokens", "seed"},
    "ctrl": ONLINE | {"prompts", "reward", "transform", "algorithm", "samples", "max_new_tokens", "beta"},
    "rrhf": ROUNDS | {"data", "reward", "candidates", "max_new_tokens", "test", "rank_weight", "sft_term"},
    "raft": ROUNDS
    | {"prompts", "reward", "samples", "rank", "kl_penalty", "temperature", "max_new_tokens", "held_out"},
    "dpo": ROUNDS | {"data", "prompts", "reward", "samples", "max_new_tokens", "min_gap", "beta"},
    "qrpo": TRAINING | {"data", "reward", "transform", "beta"},
    "bond": ONLINE | {"prompts", "reward", "max_new_tokens", "mix", "anchor_rate", "kl_weight"},
    "fudge": PREFIX | {"head", "responses", "reward", "reference"},
    "q": PREFIX | {"responses", "reward", "reference"},
    "prefixes": PREFIX | {"head", "data"},
    "soup": {"experts", "weights", "rule"},
    "rolls": {"from", "prompts", "samples", "max_new_tokens", "seed"},
    "pairs": {"responses", "reward", "pairs_per_prompt", "min_gap"},
    "plain": {"method", "from", "temperature", "top_k", "top_p"},
    "greedy": {"method", "from"},
    "bon": {"method", "from", "temperature", "top_k", "top_p", "reward", "n"},
    "won": {"method", "from", "temperature", "top_k", "top_p", "reward", "n"},
    "args": {"method", "from", "reward", "candidates", "strength", "temperature", "standardise"},
    "cd": {"method", "from", "scorers", "strength", "block", "samples", "temperature", "top_k", "top_p"},
    "genarm": {"method", "from", "guides", "strength", "temperature", "top_k", "top_p", "official_code"},
    "tq": {"method", "from", "baseline", "reward", "candidates", "look_ahead", "strength", "temperature"},
    "cards": {"method", "from", "reward", "target", "alpha", "beta", "entropy", "shortest", "longest", "tries"}
    | {"temperature", "top_k", "top_p"},
    "mod": {"method", "from", "policies", "temperature", "top_k", "top_p"},
    "table": {
        "policies",
        "against",
        "prompts",
        "rewards",
        "judges",
        "budget",
        "inference",
        "perplexity_of",
        "resamples",
        "confidence",
        "seed",
    },
    "base": {"revision", "template", "pad_token", "via", "precision"},
    "p.train": {"revision", "subset", "hub_split", "format", "columns", "rows", "split"},
    "gold": set(),
    "judge": {"per_word"},
    "mix": {"of"},
    "classes": {"source", "revision", "label", "precision", "max_length"},
    "near": {"source", "revision", "max_length"},
    "mine": {"target"},
    "careful": {"base_url", "model", "instruction", "pairs_per_prompt"},
}


def test_the_fields_that_bear_identity_are_these_and_no_others() -> None:
    """A new field that bears identity by accident, or fails to, is caught by adding it here knowingly."""
    whole = study(
        ("stages/sft", {"do": "sft", "from": "base", "data": "pairs"}),
        ("stages/arm", {"do": "autoregressive_reward_model", "from": "base", "data": "pairs"}),
        ("stages/cal", {"do": "calibrate", "reward": "gold", "reference": "base", "prompts": "p.train"}),
        ("stages/ctrl", {"do": "rl", "from": "base", "prompts": "p.train", "reward": "cal"}),
        ("stages/rrhf", {"do": "rrhf", "from": "base", "data": "pairs", "reward": "gold"}),
        ("stages/raft", {"do": "raft", "from": "base", "prompts": "p.train", "reward": "gold"}),
        ("stages/dpo", {"do": "dpo", "from": "base", "data": "pairs"}),
        ("stages/qrpo", {"do": "qrpo", "from": "base", "data": "rolls", "reward": "cal"}),
        ("stages/bond", {"do": "bond", "from": "base", "prompts": "p.train", "reward": "gold"}),
        (
            "stages/fudge",
            {"do": "prefix_scorer", "loss": "cd_fudge", "from": "base", "responses": "rolls", "reward": "gold"},
        ),
        ("stages/q", {"do": "prefix_scorer", "loss": "cd_q", "from": "base", "responses": "rolls", "reward": "gold"}),
        ("stages/prefixes", {"do": "prefix_scorer", "loss": "prefix_bt", "from": "base", "data": "pairs"}),
        ("stages/soup", {"do": "soup", "experts": ["raft", "dpo"]}),
        ("stages/plain", {"do": "decode", "method": "sample", "from": "base"}),
        ("stages/greedy", {"do": "decode", "method": "greedy", "from": "base"}),
        ("stages/won", {"do": "decode", "method": "worst_of_n", "from": "base", "reward": "gold", "n": 2}),
        ("stages/args", {"do": "decode", "method": "args", "from": "base", "reward": "rm"}),
        ("stages/cd", {"do": "decode", "method": "controlled_decoding", "from": "base", "scorers": {"q": 1.0}}),
        ("stages/genarm", {"do": "decode", "method": "genarm", "from": "base", "guides": {"arm": 1.0}}),
        (
            "stages/tq",
            {"do": "decode", "method": "transfer_q", "from": "base", "baseline": "raft", "reward": "rm"},
        ),
        ("stages/cards", {"do": "decode", "method": "cards", "from": "base", "reward": "rm", "target": 2.0}),
        ("stages/mod", {"do": "decode", "method": "mod", "from": "base", "policies": {"raft": 1.0}}),
        ("rewards/classes", {"kind": "classifier", "source": "./c"}),
        ("rewards/near", {"kind": "coherence", "source": "./e"}),
        ("rewards/mine", {"kind": "python", "target": "a:b"}),
        ("judges/careful", {"base_url": "http://127.0.0.1:1/v1", "model": "m"}),
    )
    found = {name: set(step.payload["spec"]) for name, step in steps(whole, FACTS).items()}
    assert found.pop("p.eval") == found["p.train"]
    assert found == HASHED
    kinds = {type(step.node.entry) for step in steps(whole, FACTS).values()}
    assert kinds == set(models_of(any_stage())) | set(models_of(Reward)) | {Model, Data, Judge}


def test_names_bear_no_identity() -> None:
    tree = json.loads(json.dumps(BASE).replace('"bon"', '"other"').replace('"rolls"', '"r"'))
    renamed = {n: s.fingerprint for n, s in steps(Study.model_validate(tree), FACTS).items()}
    assert renamed["table"] == prints()["table"]
    assert renamed["other"] == prints()["bon"]


def test_rewards_that_are_one_under_two_names_add_their_weights() -> None:
    twice = ("rewards/mix/of", {"gold": 0.5, "twin": 0.2, "rm": 0.3}), ("rewards/twin", {"kind": "lexicon"})
    assert prints(*twice)["mix"] == prints()["mix"]
    assert prints(*twice)["table"] == prints()["table"]


def test_a_leaf_digest_moves_what_reads_it() -> None:
    other = FACTS | {"p.eval": Fact({"sha256": "c"}, ("source",))}
    after = prints(facts=other)
    assert {n for n, p in prints().items() if after[n] != p} == {"p.eval", "table"}


def test_a_path_is_no_identity_where_a_digest_is() -> None:
    assert moved(("data/p/source", "/elsewhere/p.jsonl")) == set()


def test_a_kind_version_moves_its_stages(monkeypatch) -> None:
    from specs.training import RewardModel

    before = prints()
    monkeypatch.setattr(RewardModel, "version", 2)
    assert {n for n, p in prints().items() if before[n] != p} == {"rm", "mix", "bon", "table"}


def test_defaults_are_hashed_so_writing_one_out_changes_nothing() -> None:
    assert moved(("stages/rm/epochs", 1.0)) == set()


def test_canonical_json_refuses_what_is_not_finite() -> None:
    assert canonical({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"a": float("nan")})


def test_the_plan_is_in_an_order_in_which_inputs_come_first() -> None:
    tree = json.loads(json.dumps(BASE))
    tree["stages"] = dict(reversed(tree["stages"].items()))
    planned = [p.step.name for p in plan(Study.model_validate(tree), FACTS, lambda step: False)]
    assert planned == ["rolls", "pairs", "rm", "bon", "table"]


def test_a_plan_tells_cached_run_and_blocked_and_why() -> None:
    facts = FACTS | {"p.eval": Fact(problem="no such file")}
    before = {n: dict(s.payload) for n, s in steps(study(), FACTS).items()}
    stored = {"rolls"}
    planned = plan(study(("stages/rm/beta", 2.0)), facts, lambda s: s.name in stored, before.get)
    assert {p.step.name: (p.state, p.why) for p in planned} == {
        "rolls": ("cached", "stored"),
        "pairs": ("run", "its artifact is gone"),
        "rm": ("run", "changed: beta 1.0 -> 2.0"),
        "bon": ("run", "changed: reward (mix)"),
        "table": ("blocked", "no such file"),
    }


def test_force_runs_a_stored_stage() -> None:
    planned = plan(study(), FACTS, lambda s: True, forced=frozenset({"rm"}))
    assert {p.step.name: p.state for p in planned if p.state != "cached"} == {"rm": "run"}


def test_changes_lists_leaves() -> None:
    assert changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == [
        (("a", "c"), 2, 3),
        (("a", "d"), None, 4),
    ]


def test_a_plan_of_a_thousand_stages_deep_does_not_recurse(tmp_path: Path) -> None:
    text = "version: 1\nname: deep\nmodels: {m: {source: m}}\ndata: {d: {source: q, format: preference}}\nstages:\n"
    text += "".join(f"  s{i}: {{do: sft, from: {'m' if i == 0 else f's{i - 1}'}, data: d}}\n" for i in range(2000))
    path = tmp_path / "s.yaml"
    path.write_text(text)
    planned = plan(load(path).study, {}, lambda step: False)
    assert len({p.step.fingerprint for p in planned}) == 2000
