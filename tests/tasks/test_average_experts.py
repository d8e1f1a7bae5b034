"""The `soup` body on real tiny experts: what it writes is the average, it is loaded as such, and it refuses what is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from registry.language_models import load_language_model
from registry.reward_models import load_reward_model
from registry.rewards import scorer
from specs.problems import UserError
from tasks.inputs import read_lines

pytestmark = pytest.mark.slow

PAIRS = [{"prompt": f"Number {i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(8)]
EXPERTS = """\
  one: {do: sft, from: base, data: pairs, learning_rate: 1e-2}
  other: {do: dpo, from: base, data: pairs, learning_rate: 1e-2, seed: 5}
  small: {do: sft, from: base, data: pairs, learning_rate: 1e-2, lora: {rank: 3, alpha: 4}}
  chain: {do: sft, from: one, data: pairs, learning_rate: 1e-2}
  whole: {do: sft, from: base, data: pairs, learning_rate: 1e-3, lora: null}
  twin: {do: sft, from: base, data: pairs, learning_rate: 1e-3, lora: null, seed: 5}
  judge: {do: reward_model, from: base, data: pairs, learning_rate: 1e-2}
  jury: {do: reward_model, from: base, data: pairs, learning_rate: 1e-2, seed: 5}
  judge_of_one: {do: reward_model, from: one, data: pairs, learning_rate: 1e-2}
  jury_of_other: {do: reward_model, from: other, data: pairs, learning_rate: 1e-2, seed: 5}
"""
NAMES = [line.split(":")[0].strip() for line in EXPERTS.splitlines()]

Cook = Callable[[str], stages.Built]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("soup")
    tiny.language_model(made / "model")
    tiny.write_lines(made / "pairs.jsonl", PAIRS)
    tiny.write_lines(made / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    view = study(made, "")
    for name in NAMES:
        stages.build(view, name)
    return made


def study(folder: Path, more: str) -> Any:
    head = """\
models: {base: {source: ./model, precision: fp32}}
data:
  pairs: {source: ./pairs.jsonl, format: preference}
  prompts: {source: ./prompts.jsonl, format: prompt}
rewards: {length: {kind: length}}
stages:
"""
    return stages.study(folder, head + EXPERTS + more)


@pytest.fixture
def cook(folder: Path, tmp_path: Path) -> Cook:
    def cooked(fields: str) -> stages.Built:
        return stages.build(study(folder, f"  soup: {{do: soup, {fields}}}\n"), "soup", into=tmp_path / "soup")

    return cooked


def state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The whole weights of a stage's model, or of the base."""
    model = load_language_model(study(folder, "").artifact(name), precision="fp32").model
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def of(built: stages.Built) -> dict[str, torch.Tensor]:
    return dict(load_language_model(built.artifact, precision="fp32").model.state_dict())


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (1.0, 0.0)])
@pytest.mark.parametrize("pair", [("one", "other"), ("small", "chain"), ("base", "one")])
def test_delta_is_the_average_of_whole_weights(
    cook: Cook, folder: Path, pair: tuple[str, str], weights: tuple[float, float]
) -> None:
    # What adapters add is averaged, whatever their ranks, and a chain is the sum of its links.
    soup = of(cook(f"experts: [{', '.join(pair)}], weights: {list(weights)}"))
    first, second = (state(folder, name) for name in pair)
    for key, tensor in soup.items():
        torch.testing.assert_close(tensor, weights[0] * first[key] + weights[1] * second[key], rtol=1e-5, atol=1e-6)


def test_a_model_that_holds_its_weights_the_other_way_round_has_soups_too(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=261, n_embd=32, n_layer=2, n_head=4, eos_token_id=1, bos_token_id=None, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.write_lines(
        tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "bc" * n, "rejected": "d"} for n in (1, 2, 3)]
    )
    view = stages.study(
        tmp_path,
        """\
models: {base: {source: ./model, precision: fp32}}
data: {pairs: {source: ./pairs.jsonl, format: preference}}
rewards: {length: {kind: length}}
stages:
  one: {do: sft, from: base, data: pairs, learning_rate: 1e-2}
  other: {do: sft, from: base, data: pairs, learning_rate: 1e-2, seed: 5}
  soup: {do: soup, experts: [one, other], weights: [0.3, 0.7]}
""",
    )
    one, other, soup = (of(stages.build(view, name)) for name in ("one", "other", "soup"))
    for key, tensor in soup.items():
        torch.testing.assert_close(tensor, 0.3 * one[key] + 0.7 * other[key], rtol=1e-5, atol=1e-6)
    assert any((one[key] - other[key]).abs().max() > 1e-3 for key in one)


def test_without_weights_the_experts_count_alike(cook: Cook, folder: Path) -> None:
    soup = of(cook("experts: [one, other, chain]"))
    states = [state(folder, name) for name in ("one", "other", "chain")]
    for key, tensor in soup.items():
        torch.testing.assert_close(tensor, sum(s[key] for s in states) / 3, rtol=1e-5, atol=1e-6)


