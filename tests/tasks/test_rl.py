"""RLOO and GRPO on tiny models: what enters the loss, where samples come from, and where training ends."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import letters
import numpy as np
import pytest
import stages
import torch
from letters import LORA, answers_of, log_probs, text, total_variation, worth_of

from registry.language_models import load_language_model
from registry.methods.transforms import best_of_n_fixed_point
from registry.rows import Prompt
from specs.problems import UserError
from tasks import reader, tokens, train_rl
from tasks.sampler import sample

pytestmark = pytest.mark.slow

TWO = ("ab", "cde")

Study = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters.language_model(tmp_path_factory.mktemp("letters") / "model")


@pytest.fixture
def study(tmp_path: Path, model: Path) -> Study:
    """A study whose stage `made` has the given fields; each in a folder of its own."""
    numbers = itertools.count()

    def made(fields: str, prompts: Sequence[str] = TWO, start: str = "base", reward: str = "worth", **of: Any) -> Any:
        longest = of.setdefault("longest", 3)
        stage = f"do: rl, from: {start}, prompts: prompts, reward: {reward}, max_new_tokens: {longest}, {fields}"
        return letters.study(tmp_path / str(next(numbers)), stage, prompts, **{"source": model} | of)

    return made


class Step:
    """What the loss of one optimizer step was given, a row a sample."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []
        self.samples: list[tuple[int, ...]] = []
        self.advantages: list[float] = []
        self.log_probs: list[list[float]] = []
        self.losses: list[float] = []
        self.references: list[list[float]] = []

    def by_prompt(self) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
        groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for prompt, drawn in zip(self.prompts, self.samples, strict=True):
            groups.setdefault(prompt, []).append(drawn)
        return {prompt: sorted(group) for prompt, group in groups.items()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every optimizer step as its losses were computed. The losses are the real ones."""
    steps: list[Step] = []

    def spied(kind: Any) -> None:
        library = kind._compute_loss

        def spy(self: Any, model: Any, inputs: Any) -> Any:
            while len(steps) <= self.state.global_step:
                steps.append(Step())
            step = steps[self.state.global_step]
            for name, side in (("prompt", step.prompts), ("completion", step.samples)):
                ids, mask = inputs[f"{name}_ids"], inputs[f"{name}_mask"].bool()
                side.extend(tuple(row[there].tolist()) for row, there in zip(ids, mask, strict=True))
            rows = list(zip(step.prompts, step.samples, strict=True))[-len(inputs["advantages"]) :]
            step.log_probs += [log_probs(model, *row) for row in rows]
            step.advantages += inputs["advantages"].tolist()
            if "ref_per_token_logps" in inputs:
                found = zip(inputs["ref_per_token_logps"].tolist(), rows, strict=True)
                step.references += [values[: len(drawn)] for values, (_, drawn) in found]
            loss = library(self, model, inputs)
            step.losses.append(float(loss))
            return loss

        monkeypatch.setattr(kind, "_compute_loss", spy)

    spied(train_rl.Rloo)
    spied(train_rl.Grpo)
    return steps


def tilted(start: dict[tuple[int, ...], float], beta: float) -> dict[tuple[int, ...], float]:
    """start e^{reward / beta} / Z, which maximises E[reward] - beta KL."""
    raised = {answer: mass * math.exp(worth_of(answer) / beta) for answer, mass in start.items()}
    return {answer: mass / sum(raised.values()) for answer, mass in raised.items()}


def less_the_others(values: dict[int, float], groups: Sequence[Sequence[int]]) -> dict[int, float]:
    """Each value less the mean of the others of its group."""
    return {
        i: values[i] - sum(values[j] for j in group if j != i) / (len(group) - 1) for group in groups for i in group
    }


def groups_of(step: Step) -> list[list[int]]:
    return [[i for i, p in enumerate(step.prompts) if p == prompt] for prompt in dict.fromkeys(step.prompts)]


STARTS = [
    (LORA, "base", ""),
    ("lora: null", "base", ""),
    (LORA, "tuned", LORA),
    ("lora: null", "tuned", "lora: null"),
    ("lora: null", "tuned", LORA),
]


@pytest.mark.parametrize(("lora", "start", "tuned"), STARTS)
def test_the_advantage_is_reward_less_beta_kl_from_the_start_less_the_mean_of_the_others(
    study: Study, seen: list[Step], lora: str, start: str, tuned: str
) -> None:
    fields = f"{lora}, samples: 4, batch_size: 2, beta: 0.3, learning_rate: 5e-2, epochs: 3.0"
    view = study(fields, start=start, tuned=tuned)
    if start == "tuned":
        stages.build(view, "tuned")
    stages.build(view, "made", micro_batch=4)
    reference = load_language_model(view.artifact(start)).model
    assert len(seen) == 3
    for number, step in enumerate(seen):
        rows = range(8)
        kl = {i: sum(step.log_probs[i]) - sum(log_probs(reference, step.prompts[i], step.samples[i])) for i in rows}
        assert (max(map(abs, kl.values())) < 1e-5) == (number == 0)  # it starts at its reference and leaves it
        rewards = {i: worth_of(step.samples[i]) - 0.3 * kl[i] for i in rows}
        groups = groups_of(step)
        assert sorted(map(len, groups)) == [4, 4]
        expected = less_the_others(rewards, groups)
        assert step.advantages == pytest.approx([expected[i] for i in rows], abs=2e-5)


@pytest.mark.parametrize(("lora", "start"), [(LORA, "tuned"), ("lora: null", "base")])
def test_grpo_takes_the_mean_of_the_group_off_and_the_kl_from_the_start_into_its_loss(
    study: Study, seen: list[Step], lora: str, start: str
) -> None:
    view = study(
        f"algorithm: grpo, {lora}, samples: 4, batch_size: 2, beta: 0.3, learning_rate: 5e-2, epochs: 3.0", start=start
    )
    if start == "tuned":
        stages.build(view, "tuned")
    stages.build(view, "made", micro_batch=8)
    reference = load_language_model(view.artifact(start)).model
    for step in seen:
        rows = range(8)
        rewards = [worth_of(step.samples[i]) for i in rows]
        mean = {i: sum(rewards[j] for j in group) / 4 for group in groups_of(step) for i in group}
        assert step.advantages == pytest.approx([rewards[i] - mean[i] for i in rows], abs=2e-6)
        total = 0.0
        for i in rows:
            theirs = log_probs(reference, step.prompts[i], step.samples[i])
            assert step.references[i] == pytest.approx(theirs, abs=2e-5)
            for ours, given in zip(step.log_probs[i], theirs, strict=True):
                k3 = math.exp(given - ours) - (given - ours) - 1
                # The group's mean holds the sample itself: 3/4 of the reward's gradient are left, and 3/4 of the KL's.
                total += 0.3 * 0.75 * k3 - (rewards[i] - mean[i])
        # Over all eight samples and the three tokens that each may have.
        assert step.losses == pytest.approx([total / (8 * 3)], abs=2e-5)


PHI = {
    "{kind: identity}": lambda u: u,
    "{kind: best_of_n, t: 3.0}": lambda u: math.exp(3 * (u - 1)),
    "{kind: worst_of_n, t: 10.0}": lambda u: -math.exp(-10 * u),
    "{kind: log}": lambda u: math.log((8 * u + 0.5) / 9),
    "{kind: best_of_n, n: 3}": lambda u: float(np.interp(u, np.linspace(0, 1, 2001), best_of_n_fixed_point(3, 0.25))),
}


@pytest.mark.parametrize("transform", PHI)
def test_what_is_raised_is_the_transform_of_the_calibrated_reward(
    study: Study, seen: list[Step], transform: str
) -> None:
    view = study(f"{LORA}, samples: 4, batch_size: 2, beta: 0.25, transform: {transform}", reward="cal")
    calibrated = stages.build(view, "cal")
    stages.build(view, "made", micro_batch=8)
    lines = (calibrated.folder / "calibration.jsonl").read_text().splitlines()
    rollouts = {row["prompt"]: row["rewards"] for row in map(json.loads, lines)}
    (step,) = seen  # one step, whose policy is still the start: the KL is zero
    values = {}
    for i, (prompt, drawn) in enumerate(zip(step.prompts, step.samples, strict=True)):
        others = rollouts[Prompt(({"role": "user", "content": text(prompt)},)).id]
        reward = worth_of(drawn)
        rank = sum((other < reward) + (other == reward) / 2 for other in others) / 8
        values[i] = PHI[transform](rank)
    expected = less_the_others(values, groups_of(step))
    assert len({round(v, 6) for v in values.values()}) > 2
    assert step.advantages == pytest.approx([expected[i] for i in range(8)], abs=2e-6)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_sample_is_drawn_with_the_numbers_of_its_seed_prompt_step_and_place(
    study: Study, seen: list[Step], model: Path, algorithm: str
) -> None:
    view = study(f"algorithm: {algorithm}, {LORA}, samples: 4, batch_size: 2, learning_rate: 1e-12, epochs: 3.0")
    stages.build(view, "made")
    start = load_language_model(view.artifact("base"))
    for number, step in enumerate(seen):
        expected = {}
        for asked in TWO:
            ids = start.tokenizer(asked)["input_ids"]
            key = f"{Prompt(({'role': 'user', 'content': asked},)).id}/0/rl step {number}"
            (drawn,) = sample(
                start.model, [ids], keys=[key], samples=4, seed=3, max_new_tokens=3, eos_ids=start.eos_ids
            )
            expected[tuple(ids)] = sorted(s.ids for s in drawn)
        assert step.by_prompt() == expected
    assert len({str(step.by_prompt()) for step in seen}) == 3


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_neither_micro_batches_nor_the_order_of_the_prompts_change_what_is_drawn_but_the_seed_does(
    study: Study, seen: list[Step], algorithm: str
) -> None:
    def drawn(prompts: Sequence[str] = TWO, micro_batch: int = 8, seed: int = 5, rows: int = 64) -> Any:
        seen.clear()
        view = study(f"algorithm: {algorithm}, {LORA}, samples: 4, batch_size: 2, seed: {seed}", prompts)
        stages.build(view, "made", micro_batch=micro_batch, rows=rows)
        return seen[0].by_prompt()

    whole = drawn()
    assert [len(group) for group in whole.values()] == [4, 4]
    assert drawn(micro_batch=4) == whole
    assert drawn(TWO[::-1], rows=3) == whole
    assert drawn(seed=6) != whole


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_each_prompt_of_a_step_is_read_once_for_all_its_samples(
    study: Study, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    read: list[list[list[int]]] = []
    library = reader.prefill
    monkeypatch.setattr(
        reader, "prefill", lambda output, prompts, at: read.append(prompts) or library(output, prompts, at)
    )
    view = study(f"algorithm: {algorithm}, {LORA}, samples: 4, batch_size: 2", [*TWO, "f", "gg"])
    stages.build(view, "made", micro_batch=2)
    assert [len(prompts) for prompts in read] == [2, 2]
    assert sorted(tuple(p) for prompts in read for p in prompts) == [(1, 2), (3, 4, 5), (6,), (7, 7)]


def test_every_pass_reads_every_prompt_and_its_last_batch_is_filled_up_from_its_beginning(
    study: Study, seen: list[Step]
) -> None:
    stages.build(study(f"{LORA}, samples: 2, batch_size: 2, epochs: 2.0", ["a", "b", "c", "d", "e"]), "made")
    assert [len(step.samples) for step in seen] == [4] * 6
    batches = [{prompt for (prompt,) in step.by_prompt()} for step in seen]
    passes = batches[:3], batches[3:]
    for first, second, third in passes:
        assert first | second | third == {1, 2, 3, 4, 5} and not first & second
        assert len(third & first) == 1 and not third & second
    assert passes[0] != passes[1]


def test_fewer_prompts_than_a_batch_are_drawn_for_again(study: Study, seen: list[Step]) -> None:
    built = stages.build(study(f"{LORA}, samples: 2, batch_size: 4", ["a", "b"], longest=8), "made")
    assert built.finished("steps") == [1]
    groups = seen[0].by_prompt()
    assert {prompt: len(group) for prompt, group in groups.items()} == {(1,): 4, (2,): 4}
    assert all(len(set(group)) == 4 for group in groups.values())  # with numbers of their own


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_all_weights_of_a_hub_model_are_trained_against_the_revision_that_is_named(
    study: Study, tmp_path: Path, algorithm: str
) -> None:
    # Only this revision is at hand, and no name of a branch leads to it.
    revision = "0123456789abcdef0123456789abcdef01234567"
    cache = Path(os.environ["HF_HOME"]) / "hub" / "models--letters--eight" / "snapshots"
    letters.language_model(cache / revision)
    fields = f"algorithm: {algorithm}, lora: null, samples: 2, batch_size: 2"
    built = stages.build(study(fields, source=f'letters/eight, revision: "{revision}"'), "made")
    assert built.metrics["train/first_kl_per_token"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_models_own_dropout_is_off(study: Study, tmp_path: Path, algorithm: str) -> None:
    of = letters.language_model(tmp_path / "of", kind="GPTNeoX", num_key_value_heads=4, hidden_dropout=0.5)
    built = stages.build(study(f"algorithm: {algorithm}, {LORA}, samples: 4, batch_size: 2", source=of), "made")
    assert built.metrics["train/first_kl_per_token"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_beside_bf16_the_policy_samples_in_it_and_starts_at_its_reference_too(
    study: Study, monkeypatch: pytest.MonkeyPatch, lora: str
) -> None:
    drawn: list[torch.Tensor] = []
    library = tokens.inverse_cdf
    monkeypatch.setattr(
        tokens, "inverse_cdf", lambda logits, u, **rule: drawn.append(logits) or library(logits, u, **rule)
    )
    built = stages.build(study(f"{lora}, samples: 4, batch_size: 2", precision="bf16"), "made")
    assert built.metrics["train/first_kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert drawn and all(torch.equal(logits, logits.bfloat16().to(logits)) for logits in drawn)
    assert {tensor.dtype for tensor in stages.weights(built).values()} == {torch.float32}


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_an_answer_that_ends_as_the_template_ends_it_was_not_clipped(
    study: Study, seen: list[Step], tmp_path: Path, algorithm: str
) -> None:
    of = letters.language_model(tmp_path / "of")
    tokenizer = letters.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["g"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "g")
    tokenizer.save_pretrained(of)
    view = study(f"algorithm: {algorithm}, {LORA}, samples: 16, batch_size: 2", source=of)
    ends = load_language_model(view.artifact("base")).eos_ids
    built = stages.build(view, "made", micro_batch=32)
    (step,) = seen
    assert ends == (0, 7) and {drawn[-1] for drawn in step.samples} > {0, 7}
    clipped = sum(drawn[-1] not in ends for drawn in step.samples) / 32
    assert built.logged("train/completions/clipped_ratio") == [(1, pytest.approx(clipped))]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_training_that_diverges_ends_there_and_says_where(study: Study, algorithm: str) -> None:
    fields = f"algorithm: {algorithm}, lora: null, samples: 2, batch_size: 2, learning_rate: 1e30, epochs: 4.0"
    with pytest.raises(
        UserError,
        match=r"^training diverged: ([\w/ ]+|the logits to '\w+' are no numbers) at step \d; lower `learning_rate`"
        "(, or leave that prompt out)?$",
    ):
        stages.build(study(fields), "made")


def test_rloo_ends_at_the_start_tilted_by_the_reward_over_beta(study: Study) -> None:
    fields = "lora: null, samples: 64, batch_size: 1, beta: 1.0, learning_rate: 1e-2, epochs: 60.0"
    view = study(fields, ["ab"], longest=2)
    built = stages.build(view, "made", micro_batch=64)
    start, end = (answers_of(artifact, [1, 2], 2) for artifact in (view.artifact("base"), built.artifact))
    assert len(start) == 1 + 7 + 7 * 7
    best = tilted(start, 1.0)
    # At the optimum every sample has the same advantage, none, so that there is hardly any noise left.
    assert total_variation(end, best) < 0.05 < 0.5 < total_variation(start, best)
    assert min(total_variation(end, tilted(start, beta)) for beta in (0.8, 1.25)) > 0.05
    assert built.metrics["train/last_reward"] > built.metrics["train/first_reward"] + 1


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_optimum_does_not_depend_on_the_number_of_samples(study: Study, algorithm: str) -> None:
    fields = "lora: null, samples: 4, batch_size: 16, beta: 0.5, learning_rate: 3e-2, epochs: 40.0"
    view = study(f"algorithm: {algorithm}, {fields}", ["a"], longest=1)
    built = stages.build(view, "made", micro_batch=64)
    start, end = (answers_of(artifact, [1], 1) for artifact in (view.artifact("base"), built.artifact))
    # With the KL at 4/3 of its weight it would be 0.12 away.
    assert total_variation(end, tilted(start, 0.5)) < 0.08 < 0.4 < total_variation(start, tilted(start, 0.5))


@pytest.mark.parametrize(("algorithm", "lora"), [("rloo", LORA), ("grpo", "lora: null")])
def test_beta_holds_the_policy_at_its_start(study: Study, algorithm: str, lora: str) -> None:
    def moved(beta: float) -> float:
        fields = f"algorithm: {algorithm}, {lora}, samples: 8, learning_rate: 2e-2, beta: {beta}"
        view = study(f"{fields}, batch_size: 2, epochs: 16.0", ["a"], longest=1)
        built = stages.build(view, "made", micro_batch=16)
        return total_variation(*(answers_of(a, [1], 1) for a in (view.artifact("base"), built.artifact)))

    assert moved(100.0) < 0.1 < 0.5 < moved(0.0)
