"""Adapters on weights in four bits: they learn, in every kind of stage, and what is used afterwards is what was trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
import transformers

from registry.four_bits import hold, rounded
from registry.language_models import load_language_model
from registry.prefix_scorers import hidden_states
from registry.reward_models import load_reward_model
from specs.load import load
from specs.problems import SpecError

STUDY = """\
models: {base: {source: ./model, precision: fp32}}
data:
  pairs: {source: ./pairs.jsonl, format: preference}
  prompts: {source: ./prompts.jsonl, format: prompt}
rewards: {length: {kind: length}}
stages:
  rolls: {do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 6}
  cal: {do: calibrate, reward: length, reference: base, prompts: prompts, samples: 4, max_new_tokens: 6}
  sft: {do: sft, from: base, data: pairs, FOUR}
  reward_model: {do: reward_model, from: base, data: pairs, FOUR}
  arm: {do: autoregressive_reward_model, from: base, data: pairs, FOUR}
  fudge: {do: prefix_scorer, loss: cd_fudge, from: base, responses: rolls, reward: length, FOUR}
  rl: {do: rl, from: base, prompts: prompts, reward: cal, max_new_tokens: 6, FOUR}
  rrhf: {do: rrhf, from: base, data: prompts, reward: length, max_new_tokens: 6, FOUR}
  raft: {do: raft, from: base, prompts: prompts, reward: length, samples: 4, rounds: 2, max_new_tokens: 6, FOUR}
  dpo: {do: dpo, from: base, data: pairs, FOUR}
  qrpo: {do: qrpo, from: base, data: rolls, reward: cal, FOUR}
  bond: {do: bond, from: base, prompts: prompts, reward: length, max_new_tokens: 6, FOUR}
""".replace("FOUR", "lora: {rank: 4, alpha: 8, base: nf4}, learning_rate: 3e-3")
FIRST = {"rl": ["cal"], "qrpo": ["rolls", "cal"], "fudge": ["rolls"], "raft": ["raft[round=1]"]}
POLICIES = ["sft", "arm", "rl", "rrhf", "raft", "dpo", "qrpo", "bond"]
PAIRS = [{"prompt": f"Is {n} more?", "chosen": f"It is {n}.", "rejected": "No" * (n + 1)} for n in range(8)]
IDS = torch.tensor([[2, 40, 41, 1, 3, 50, 60, 70, 1]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.language_model(tmp_path / "model")
    tiny.write_lines(tmp_path / "pairs.jsonl", PAIRS)
    tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": p["prompt"]} for p in PAIRS])
    return tmp_path


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every trainer that the test has run: each saves once before its first step."""
    seen: list[Any] = []
    save = transformers.Trainer._save

    def remember(self: Any, *arguments: Any, **options: Any) -> None:
        seen.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(transformers.Trainer, "_save", remember)
    return seen


def built(folder: Path, name: str) -> stages.Built:
    view = stages.study(folder, STUDY)
    for earlier in FIRST.get(name, []):
        stages.build(view, earlier)
    return stages.build(view, name)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_trained_on_four_bits_is_loaded_as_it_was_trained(
    folder: Path, trainers: list[Any], kind: str
) -> None:
    made = built(folder, kind)
    trained = trainers[-1].model
    assert any(type(m).__name__ == "Linear4bit" for m in trained.modules())
    loaded = load_language_model(made.artifact).model
    assert not any(type(m).__name__ == "Linear4bit" for m in loaded.modules())
    torch.testing.assert_close(logits(loaded), hidden_logits(trained, loaded), atol=2e-5, rtol=0)
    with trained.disable_adapter():
        assert float((logits(loaded) - hidden_logits(trained, loaded)).abs().max()) > 1e-3  # it has learnt


@torch.inference_mode()
def hidden_logits(trained: Any, loaded: Any) -> torch.Tensor:
    """The logits of a model whose forward pass may give something else."""
    states = hidden_states(trained.eval(), input_ids=IDS)
    found: torch.Tensor = loaded.get_output_embeddings()(states)
    return found


def test_a_reward_model_trained_on_four_bits_scores_as_it_was_trained(folder: Path, trainers: list[Any]) -> None:
    made = built(folder, "reward_model")
    loaded, *_ = load_reward_model(made.artifact)
    torch.testing.assert_close(logits(loaded), logits(trainers[-1].model), atol=2e-5, rtol=0)