def test_factors_are_another_model_than_the_average(cook: Cook, folder: Path) -> None:
    soup = of(cook("experts: [one, other], rule: factors"))
    first, second, base = (state(folder, name) for name in ("one", "other", "base"))
    key = "model.layers.0.self_attn.q_proj.weight"
    adapters = [
        load_file(study(folder, "").artifact(n).folder / "adapter" / "adapter_model.safetensors")
        for n in ("one", "other")
    ]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    a = [adapter[f"{prefix}.lora_A.weight"] for adapter in adapters]
    b = [adapter[f"{prefix}.lora_B.weight"] for adapter in adapters]
    # The published form misses the average by l (1 - l) (B1 - B2)(A1 - A2); alpha / rank is 2.
    missing = 2 * 0.25 * (b[0] - b[1]) @ (a[0] - a[1])
    torch.testing.assert_close(soup[key], (first[key] + second[key]) / 2 - missing, rtol=1e-5, atol=1e-6)
    assert (soup[key] - base[key]).norm() > 0 and missing.norm() > 1e-3


def test_whole_weights_are_averaged_in_fp32_and_kept_as_they_are_used(cook: Cook, folder: Path) -> None:
    soup = of(cook("experts: [whole, twin], weights: [0.25, 0.75], rule: weights"))
    first, second = (state(folder, name) for name in ("whole", "twin"))
    for key, tensor in soup.items():
        torch.testing.assert_close(tensor, 0.25 * first[key] + 0.75 * second[key], rtol=1e-5, atol=1e-6)


def test_an_arc_between_two_experts_keeps_more_of_their_length_than_the_chord(
    cook: Cook, tmp_path: Path, folder: Path
) -> None:
    arc = cook("experts: [one, other], weights: [0.5, 0.5], rule: slerp")
    chord = stages.build(study(folder, "  soup: {do: soup, experts: [one, other]}\n"), "soup", into=tmp_path / "chord")
    assert arc.metrics["cosine"] < 0.9
    assert chord.metrics["norm"] < arc.metrics["norm"]


@pytest.mark.parametrize("rule", ["delta", "weights"])
@pytest.mark.parametrize("pair", [("judge", "jury"), ("judge_of_one", "jury_of_other")])
def test_reward_models_are_averaged_with_their_heads(
    cook: Cook, folder: Path, pair: tuple[str, str], rule: str
) -> None:
    # WARM. A corner of the soup scores as its expert does, also where language models lie between it and the base.
    view = study(folder, "")
    prompts = [({"role": "user", "content": row["prompt"]},) for row in PAIRS]
    texts = [row["chosen"] for row in PAIRS]
    judge, jury = (scorer(view.artifact(name), batch=8)(prompts, texts) for name in pair)
    built = cook(f"experts: [{', '.join(pair)}], weights: [0, 1], rule: {rule}")
    assert scorer(built.artifact, batch=8)(prompts, texts) == pytest.approx(jury, abs=1e-5)
    assert judge != pytest.approx(jury, abs=1e-2)


@pytest.mark.parametrize("rule", ["delta", "weights"])
def test_the_middle_of_two_reward_models_is_the_average_of_their_whole_weights(
    cook: Cook, folder: Path, rule: str
) -> None:
    view = study(folder, "")
    names = ("judge_of_one", "jury_of_other")
    one, other = (load_reward_model(view.artifact(name), precision="fp32")[0].state_dict() for name in names)
    built = cook(f"experts: [{', '.join(names)}], rule: {rule}")
    for name, tensor in load_reward_model(built.artifact, precision="fp32")[0].state_dict().items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2, rtol=1e-5, atol=1e-6)


def test_a_soup_of_soups_and_a_model_trained_from_one_stand_on_the_same_base(folder: Path, tmp_path: Path) -> None:
    more = """\
  inner: {do: soup, experts: [one, other]}
  outer: {do: soup, experts: [inner, one], weights: [0.5, 0.5]}
  after: {do: sft, from: outer, data: pairs, learning_rate: 1e-2}
"""
    view = study(folder, more)
    stages.build(view, "inner")
    outer = stages.build(view, "outer")
    first, second = (state(folder, name) for name in ("one", "other"))
    for key, tensor in of(outer).items():
        torch.testing.assert_close(tensor, 0.75 * first[key] + 0.25 * second[key], rtol=1e-5, atol=1e-6)
    after = stages.build(view, "after")
    assert after.metrics["train/last_loss"] > 0


