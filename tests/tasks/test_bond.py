"""J-BOND on tiny models: who duels, what a row of candidates brings along, how the anchor follows, where it ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import letters
import pytest
import stages
import torch
from letters import LORA, answers_of, log_probs, text, total_variation, worth_of
from peft import LoraConfig, get_peft_model

from registry.language_models import load_language_model
from registry.rows import Prompt
from specs.problems import UserError
from tasks import tokens, train_bond
from tasks.sampler import sample

pytestmark = pytest.mark.slow

EIGHT = ["a", "b", "cc", "d", "ef", "g", "ag", "bcd"]
ANSWERS = {(token,): letters.WORTH[text] for token, text in enumerate(letters.ANSWERS)}

Study = Callable[..., Any]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters.language_model(tmp_path_factory.mktemp("letters") / "model")


@pytest.fixture
def study(tmp_path: Path, model: Path) -> Study:
    """A study whose stage `made` has the given fields; each in a folder of its own."""
    numbers = itertools.count()

    def made(fields: str, prompts: Sequence[str] = EIGHT, start: str = "base", longest: int = 2, **of: Any) -> Any:
        stage = f"do: bond, from: {start}, prompts: prompts, reward: worth, max_new_tokens: {longest}, {fields}"
        return letters.study(tmp_path / str(next(numbers)), stage, prompts, **{"source": model} | of)

    return made


@dataclass
class Row:
    """A prompt with the policy's sample and the best of the anchor's, and what the loss is told of them."""

    prompt: tuple[int, ...]
    own: tuple[int, ...]
    best: tuple[int, ...]
    anchor: float
    advantage: float
    reward: float
    below_both: float


@dataclass
class Step:
    """The rows of one optimizer step, and the weights that policy and anchor had when it began."""

    policy: Weights
    anchor: Weights
    frozen: bool
    rows: list[Row]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step of a training. The duels are the real ones."""
    steps: list[Step] = []
    real = train_bond.Duel.fought

    def spy(self: Any, policy: Any, batches: Any, step: int) -> Any:
        anchor = self.anchor
        held = [{k: v.detach().clone() for k, v in w.items()} for w in (anchor.trained, anchor.following)]
        frozen = not any(v.requires_grad or v.grad is not None for v in anchor.following.values())
        found = real(self, policy, batches, step)
        steps.append(Step(held[0], held[1], frozen, [row for batch in found for row in unpacked(batch)]))
        return found

    monkeypatch.setattr(train_bond.Duel, "fought", spy)
    return steps


def unpacked(batch: dict[str, Any]) -> Iterator[Row]:
    for r in range(len(batch["input_ids"])):
        ids, owners, labels = (batch[name][r].tolist() for name in ("input_ids", "owners", "labels"))
        shared = owners.index(0)
        own, best = (tuple(t for t, o in zip(labels, owners, strict=True) if o == answer) for answer in (0, 1))
        told = [float(batch[name][r]) for name in ("anchor", "advantage", "reward", "below_both")]
        yield Row((*ids[:shared], ids[shared]), own, best, *told)


