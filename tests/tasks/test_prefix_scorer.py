"""Prefix scorers on tiny models: their losses by hand, what they learn, and what is left of them once saved."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any

import letters
import pytest
import stages
import tiny
import torch
from deaths import DiesAfter, dying
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from registry.language_models import load_language_model
from registry.methods.shared_prompt import Packed
from registry.prefix_scorers import PrefixHead, hidden_states, load_prefix_scorer
from specs.problems import UserError
from tasks import scores, train_prefix_scorer
from tasks import trainer as trainers

pytestmark = pytest.mark.slow

LORA = "lora: {rank: 4, alpha: 8}"
BOTH = pytest.mark.parametrize("lora", [LORA, "lora: null"])
PROMPTS = ["a", "bcd", "ef"]
PAIRS = [("ab", "dd", "eab"), ("c", "ga", "f"), ("fg", "b", "ccde")]
FUDGE, Q = "loss: cd_fudge, responses: rolls, reward: worth", "loss: cd_q, responses: rolls, reward: worth"
BT = "loss: prefix_bt, data: pairs"
KINDS = [FUDGE, f"{FUDGE}, head: scalar", Q, BT]

Study = Callable[..., Any]
Answer = tuple[list[int], list[int], float]
"""Prompt, answer and reward."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two, and two that are nearer to saying everything alike."""
    folder = tmp_path_factory.mktemp("letters")
    names = [("base", 0, 0.2), ("other", 1, 0.2), ("flat base", 0, 0.1), ("flat other", 1, 0.1)]
    return [letters.language_model(folder / name, seed, initializer_range=spread) for name, seed, spread in names]