def test_a_grid_is_sampled_in_one_batch_as_each_soup_would_be_alone(folder: Path, tmp_path: Path) -> None:
    more = """\
  soup: {do: soup, experts: [one, other], weights: {grid: 3}}
  table: {do: evaluate, policies: [one, other, soup], against: base, prompts: prompts, rewards: [length], budget: {max_new_tokens: 6}}
  alone: {do: evaluate, policies: ["soup[0.5,0.5]"], against: base, prompts: prompts, rewards: [length], budget: {max_new_tokens: 6}}
"""
    view = study(folder, more)
    for name in ("soup[1,0]", "soup[0.5,0.5]", "soup[0,1]"):
        stages.build(view, name)
    table, alone = stages.build(view, "table"), stages.build(view, "alone")

    def texts(built: stages.Built, policy: int) -> list[str]:
        return [row["response"] for row in read_lines(built.folder / "generations.jsonl") if row["policy"] == policy]

    assert texts(table, 3) == texts(alone, 0)
    assert texts(table, 2) == texts(table, 0)  # all weight on `one`
    assert texts(table, 4) == texts(table, 1)
    assert texts(table, 3) != texts(table, 0)
    found = json.loads((table.folder / "evaluation.json").read_text())["policies"]
    assert found[2]["rewards"][0]["lmc_gap"]["estimate"] == 0
    assert "lmc_gap" not in found[0]["rewards"][0]
    middle, *ends = (found[i]["rewards"][0]["reward"]["estimate"] for i in (3, 0, 1))
    assert found[3]["rewards"][0]["lmc_gap"]["estimate"] == pytest.approx(middle - sum(ends) / 2)


def test_experts_that_cannot_be_averaged_are_refused_with_the_reason(cook: Cook) -> None:
    with pytest.raises(UserError) as caught:
        cook("experts: [one, whole]")
    assert str(caught.value) == (
        "`whole` has whole weights (of training with `lora: null`, or of `rule: weights`), so it has no adapter to average; "
        "use `rule: weights`"
    )


def test_factors_of_different_ranks_are_refused(cook: Cook) -> None:
    with pytest.raises(
        UserError, match=r"^the experts' ranks differ at .*: 16, 3; .* use the exact average of updates"
    ):
        cook("experts: [one, small], rule: factors")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("use_rslora", True, "its adapter's `use_rslora` scales its ranks otherwise"),
        ("use_dora", True, "its adapter's `use_dora` rescales whole columns, which is no sum"),
        ("rank_pattern", {"q_proj": 2}, "its adapter's `rank_pattern` has a rank of its own for some layers"),
        ("alpha_pattern", {"q_proj": 2}, "its adapter's `alpha_pattern` has a scale of its own for some layers"),
        ("bias", "lora_only", "its adapter trains biases too"),
    ],
)
def test_an_adapter_that_is_more_than_a_product_is_refused(
    cook: Cook, folder: Path, key: str, value: Any, why: str
) -> None:
    path = study(folder, "").artifact("one").folder / "adapter" / "adapter_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {key: value}))
    try:
        with pytest.raises(UserError) as caught:
            cook("experts: [one, other]")
    finally:
        path.write_text(before)
    assert str(caught.value) == f"`one` cannot be averaged exactly: {why}"


def test_a_merge_that_changed_nothing_is_no_soup(cook: Cook, monkeypatch: pytest.MonkeyPatch) -> None:
    # As when an adapter is loaded under names that do not match: it stays what it was.
    from tasks import average_experts

    whole = average_experts.soup.delta
    monkeypatch.setitem(average_experts.RULES, "delta", lambda e, w: whole(e, w if max(w) == 1 else [1.0, 0.0]))
    with pytest.raises(AssertionError, match="the soup has the weights of `one`: averaging changed nothing"):
        cook("experts: [one, other]")


def test_a_rule_that_does_not_give_back_an_expert_alone_is_none(cook: Cook, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import average_experts

    whole = average_experts.soup.delta
    monkeypatch.setitem(average_experts.RULES, "delta", lambda experts, w: whole(experts, [0.6, 0.4]))
    with pytest.raises(AssertionError, match="the merge of `one` alone is not `one` at"):
        cook("experts: [one, other]")


def test_whole_weights_that_averaging_did_not_change_are_no_soup(cook: Cook, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import average_experts

    monkeypatch.setattr(average_experts.soup, "average", lambda states, weights: dict(states[0]))
    with pytest.raises(AssertionError, match="averaging `twin` with what was there changed nothing"):
        cook("experts: [whole, twin], rule: weights")


def test_a_soup_that_is_loaded_as_something_else_is_not_published(cook: Cook, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import average_experts

    inner = average_experts.save_update

    def bent(soup: Any, heads: Any, where: Path, like: Path) -> None:
        inner(soup, heads, where, like)
        path = where / "adapter_model.safetensors"
        save_file({k: t * 1.01 for k, t in load_file(path).items()}, path)

    monkeypatch.setattr(average_experts, "save_update", bent)
    with pytest.raises(AssertionError, match=r"the soup was loaded with an error of 0\.0\d+ in a layer's update"):
        cook("experts: [one, other]")