def test_a_prefix_scorer_trained_on_four_bits_reads_as_it_was_trained(folder: Path, trainers: list[Any]) -> None:
    made = built(folder, "fudge")
    with torch.inference_mode():
        ours = hidden_states(load_language_model(made.artifact).model, input_ids=IDS)
        theirs = hidden_states(trainers[-1].model.body.eval(), input_ids=IDS)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_adapters_of_the_first_layer_learn_after_an_evaluation_pass(folder: Path, trainers: list[Any]) -> None:
    """Gradients pass through the weights in four bits, also after the trial batch before the first step."""
    built(folder, "sft")
    moved = {
        name: float(p.detach().abs().max())
        for name, p in trainers[-1].model.named_parameters()
        if "lora_B" in name and ".layers.0." in name
    }
    assert len(moved) == 7
    assert min(moved.values()) > 1e-4


def test_what_one_stage_learnt_on_four_bits_the_next_goes_on_from(folder: Path) -> None:
    """Only the weights below all adapters are rounded: updates of this size would vanish between the steps of four bits."""
    view = stages.study(
        folder, STUDY.replace("3e-3", "1e-4") + "  next: {do: sft, from: sft, data: pairs, lora: {base: nf4}}\n"
    )
    first = stages.build(view, "sft").artifact
    learnt = logits(load_language_model(first).model)
    start = logits(load_language_model(first, four_bits="held").model)
    torch.testing.assert_close(start, learnt, atol=2e-5, rtol=0)
    before = logits(load_language_model(view.artifact("base"), four_bits="held").model)
    assert float((learnt - before).abs().max()) > 1e-3
    after = stages.build(view, "next")
    assert after.metrics["train/first_loss"] > 0


def test_four_bits_take_less_than_a_quarter_of_the_memory_and_leave_the_head_alone(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(tiny.config(hidden_size=128, intermediate_size=512))

    whole, held = model(), hold(model())
    size = lambda m: sum(p.nbytes for n, p in m.named_parameters() if "_proj" in n)  # noqa: E731
    assert size(held) * 8 == size(whole)  # 4 bits of 32; their scales lie beside them
    assert held.get_output_embeddings().weight.dtype == torch.float32
    torch.testing.assert_close(held(IDS).logits, rounded(model())(IDS).logits, atol=1e-5, rtol=0)
    assert float((held(IDS).logits - whole(IDS).logits).abs().max().detach()) > 1e-3


SOUP = """
models: {base: {source: ./model, precision: fp32}}
data: {pairs: {source: ./pairs.jsonl, format: preference}}
stages:
  one: {do: sft, from: base, data: pairs, lora: {base: nf4}}
  two: {do: sft, from: base, data: pairs, epochs: 2.0}
  soup: {do: soup, experts: [one, two], rule: delta}
"""


@pytest.mark.parametrize("experts", ["[one, two]", "[later, two]"])
def test_a_soup_of_four_bits_and_others_is_refused_with_the_reason(folder: Path, experts: str) -> None:
    later = "  later: {do: sft, from: one, data: pairs}\n"
    with pytest.raises(SpecError) as told:
        stages.study(folder, SOUP.replace("[one, two]", experts) + later)
    (problem,) = told.value.problems
    assert problem.message == (
        "some are trained on weights in four bits (`lora.base: nf4`) and some are not, so they are updates of different "
        "weights; use `rule: weights`"
    )


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("epochs: 2.0", "epochs: 2.0, lora: {base: nf4}"),  # both lie on the same rounded weights
        ("rule: delta", "rule: weights"),  # whole weights, as they are used
    ],
)
def test_experts_of_four_bits_are_averaged_exactly(folder: Path, written: str, instead: str) -> None:
    view = stages.study(folder, SOUP.replace(written, instead))
    made = {name: stages.build(view, name) for name in ("one", "two", "soup")}
    one, two, soup = (load_language_model(m.artifact).model.state_dict() for m in made.values())
    for name in one:
        torch.testing.assert_close(soup[name], (one[name] + two[name]) / 2)


def test_sharding_that_cannot_split_four_bits_is_refused(folder: Path) -> None:
    view = stages.study(folder, SOUP.replace("delta", "weights") + "execution: {sharding: fsdp, gpus: 2}\n")
    assert view.problems() == [
        (
            ("execution", "sharding"),
            "`fsdp` does not split weights in four bits (`lora.base: nf4` of `one`); use `ddp` or `deepspeed`",
        )
    ]


def test_a_missing_package_is_told_before_anything_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    view = stages.study(folder, SOUP.replace("delta", "weights"))
    assert view.problems() == [
        (
            ("stages", "one", "lora", "base"),
            "needs the package bitsandbytes, which is not installed; install that, or `alignflow[four_bits]`",
        )
    ]
    problem = load(folder / "study.yaml").problem(*view.problems()[0])
    assert str(problem).startswith(f"{folder}/study.yaml:8:56  stages.one.lora.base  needs the package")