def standing(view: Any, start: str, held: Weights) -> Any:
    """A model of its own with the weights that a policy or an anchor had."""
    loaded = load_language_model(view.artifact(start)).model
    if not any(".lora_" in name for name in held):
        loaded.load_state_dict(held, strict=False)
        return loaded.eval()
    adapted = get_peft_model(loaded, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    held = {name.replace(".anchor.", ".default."): value for name, value in held.items()}
    assert not adapted.load_state_dict(held, strict=False).unexpected_keys
    return adapted.merge_and_unload().eval()


def drawn(model: Any, prompt: Sequence[int], samples: int, stream: str) -> list[tuple[int, ...]]:
    """The samples of a prompt that stands once in its step, drawn alone."""
    key = f"{Prompt(({'role': 'user', 'content': text(prompt)},)).id}/0/{stream}"
    (found,) = sample(model, [prompt], keys=[key], samples=samples, seed=3, max_new_tokens=2, eos_ids=[0])
    return [s.ids for s in found]


@pytest.mark.parametrize(
    ("lora", "start", "micro_batch"), [(LORA, "base", 8), (LORA, "tuned", 2), ("lora: null", "base", 2)]
)
def test_a_row_is_the_policys_sample_and_the_better_of_the_anchors_two(
    study: Study, seen: list[Step], lora: str, start: str, micro_batch: int
) -> None:
    view = study(f"{lora}, batch_size: 8, epochs: 4.0, learning_rate: 5e-2, anchor_rate: 0.3", start=start)
    if start == "tuned":
        stages.build(view, "tuned")
    built = stages.build(view, "made", micro_batch=micro_batch)
    ties = 0
    for number, step in enumerate(seen):
        policy, anchor = (standing(view, start, held) for held in (step.policy, step.anchor))
        below = []
        for row in step.rows:
            assert [row.own] == drawn(policy, row.prompt, 1, f"bond step {number}")
            first, second = drawn(anchor, row.prompt, 2, f"bond anchor step {number}")
            assert row.best == (second if worth_of(second) > worth_of(first) else first)
            ties += first != second and worth_of(first) == worth_of(second)
            assert row.anchor == pytest.approx(sum(log_probs(anchor, row.prompt, row.own)), abs=1e-4)
            assert row.reward == pytest.approx(worth_of(row.own))
            below.append(-math.log(16) if worth_of(row.own) < min(worth_of(first), worth_of(second)) else 0.0)
            assert row.below_both == (below[-1] < 0)
        # The others are the other seven of the step, however it is divided.
        expected = [value - (sum(below) - value) / 7 for value in below]
        assert [row.advantage for row in step.rows] == pytest.approx(expected, abs=1e-6)
        means = {name: sum(getattr(row, name) for row in step.rows) / 8 for name in ("reward", "below_both")}
        for name, mean in means.items():
            assert built.logged(f"train/{name}")[number] == (number + 1, pytest.approx(mean, abs=1e-6))
        apart = [sum(log_probs(policy, row.prompt, row.own)) - row.anchor for row in step.rows]
        assert built.logged("train/kl_to_anchor")[number][1] == pytest.approx(sum(apart) / 8, abs=1e-4)
        assert (max(map(abs, apart)) > 0.01) == (number > 0)
    assert len(seen) == 4 and ties
    assert any(row.below_both for row in seen[0].rows) and not all(row.below_both for row in seen[0].rows)


@pytest.mark.parametrize(("lora", "start"), [("lora: null", "base"), (LORA, "tuned"), ("lora: null", "tuned")])
def test_the_anchor_begins_at_the_start_and_follows_the_policy_by_its_rate(
    study: Study, seen: list[Step], lora: str, start: str
) -> None:
    fields = f"{lora}, batch_size: 4, epochs: 2.0, learning_rate: 5e-2, weight_decay: 0.1, anchor_rate: 0.25"
    view = study(fields, start=start)
    if start == "tuned":
        stages.build(view, "tuned")
    stages.build(view, "made", micro_batch=2)
    both = zip(seen[0].policy.values(), seen[0].anchor.values(), strict=True)
    assert all(torch.equal(policy, anchor) for policy, anchor in both)
    first = standing(view, start, seen[0].anchor)
    whole = load_language_model(view.artifact(start)).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in first.state_dict().items())
    assert len(seen) == 4 and all(step.frozen for step in seen)
    for before, after in itertools.pairwise(seen):
        names = list(zip(before.anchor, after.anchor, after.policy, strict=True))
        assert any(not torch.equal(before.policy[policy], after.policy[policy]) for _, _, policy in names)
        for old, new, policy in names:
            expected = 0.75 * before.anchor[old] + 0.25 * after.policy[policy]
            torch.testing.assert_close(after.anchor[new], expected, rtol=1e-6, atol=1e-7)


def test_the_anchor_is_no_part_of_what_is_published(study: Study, seen: list[Step]) -> None:
    built = stages.build(study(f"{LORA}, batch_size: 8, epochs: 2.0, learning_rate: 5e-2"), "made")
    files = {str(path.relative_to(built.folder)) for path in built.folder.rglob("*") if path.is_file()}
    assert files == {
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "training.jsonl",
    }
    found = stages.weights(built)
    assert not any("anchor" in name for name in found)
    assert len(found) == len(seen[0].policy)