@pytest.fixture
def study(tmp_path: Path, models: list[Path]) -> Study:
    """A study whose stage `made` has the given fields, and its responses; each in a folder of its own."""
    numbers = itertools.count()

    def made(fields: str, prompts: Sequence[str] = PROMPTS, rolls: str = "from: base, samples: 4", **of: Any) -> Any:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        tiny.write_lines(folder / "prompts.jsonl", [{"prompt": p} for p in prompts])
        tiny.write_lines(folder / "pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS])
        precision = of.get("precision", "fp32")
        base, other = models[2:] if of.get("flat") else models[:2]
        view = stages.study(
            folder,
            f"""\
models:
  base: {{source: {of.get("base", base)}, precision: {precision}}}
  other: {{source: {of.get("other", other)}, precision: {precision}}}
data:
  prompts: {{source: ./prompts.jsonl, format: prompt}}
  pairs: {{source: ./pairs.jsonl, format: preference}}
rewards: {{worth: {{kind: python, target: "letters:worth"}}}}
stages:
  warm: {{do: decode, method: sample, from: base, temperature: 1.5}}
  mixed: {{do: decode, method: mod, from: base, policies: {{other: 0.5}}}}
  rolls: {{do: sample, prompts: prompts, max_new_tokens: {of.get("longest", 3)}, {rolls}}}
  made: {{do: prefix_scorer, from: base, {fields}}}
""",
        )
        if "rolls" in fields:
            stages.build(view, "rolls")
        return view

    return made


def answers_of(view: Any) -> list[list[Answer]]:
    """The responses, those to a prompt together, as tokens: letters, and the end where it was reached."""
    lines = (view.artifact("rolls").folder / "responses.jsonl").read_text().splitlines()
    rows = []
    for row in map(json.loads, lines):  # an answer of no token says nothing
        prompt = ids(row["prompt"][0]["content"])
        kept = [r for r in row["responses"] if r["text"] or r["finished"]]
        rows.append([(prompt, ids(r["text"]) + [0] * r["finished"], letters.worth([""], [r["text"]])[0]) for r in kept])
    return rows


def rewrite(view: Any, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Changes the rows of responses that were sampled."""
    path = view.artifact("rolls").folder / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    tiny.write_lines(path, rows)


def ids(text: str) -> list[int]:
    return [letters.ANSWERS.index(letter) for letter in text]


@pytest.fixture
def opinionated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that do not begin at zero, always the same."""

    class Head(PrefixHead):
        def __init__(self, *args: Any):
            super().__init__(*args)
            numbers = torch.Generator().manual_seed(7)
            for parameter in self.parameters():
                parameter.data.copy_(torch.randn(parameter.shape, generator=numbers) / 4)

    monkeypatch.setattr(train_prefix_scorer, "PrefixHead", Head)


def head_of(built: stages.Built) -> tuple[dict[str, Tensor], float, float]:
    settings = json.loads((built.folder / "head.json").read_bytes())
    return load_file(built.folder / "head.safetensors"), settings["mean"], settings["deviation"]


def reads(model: Any, sequence: Sequence[int]) -> Tensor:
    """The body's state after each token of one sequence [tokens, width]."""
    states: Tensor = model.base_model(torch.tensor([sequence])).last_hidden_state[0]
    return states


def after(model: Any, sequence: Sequence[int]) -> Tensor:
    """The distribution of the token that follows each token of one sequence [tokens, 8]."""
    logits: Tensor = model(torch.tensor([sequence])).logits[0]
    return logits.softmax(-1)


def values_of(model: Any, head: dict[str, Tensor], prompt: list[int], answer: list[int]) -> Tensor:
    """In units of the head, that of each of the answer's tokens [tokens]."""
    states = reads(model, prompt + answer)
    if "each" not in head:  # of the prefix that ends with the token
        return states[len(prompt) :] @ head["shared"]
    before = states[len(prompt) - 1 : -1]  # of going on with the token
    return (before * (head["shared"] + head["each"][answer])).sum(-1)


def fudge(model: Any, head: dict[str, Tensor], answer: Answer, mean: float, deviation: float, *_: Any) -> Tensor:
    prompt, tokens, reward = answer
    return ((values_of(model, head, prompt, tokens) - (reward - mean) / deviation) ** 2).sum() / 2


def bellman(
    model: Any, head: dict[str, Tensor], answer: Answer, mean: float, deviation: float, reference: Any
) -> Tensor:
    prompt, tokens, reward = answer
    with torch.no_grad():
        nexts = reads(model, prompt + tokens) @ (head["shared"] + head["each"]).T  # of each token of the vocabulary
        expected = (after(reference, prompt + tokens) * nexts).sum(-1)[len(prompt) : -1]
        targets = torch.cat([expected, torch.tensor([(reward - mean) / deviation])])
    return ((values_of(model, head, prompt, tokens) - targets) ** 2).sum() / 2


def mean_loss(rows: list[list[Answer]], loss: Callable[..., Tensor], model: Any, head: Any, reference: Any) -> Tensor:
    """Each row weighs the same, and each answer of a row."""
    rewards = [reward for row in rows for _, _, reward in row]
    each = [
        torch.stack([loss(model, head, a, fmean(rewards), pstdev(rewards), reference) for a in row]) for row in rows
    ]
    return torch.stack([losses.mean() for losses in each]).mean()


@pytest.mark.parametrize(
    ("fields", "loss", "reference"),
    [
        (FUDGE, fudge, "base"),
        (f"{FUDGE}, head: scalar", fudge, "base"),
        (Q, bellman, "base"),
        (f"{Q}, reference: other", bellman, "other"),
    ],
)
@pytest.mark.parametrize(("lora", "micro_batch"), [(LORA, 3), ("lora: null", 1)])
def test_the_first_loss_by_hand(
    study: Study, opinionated: None, fields: str, loss: Any, reference: str, lora: str, micro_batch: int
) -> None:
    view = study(f"{fields}, {lora}, batch_size: 3, learning_rate: 1e-9")

    def change(rows: list[dict[str, Any]]) -> None:
        del rows[0]["responses"][2:]  # each row weighs the same, whatever it holds
        rows[1]["responses"][0] = {"text": "", "finished": False}
        rows[1]["responses"][1] = {"text": "", "finished": True}

    rewrite(view, change)
    rows = answers_of(view)
    assert [len(row) for row in rows] == [2, 3, 4] and [0] in [answer for _, answer, _ in rows[1]]
    tokens = [answer for row in rows for _, answer, _ in row]
    assert {len(answer) for answer in tokens} >= {2, 3}  # some are shorter than others, and some come to no end
    assert {answer[-1] == 0 for answer in tokens} == {True, False}
    built = stages.build(view, "made", micro_batch=micro_batch)
    head, mean, deviation = head_of(built)
    rewards = [reward for row in rows for _, _, reward in row]
    assert (mean, deviation) == (pytest.approx(fmean(rewards)), pytest.approx(pstdev(rewards)))
    start, expects = (load_language_model(view.artifact(name)).model for name in ("base", reference))
    expected = float(mean_loss(rows, loss, start, head, expects))
    assert built.metrics["train/first_loss"] == pytest.approx(expected, rel=1e-5)
    assert built.metrics["answers"] == len(tokens)


def test_a_reference_that_is_padded_to_another_width_counts_by_the_tokens_that_both_have(
    study: Study, opinionated: None, tmp_path: Path
) -> None:
    wide = letters.language_model(tmp_path / "wide", seed=1, vocab_size=12)
    view = study(f"{Q}, reference: other, {LORA}, batch_size: 3, learning_rate: 1e-9", other=wide)
    built = stages.build(view, "made", micro_batch=3)
    head, _, _ = head_of(built)
    start, other = (load_language_model(view.artifact(name)).model for name in ("base", "other"))

    class Narrow:
        def __call__(self, sequence: Tensor) -> Any:
            return SimpleNamespace(logits=other(sequence).logits[..., :8])

    expected = float(mean_loss(answers_of(view), bellman, start, head, Narrow()))
    assert built.metrics["train/first_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("fields", "loss"), [(FUDGE, fudge), (Q, bellman)])
def test_the_value_of_the_end_is_the_reward_whatever_the_template_writes_behind_it(
    study: Study, opinionated: None, tmp_path: Path, fields: str, loss: Any
) -> None:
    base = letters.language_model(tmp_path / "base", behind="g")  # as ChatML writes a line break
    view = study(f"{fields}, {LORA}, batch_size: 3, learning_rate: 1e-9", base=base)
    rows = answers_of(view)
    assert any(answer[-1] == 0 for row in rows for _, answer, _ in row)
    built = stages.build(view, "made", micro_batch=3)
    head, _, _ = head_of(built)
    start = load_language_model(view.artifact("base")).model
    assert built.metrics["train/first_loss"] == pytest.approx(
        float(mean_loss(rows, loss, start, head, start)), rel=1e-5
    )


FAMILIES = [
    {"kind": "Mistral", "sliding_window": 8, "num_hidden_layers": 2},  # sees only so far back
    {"kind": "GPTNeoX", "num_key_value_heads": 4, "hidden_dropout": 0.5},  # forgets half while others train it
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("fields", "loss"), [(f"{FUDGE}, head: scalar", fudge), (Q, bellman)])
def test_whatever_the_model_an_answer_is_read_as_it_is_alone(
    study: Study, opinionated: None, tmp_path: Path, fields: str, loss: Any, family: dict[str, Any]
) -> None:
    fields = f"{fields}, {LORA}, batch_size: 1, learning_rate: 1e-9"
    of = letters.language_model(tmp_path / "of", **family)
    view = study(fields, ["abcdefgfedcb"], "from: other, samples: 4", base=of)
    built = stages.build(view, "made")
    head, _, _ = head_of(built)
    start = load_language_model(view.artifact("base")).model
    expected = float(mean_loss(answers_of(view), loss, start, head, start))
    assert built.metrics["train/first_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_first_batch_that_is_tried_holds_the_row_of_most_tokens(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of its answers the longest with its prompt is shorter than that of the other row, but they are many.
    view = study(f"{FUDGE}, {LORA}, batch_size: 1", ["a", "abcdefg"])
    answers = [[{"text": "bcd", "finished": True}] * 4, [{"text": "a", "finished": True}]]
    rewrite(view, lambda rows: [row.update(responses=some) for row, some in zip(rows, answers, strict=True)])
    tried: list[list[int]] = []
    monkeypatch.setattr(trainers, "loss_of", lambda trainer, rows: tried.append(list(rows)) or 0.5)
    stages.build(view, "made", micro_batch=1)
    assert tried == [[0]]


def test_a_model_in_which_answers_side_by_side_would_meet_is_refused(study: Study, tmp_path: Path) -> None:
    # Its attention counts the tokens between, whoever wrote them.
    bloom = letters.language_model(tmp_path / "bloom", kind="Bloom", n_layer=1, n_head=2)
    with pytest.raises(UserError, match=r"^BloomForCausalLM has positions that cannot be given; "):
        stages.build(study(f"{FUDGE}, lora: null", base=bloom, rolls="from: other"), "made")


def test_a_reference_with_other_tokens_is_refused(study: Study, tmp_path: Path) -> None:
    bytewise = tiny.language_model(tmp_path / "bytewise")
    with pytest.raises(UserError, match=r"^`other` and `base` have different tokens, so .* the reference's tokenizer$"):
        stages.build(study(f"{Q}, reference: other, {LORA}", other=bytewise), "made")


def test_a_response_that_is_too_long_is_left_out_with_its_reward(study: Study, opinionated: None) -> None:
    # One of a hundred may be dropped. It is the first, so that any other's reward would be its neighbour's.
    prompts = ["abcdefga", *["ab", "cd", "e"] * 33]
    fields = f"{FUDGE}, {LORA}, batch_size: 100, max_length: 8, learning_rate: 1e-9"
    view = study(fields, prompts, "from: base, samples: 1")
    built = stages.build(view, "made", micro_batch=100)
    rows = answers_of(view)[1:]
    head, mean, deviation = head_of(built)
    rewards = [reward for row in rows for _, _, reward in row]
    assert (mean, deviation) == (pytest.approx(fmean(rewards)), pytest.approx(pstdev(rewards)))
    start = load_language_model(view.artifact("base")).model
    expected = float(mean_loss(rows, fudge, start, head, None))
    assert built.metrics["train/first_loss"] == pytest.approx(expected, rel=1e-5)
    assert (built.metrics["rows"], built.metrics["dropped_too_long"]) == (99, 1)


@pytest.mark.parametrize("head", ["scalar", "vocabulary"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_preferences_compare_prefixes_of_equal_length(
    study: Study, opinionated: None, head: str, micro_batch: int
) -> None:
    view = study(f"{BT}, head: {head}, {LORA}, batch_size: 3, learning_rate: 1e-9")
    built = stages.build(view, "made", micro_batch=micro_batch)
    weights, mean, deviation = head_of(built)
    assert (mean, deviation) == (0, 1)
    start = load_language_model(view.artifact("base")).model
    losses = []
    for prompt, chosen, rejected in PAIRS:
        first, second = (values_of(start, weights, ids(prompt), [*ids(a), 0]).tolist() for a in (chosen, rejected))
        pairs = list(zip(first, second, strict=False))  # as many as the shorter answer has
        losses.append(fmean(math.log1p(math.exp(r - c)) for c, r in pairs))
    assert built.metrics["train/first_loss"] == pytest.approx(fmean(losses), rel=1e-5)
    assert "on_policy" not in built.metrics


class Steps(TrainerCallback):
    """Notes the gradients that reach the optimizer."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        given = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.gradients.append(given)


@pytest.mark.parametrize(("fields", "loss"), [(FUDGE, fudge), (f"{FUDGE}, head: scalar", fudge), (Q, bellman)])
def test_no_gradient_passes_through_what_is_expected_and_the_body_learns_too(
    study: Study, opinionated: None, monkeypatch: pytest.MonkeyPatch, fields: str, loss: Any
) -> None:
    steps = Steps()
    monkeypatch.setattr(trainers, "CheckpointByClock", lambda every: steps)
    view = study(f"{fields}, lora: null, batch_size: 3, learning_rate: 1e-9")
    built = stages.build(view, "made", micro_batch=3)
    head, _, _ = head_of(built)
    head = {name: value.requires_grad_() for name, value in head.items()}
    body, reference = (load_language_model(view.artifact("base")).model for _ in range(2))
    mean_loss(answers_of(view), loss, body, head, reference).backward()
    expected = {f"head.{name}": value.grad for name, value in head.items()}
    expected |= {f"body.{name}": value.grad for name, value in body.named_parameters() if value.grad is not None}
    (found,) = steps.gradients
    assert found.keys() == expected.keys()
    # Clipped to norm 1.
    norm = max(1.0, float(torch.cat([g.flatten() for g in expected.values()]).norm()))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient / norm, rtol=1e-4, atol=1e-6)


@BOTH
@pytest.mark.parametrize("reference", ["base", "other"])
def test_what_is_expected_is_the_references_however_far_the_body_has_gone(
    study: Study, monkeypatch: pytest.MonkeyPatch, lora: str, reference: str
) -> None:
    seen: list[tuple[Packed, Tensor]] = []
    real = train_prefix_scorer.Scorer._reference_logits

    def spy(self: Any, packed: Packed) -> Tensor:
        seen.append((packed, real(self, packed)))
        return seen[-1][1]

    monkeypatch.setattr(train_prefix_scorer.Scorer, "_reference_logits", spy)
    view = study(f"{Q}, reference: {reference}, {lora}, batch_size: 1, epochs: 3.0, learning_rate: 5e-2")
    built = stages.build(view, "made")
    named, trained = (load_language_model(artifact).model for artifact in (view.artifact(reference), built.artifact))
    for packed, logits in seen:
        row, owners = packed.input_ids[0].tolist(), packed.owners[0].tolist()
        shared = owners.index(0)
        for answer in range(max(owners)):
            places = [i for i, owner in enumerate(owners) if owner == answer]
            sequence = row[:shared] + [row[i] for i in places]
            with torch.inference_mode():
                expected = named(torch.tensor([sequence])).logits[0, shared:]
                gone = trained(torch.tensor([sequence])).logits[0, shared:]
            torch.testing.assert_close(logits[0, places], expected, rtol=1e-4, atol=1e-4)
            assert (gone - expected).abs().max() > 0.1
    assert len(seen) > 9


def learnt(view: Any, prompt: str, artifact: Any) -> Any:
    """`value(prefix)` of a scorer that was saved, by its head on a pass over the prefix alone."""
    loaded, head = load_prefix_scorer(artifact)

    def value(prefix: Sequence[int]) -> float:
        sequence = torch.tensor([[*ids(prompt), *prefix]])
        with torch.inference_mode():
            states = hidden_states(loaded.model, input_ids=sequence)[0]
            if head.each is None:
                return float(head.of_tokens(states[-1], sequence[0, -1]))
            return float(head.of_all(states[-2])[prefix[-1]])

    return value


def expected_reward(model: Any, prompt: str, prefix: Sequence[int], longest: int) -> float:
    """E[r | prefix] over the model's own continuations of at most `longest` tokens in all."""
    if prefix[-1] == 0 or len(prefix) == longest:
        return letters.worth([""], ["".join(letters.ANSWERS[token] for token in prefix)])[0]
    with torch.inference_mode():
        shares = after(model, [*ids(prompt), *prefix])[-1].tolist()
    return sum(p * expected_reward(model, prompt, [*prefix, z], longest) for z, p in enumerate(shares))


def begun(view: Any) -> dict[int, float]:
    """The mean reward of the responses that begin with each token."""
    rows = [(tokens[0], reward) for row in answers_of(view) for _, tokens, reward in row]
    return {token: fmean(r for t, r in rows if t == token) for token, _ in rows}


@pytest.mark.parametrize(("head", "rolls"), [("vocabulary", "other"), ("scalar", "base")])
def test_fudge_gives_a_prefix_the_mean_reward_of_the_responses_that_go_on_from_it(
    study: Study, head: str, rolls: str
) -> None:
    fields = f"{FUDGE}, head: {head}, lora: null, batch_size: 8, epochs: 60.0, learning_rate: 1e-2"
    view = study(fields, ["ab"] * 8, f"from: {rolls}, samples: 32", longest=2, flat=True)
    built = stages.build(view, "made", micro_batch=8)
    value = learnt(view, "ab", built.artifact)
    found = {token: value([token]) for token in range(8)}
    assert found == pytest.approx(begun(view), abs=0.15)
    writer = load_language_model(view.artifact(rolls)).model
    exact = {token: expected_reward(writer, "ab", [token], 2) for token in range(8)}
    assert found == pytest.approx(exact, abs=0.6)  # as far as the means of some 32 responses each are exact
    far = [(low, high) for low in exact for high in exact if exact[high] - exact[low] > 0.8]
    assert len(far) > 10 and all(found[low] < found[high] for low, high in far)


@pytest.mark.parametrize("rolls", ["base", "other"])
def test_q_gives_a_prefix_what_the_reference_makes_of_it_whoever_wrote_the_responses(study: Study, rolls: str) -> None:
    fields = f"{Q}, lora: null, batch_size: 8, epochs: 60.0, learning_rate: 1e-2"
    view = study(fields, ["ab"] * 8, f"from: {rolls}, samples: 32", longest=2, flat=True)
    built = stages.build(view, "made", micro_batch=8)
    value = learnt(view, "ab", built.artifact)
    base = load_language_model(view.artifact("base")).model
    exact = {token: expected_reward(base, "ab", [token], 2) for token in range(8)}
    found = {token: value([token]) for token in range(8)}
    assert found == pytest.approx(exact, abs=0.15)
    if rolls == "other":
        assert begun(view) != pytest.approx(exact, abs=0.4)  # the mean rewards of its responses are further off
    far = [(low, high) for low in exact for high in exact if exact[high] - exact[low] > 0.3]
    assert len(far) > 20 and all(found[low] < found[high] for low, high in far)


@pytest.mark.parametrize(("fields", "met"), [(FUDGE, None), (Q, None), (f"{BT}, head: vocabulary", {*range(8)})])
def test_a_token_that_was_never_met_is_worth_what_its_prefix_is(
    study: Study, fields: str, met: set[int] | None
) -> None:
    fields = f"{fields}, {LORA}, batch_size: 1, epochs: 3.0, learning_rate: 5e-2, weight_decay: 0.1"
    view = study(fields, ["a"], longest=2)
    built = stages.build(view, "made")
    if met is None:
        met = {token for row in answers_of(view) for _, tokens, _ in row for token in tokens}
        assert 0 < len(met) < 7
    loaded, head = load_prefix_scorer(built.artifact)
    with torch.inference_mode():
        states = hidden_states(loaded.model, input_ids=torch.tensor([ids("abc")]))[0]
        values = head.of_all(states)
        prefixes = head.mean + head.deviation * (states @ head.shared)
    alike = {token for token in range(8) if torch.allclose(values[:, token], prefixes, atol=1e-6)}
    assert alike == {*range(8)} - met


@pytest.mark.parametrize(
    ("fields", "rolls", "on_policy"),
    [
        (FUDGE, "from: base", True),
        (FUDGE, "from: other", False),
        (f"{FUDGE}, reference: other", "from: other", True),
        (f"{FUDGE}, reference: other", "from: base", False),
        (FUDGE, "from: warm", False),
        (FUDGE, "from: mixed", False),
        (Q, "from: other", False),
        (Q, "from: base", True),
    ],
)
def test_responses_of_another_policy_are_warned_of_where_they_matter(
    study: Study, fields: str, rolls: str, on_policy: bool
) -> None:
    view = study(f"{fields}, {LORA}, batch_size: 3", rolls=f"{rolls}, samples: 2")
    built = stages.build(view, "made")
    assert built.metrics["on_policy"] == on_policy
    controlled = "other" if "reference" in fields else "base"
    warning = (
        f"warning: the responses are no plain samples of `{controlled}`, which is to be controlled, so cd_fudge learns "
        "the value under another policy; sample from it, or use `loss: cd_q`"
    )
    warned = [content for kind, content in built.events if kind == "note" and "warning" in content]
    assert warned == ([] if on_policy or fields == Q else [warning])


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every scorer as it was trained, in memory."""
    made: list[Any] = []

    class Kept(train_prefix_scorer.Scorer):
        def __init__(self, *args: Any):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(train_prefix_scorer, "Scorer", Kept)
    return made


@BOTH
@pytest.mark.parametrize("fields", KINDS)
def test_a_scorer_that_was_saved_gives_the_values_that_it_gave(
    study: Study, scorers: list[Any], fields: str, lora: str
) -> None:
    built = stages.build(study(f"{fields}, {lora}, batch_size: 1, epochs: 2.0, learning_rate: 5e-2"), "made")
    (trained,) = scorers
    loaded, head = load_prefix_scorer(built.artifact)
    tokens = torch.tensor([ids("abcdefg"), ids("ggfeacb")])
    with torch.inference_mode():
        ours, theirs = (
            hidden_states(loaded.model, input_ids=tokens),
            hidden_states(trained.body.eval(), input_ids=tokens),
        )
        torch.testing.assert_close(
            head.of_tokens(ours, tokens), trained.head.of_tokens(theirs, tokens), rtol=0, atol=1e-4
        )
        if head.each is not None:
            every = head.of_all(ours)
            torch.testing.assert_close(every, trained.head.of_all(theirs), rtol=0, atol=1e-4)
            picked = every.gather(-1, tokens[..., None])[..., 0]
            torch.testing.assert_close(picked, head.of_tokens(ours, tokens), rtol=0, atol=1e-5)
        assert (head.of_tokens(ours, tokens) - head.mean).abs().max() > 0.05


def tensors(built: stages.Built) -> dict[str, Tensor]:
    paths = sorted(built.folder.rglob("*.safetensors"))
    assert len(paths) == 2
    return {f"{path.name} {name}": value for path in paths for name, value in load_file(path).items()}


def apart(one: stages.Built, other: stages.Built) -> float:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(("fields", "lora"), list(zip(KINDS, [LORA, "lora: null"] * 2, strict=True)))
def test_how_a_batch_is_accumulated_changes_nothing_but_rounding(study: Study, fields: str, lora: str) -> None:
    fields = f"{fields}, {lora}, batch_size: 3, learning_rate: 1e-2, epochs: 3.0"
    whole, parts = (stages.build(study(fields), "made", micro_batch=size) for size in (3, 1))
    assert apart(whole, parts) < 1e-5
    ours, theirs = ([v for _, v in built.logged("train/loss")] for built in (whole, parts))
    assert ours == pytest.approx(theirs, abs=1e-5) and len(ours) == 3


def test_a_token_that_ends_no_answer_learns_nothing_in_the_first_step_of_cd_q(study: Study) -> None:
    """At first every prefix is worth what is expected after it. Adam would make whole steps of what rounding left."""
    view = study(f"{Q}, {LORA}, batch_size: 3, learning_rate: 1e-2")
    each = head_of(stages.build(view, "made"))[0]["each"]
    last = {tokens[-1] for row in answers_of(view) for _, tokens, _ in row}
    others = sorted(set(range(len(each))) - last)
    assert len(others) >= 3
    assert not each[others].any()
    assert each[sorted(last)].abs().max() > 1e-3


@BOTH
@pytest.mark.parametrize("fields", [FUDGE, Q])
def test_keeping_fewer_activations_changes_nothing_but_rounding(study: Study, fields: str, lora: str) -> None:
    fields = f"{fields}, {lora}, batch_size: 3, learning_rate: 1e-2, epochs: 3.0"
    fewer, every = (stages.build(study(fields), "made", gradient_checkpointing=flag) for flag in (True, False))
    assert apart(fewer, every) < 1e-5


@BOTH
def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(study: Study, lora: str) -> None:
    rolls = "from: base, samples: 4, seed: 1"
    fields = f"{Q}, {lora}, batch_size: 1, learning_rate: 1e-2, epochs: 2.0"
    one, same, other = (stages.build(study(f"{fields}, seed: {seed}", rolls=rolls), "made") for seed in (5, 5, 6))
    assert apart(one, same) == 0
    assert apart(one, other) > 1e-3


@BOTH
def test_beside_bf16_what_is_trained_is_fp32_and_the_loss_is_the_same(
    study: Study, opinionated: None, lora: str
) -> None:
    fields = f"{Q}, {lora}, batch_size: 3, learning_rate: 1e-9"
    views = [study(fields, rolls="from: base, samples: 4, seed: 1", precision=p) for p in ("fp32", "bf16")]
    responses = [view.artifact("rolls").folder / "responses.jsonl" for view in views]
    shutil.copy(*responses)
    full, half = (stages.build(view, "made") for view in views)
    assert {tensor.dtype for tensor in tensors(half).values()} == {torch.float32}
    assert half.metrics["train/first_loss"] == pytest.approx(full.metrics["train/first_loss"], rel=0.05)


@pytest.mark.parametrize(
    ("fields", "lora", "step"),
    [
        (FUDGE, LORA, 1),
        (f"{FUDGE}, head: scalar", "lora: null", 3),
        (Q, LORA, 4),
        (Q, "lora: null", 1),
        (BT, LORA, 2),
    ],
)
def test_a_stage_whose_process_died_goes_on_to_the_very_same_weights(
    study: Study, monkeypatch: pytest.MonkeyPatch, fields: str, lora: str, step: int
) -> None:
    fields = f"{fields}, {lora}, batch_size: 1, learning_rate: 1e-2, epochs: 2.0"
    whole = stages.build(study(fields), "made")
    view = study(fields)
    folder = view.artifact("made").folder
    with dying(folder) as patch:
        patch.setattr(trainers, "CheckpointByClock", lambda every: DiesAfter(step))
        stages.build(view, "made")
    saved = folder.with_name(f"{folder.name}.scratch") / "checkpoints" / f"checkpoint-{step}" / "model.safetensors"
    frozen = [name for name in load_file(saved) if "lora" not in name and not name.startswith("head.")]
    assert bool(frozen) == (lora == "lora: null")  # what is not trained is in no checkpoint
    monkeypatch.setattr(scores, "scorer", lambda *_, **__: pytest.fail("it scored again"))
    resumed = stages.build(view, "made")
    assert ("note", f"going on from the checkpoint after step {step}") in resumed.events
    assert apart(resumed, whole) == 0


def test_a_training_that_diverges_ends_there_and_says_where(study: Study) -> None:
    with pytest.raises(UserError, match=r"^training diverged: [\w/ ]+ is (nan|inf) at step \d; lower `learning_rate`$"):
        stages.build(study(f"{FUDGE}, lora: null, batch_size: 1, epochs: 2.0, learning_rate: 1e30"), "made")