@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_beside_bf16_both_sample_in_it_and_the_policy_starts_at_its_anchor_too(
    study: Study, monkeypatch: pytest.MonkeyPatch, lora: str
) -> None:
    logits: list[torch.Tensor] = []
    library = tokens.inverse_cdf
    monkeypatch.setattr(
        tokens, "inverse_cdf", lambda found, u, **rule: logits.append(found) or library(found, u, **rule)
    )
    built = stages.build(study(f"{lora}, batch_size: 8", precision="bf16"), "made", micro_batch=8)
    assert built.logged("train/kl_to_anchor") == [(1, pytest.approx(0, abs=1e-6))]
    assert logits and all(torch.equal(found, found.bfloat16().to(found)) for found in logits)
    assert {tensor.dtype for tensor in stages.weights(built).values()} == {torch.float32}


@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_the_models_own_dropout_is_off(study: Study, tmp_path: Path, lora: str) -> None:
    of = letters.language_model(tmp_path / "of", kind="GPTNeoX", num_key_value_heads=4, hidden_dropout=0.5)
    built = stages.build(study(f"{lora}, batch_size: 8", source=of), "made", micro_batch=8)
    assert built.logged("train/kl_to_anchor") == [(1, pytest.approx(0, abs=1e-6))]


@pytest.mark.parametrize("fields", ["learning_rate: 1e30, epochs: 4.0", "kl_weight: 1e39"])
def test_a_training_that_diverges_ends_there_and_says_where(study: Study, fields: str) -> None:
    with pytest.raises(
        UserError,
        match=r"^training diverged: ([\w/ ]+|the logits to '\w+' are no numbers) at step \d; lower `learning_rate`"
        "( or `kl_weight`|, or leave that prompt out)?$",
    ):
        stages.build(study(f"lora: null, batch_size: 8, {fields}"), "made")


def best_of_two(start: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    found = dict.fromkeys(start, 0.0)
    for first, second in itertools.product(start, repeat=2):
        found[second if ANSWERS[second] > ANSWERS[first] else first] += start[first] * start[second]
    return found


def tilted_by_its_losses(start: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """start e^{-log 16 P(both of two score higher)} / Z."""
    higher = {a: sum(p for b, p in start.items() if ANSWERS[b] > ANSWERS[a]) for a in start}
    raised = {a: p * 16 ** -(higher[a] ** 2) for a, p in start.items()}
    return {a: p / sum(raised.values()) for a, p in raised.items()}


@pytest.mark.parametrize(
    ("parts", "optimum"),
    [("mix: 0.0, kl_weight: 0.0", best_of_two), ("mix: 1.0, kl_weight: 1.0", tilted_by_its_losses)],
)
def test_beside_an_anchor_that_stands_still_each_part_ends_at_its_optimum(
    study: Study, parts: str, optimum: Callable[..., Any]
) -> None:
    fields = f"lora: null, batch_size: 32, epochs: 60.0, learning_rate: 1e-2, anchor_rate: 1e-9, {parts}"
    view = study(fields, ["a"] * 32, longest=1)
    built = stages.build(view, "made", micro_batch=64)
    start, end = (answers_of(artifact, [1], 1) for artifact in (view.artifact("base"), built.artifact))
    best = optimum(start)
    assert total_variation(end, best) < 0.08 < 0.19 < total_variation(start, best)


def test_best_of_two_again_and_again_brings_the_best_answer_to_the_top(study: Study) -> None:
    fields = f"{LORA}, batch_size: 16, epochs: 30.0, learning_rate: 2e-2, anchor_rate: 0.1, kl_weight: 0.5"
    view = study(fields, ["a"] * 16, longest=1)
    built = stages.build(view, "made", micro_batch=16)
    start, end = (answers_of(artifact, [1], 1) for artifact in (view.artifact("base"), built.artifact))
    assert max(ANSWERS.values()) == ANSWERS[(4,)]  # the letter d
    assert start[(4,)] < 0.2 and end[(4,)] > 0.8
