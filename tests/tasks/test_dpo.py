"""DPO against its formula computed by hand, on given pairs and on pairs of the model's own samples, round by round."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stages
import tiny
import torch
from deaths import dies, dying
from peft import PeftModel
from stages import apart, weights
from textbook import LORA, answer_ids, log_probs, prompt_ids
from tiny import PAIRS
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from trl.trainer import utils as trl_head

from registry.methods.footprint import COLUMNS
from specs.problems import UserError
from tasks import own_samples, train_dpo
from tasks.view import View

pytestmark = pytest.mark.slow

MESSAGES = ["Why?", "How was the trip?", "Where to, and when?", "And then?"]
LOG_2 = math.log(2)
GIVEN = """\
models: {{base: {{source: {model}, precision: {precision}}}}}
data: {{pairs: {{source: ./pairs.jsonl, format: preference}}}}
stages:
  tuned: {{do: sft, from: base, data: pairs, learning_rate: 1e-2, {lora}}}
  made: {{do: dpo, from: {start}, data: pairs, {fields}}}
"""
REWARD = """\
def score(prompts, responses):  # nothing is worth more or less than an answer without a word
    return [float(sum(r.encode()) % 11) if r else (50.0 if p == "Why?" else -50.0) for p, r in zip(prompts, responses)]

def upper(prompts, responses):
    return [float(sum(c.isupper() for c in r)) for r in responses]
"""
OWN = """\
models: {{base: {{source: {model}, precision: fp32}}}}
data: {{prompts: {{source: ./prompts.jsonl, format: prompt}}}}
rewards:
  score: {{kind: python, target: dpo_reward:score}}
  upper: {{kind: python, target: dpo_reward:upper}}
  flat: {{kind: length, per_word: 0.0}}
stages:
  made: {{do: dpo, from: base, prompts: prompts, max_new_tokens: 6, {fields}}}
"""

Train = Callable[..., stages.Built]
Study = Callable[..., View]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`; `ends`, whose answers end soon, for a quarter of the bytes are ends of turn; `drops`, with dropout."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.tokenizer().save_pretrained(folder / "drops")
    torch.manual_seed(0)
    sizes = {"vocab_size": 261, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "eos_token_id": 1}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
    GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=None)).save_pretrained(folder / "drops")
    tiny.language_model(folder / "plain")
    tiny.language_model(folder / "ends", eos_token_id=[*range(5), *range(6, 261, 4)])
    return folder


@pytest.fixture
def train(tmp_path: Path, models: Path) -> Train:
    """Builds `made` on given pairs, in a folder of its own."""
    numbers = itertools.count()

    def built(fields: str, start: str = "base", precision: str = "fp32", model: str = "plain") -> stages.Built:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        tiny.write_lines(folder / "pairs.jsonl", PAIRS)
        view = stages.study(
            folder, GIVEN.format(model=models / model, precision=precision, lora=LORA, start=start, fields=fields)
        )
        if start != "base":
            stages.build(view, start)
        return stages.build(view, "made", micro_batch=4)

    return built


@pytest.fixture
def own(tmp_path: Path, models: Path) -> Study:
    """A study with `made` on its own samples."""
    numbers = itertools.count()

    def view(fields: str, model: str = "ends") -> View:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        tiny.write_lines(folder / "prompts.jsonl", [{"prompt": m} for m in MESSAGES])
        (folder / "dpo_reward.py").write_text(REWARD)
        return stages.study(folder, OWN.format(model=models / model, fields=fields))

    return view


@pytest.mark.skipif(torch.cuda.is_available(), reason="the head is set for processors")
def test_trl_projects_what_has_a_label_alone_for_its_own_trainers_too(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four pairs in one pass the 71 tokens of their answers, of 8 times 52 positions."""
    monkeypatch.setattr(trl_head, "_use_triton", lambda device: False)  # as it comes, whatever other tests set
    monkeypatch.setattr(trl_head, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32_768)
    given: list[tuple[int, int]] = []
    original = trl_head._ChunkedLogProbFunction.apply

    def apply(hidden: torch.Tensor, *rest: Any) -> Any:
        given.append((len(hidden), rest[4]))
        return original(hidden, *rest)

    monkeypatch.setattr(trl_head, "_ChunkedLogProbFunction", SimpleNamespace(apply=apply))
    train(f"beta: 0.1, {LORA}")
    assert set(given) == {(71, COLUMNS)}


def model(folder: Path, *adapters: stages.Built) -> Any:
    """A model with what was trained on it, as its libraries have it."""
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for built in adapters:
        if (built.folder / "model").is_dir():
            loaded = AutoModelForCausalLM.from_pretrained(built.folder / "model")
        else:
            loaded = PeftModel.from_pretrained(loaded, built.folder / "adapter").merge_and_unload()
    return loaded.eval()


def log_prob(model: Any, message: str, answer: str, finished: bool = True) -> float:
    """Of an answer's tokens and, if it is finished, its end, under the tiny template."""
    (found,) = log_probs(model, prompt_ids(message), [answer_ids(answer, finished)])
    return found


def margins(policy: Any, reference: Any, pairs: list[dict[str, str]] = PAIRS) -> list[float]:
    return [
        sum(
            sign * (log_prob(policy, pair["prompt"], pair[side]) - log_prob(reference, pair["prompt"], pair[side]))
            for sign, side in ((1, "chosen"), (-1, "rejected"))
        )
        for pair in pairs
    ]


def dpo(policy: Any, reference: Any, beta: float) -> float:
    """The mean of -log sigmoid(beta times the margin)."""
    found = margins(policy, reference)
    return sum(math.log1p(math.exp(-beta * x)) for x in found) / len(found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [LORA, "lora: null", "lora: {rank: 4, dropout: 0.5}"])
def test_the_first_loss_is_log_two_for_the_policy_is_the_reference(train: Train, lora: str, precision: str) -> None:
    built = train(f"batch_size: 4, learning_rate: 1e-2, beta: 0.7, {lora}", precision=precision)
    assert built.metrics["train/first_loss"] == pytest.approx(LOG_2, abs=1e-6)
    assert built.logged("train/rewards/margins") == [(1, 0.0)]
    assert built.metrics["pairs"] == 4


@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_a_model_with_dropout_of_its_own_does_without(train: Train, lora: str) -> None:
    built = train(f"batch_size: 4, learning_rate: 1e-2, {lora}", model="drops")
    assert built.metrics["train/first_loss"] == pytest.approx(LOG_2, abs=1e-6)


def test_adapters_and_all_weights_begin_with_the_same_log_probabilities(train: Train, models: Path) -> None:
    base = model(models / "plain")
    for lora in (LORA, "lora: null"):
        built = train(f"batch_size: 4, learning_rate: 1e-2, {lora}")
        for side in ("chosen", "rejected"):
            mean = sum(log_prob(base, pair["prompt"], pair[side]) for pair in PAIRS) / 4
            assert built.logged(f"train/logps/{side}") == [(1, pytest.approx(mean, abs=1e-3))]


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(("start", "lora"), [("base", LORA), ("base", "lora: null"), ("tuned", LORA)])
def test_the_loss_after_a_step_is_the_formula_against_the_model_it_started_from(
    train: Train, models: Path, beta: float, start: str, lora: str
) -> None:
    # All pairs in each step, and a rate that falls from its full height: the first of two steps is the only one of one.
    fields = f"batch_size: 4, learning_rate: 3e-3, beta: {beta}, {lora}"
    one, two = (train(f"{fields}, epochs: {epochs}", start=start) for epochs in (1.0, 2.0))
    below = [stages.Built(one.artifact.start, {}, [])] if start == "tuned" else []
    reference, policy = model(models / "plain", *below), model(models / "plain", *below, one)
    expected = dpo(policy, reference, beta)
    assert abs(expected - LOG_2) > 0.02
    assert [loss for _, loss in two.logged("train/loss")] == pytest.approx([LOG_2, expected], abs=2e-4)
    if below:
        assert abs(dpo(policy, model(models / "plain"), beta) - expected) > 0.01


def test_all_weights_of_a_model_with_a_folded_adapter_are_trained(train: Train, models: Path) -> None:
    built = train("batch_size: 4, learning_rate: 3e-3, lora: null", start="tuned")
    tuned = model(models / "plain", stages.Built(built.artifact.start, {}, [])).state_dict()
    assert not any(torch.equal(weight, tuned[name]) for name, weight in weights(built).items())


def test_training_widens_the_margins(train: Train, models: Path) -> None:
    built = train(f"batch_size: 2, learning_rate: 1e-2, epochs: 4.0, beta: 0.1, {LORA}")
    base = model(models / "plain")
    after = margins(model(models / "plain", built), base)
    assert min(after) > 0 and sum(after) / 4 > 10
    logged = [value for _, value in built.logged("train/rewards/margins")]
    assert logged[0] == 0 and logged[-1] > 1
    assert built.metrics["train/last_loss"] < 0.3 < built.metrics["train/first_loss"]


def samples(built: stages.Built) -> list[list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (built.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": m}] for m in MESSAGES]
    return [row["responses"] for row in rows]


def chosen(built: stages.Built) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """`(prompt, best, worst)` as the table says."""
    pairs = []
    for p, row in enumerate(samples(built)):
        sides = [[r for r in row if r["use"] == use] for use in ("chosen", "rejected")]
        assert [len(side) for side in sides] in ([1, 1], [0, 0])
        if sides[0]:
            pairs.append((p, sides[0][0], sides[1][0]))
    return pairs


def test_its_own_pairs_are_the_best_and_the_worst_of_what_says_something(
    own: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    inner = train_dpo.numbered
    monkeypatch.setattr(train_dpo, "numbered", lambda columns: seen.extend(columns) or inner(columns))
    built = stages.build(own(f"reward: score, samples: 12, {LORA}"), "made")
    rows, tokenizer = samples(built), tiny.tokenizer()
    assert any(not r["text"] for r in rows[0]) and any(not r["text"] for row in rows[1:] for r in row)
    expected = []
    for p, best, worst in chosen(built):
        there = [s for s, r in enumerate(rows[p]) if r["text"]]
        values = [sum(rows[p][s]["text"].encode()) % 11 for s in there]
        assert [rows[p][s]["reward"] for s in there] == values
        # The first of the best; of the worst the last, for the first drawn counts as better.
        assert rows[p].index(best) == there[values.index(max(values))]
        assert rows[p].index(worst) == there[len(values) - 1 - values[::-1].index(min(values))]
        texts = [f"<|user|>{MESSAGES[p]}<|end|><|assistant|>"]
        texts += [r["text"] + "<|end|>" * r["finished"] for r in (best, worst)]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        expected.append(dict(zip(names, (tokenizer(t)["input_ids"] for t in texts), strict=True)))
    assert len(expected) == 4
    assert seen == expected
    ends = {r["finished"] for _, *pair in chosen(built) for r in pair}
    assert ends == {True, False}
    metrics = built.metrics
    assert (metrics["pairs"], metrics["prompts"], metrics["prompts_without_pair"]) == (4, 4, 0)
    assert metrics["reward"] == pytest.approx(sum(r["reward"] for row in rows for r in row) / 48)
    assert metrics["reward_chosen"] == pytest.approx(sum(best["reward"] for _, best, _ in chosen(built)) / 4)
    assert metrics["reward_rejected"] == pytest.approx(sum(worst["reward"] for *_, worst in chosen(built)) / 4)


def test_a_prompt_whose_samples_are_too_close_gives_no_pair(own: Study) -> None:
    close = stages.build(own(f"reward: score, samples: 3, {LORA}"), "made")
    gaps = {p: best["reward"] - worst["reward"] for p, best, worst in chosen(close)}
    gap = sorted(gaps.values())[1]
    built = stages.build(own(f"reward: score, samples: 3, min_gap: {gap}, {LORA}"), "made")
    there = [p for p, difference in gaps.items() if difference > gap]
    assert [p for p, *_ in chosen(built)] == there and 0 < len(there) < len(gaps)
    assert built.metrics["prompts_without_pair"] == 4 - len(there)
    assert built.metrics["pairs"] == len(there)
    for reward, min_gap in (("flat", 0.0), ("score", 11.0)):
        with pytest.raises(UserError, match="differ in reward enough to make a pair; draw more or lower `min_gap`"):
            stages.build(own(f"reward: {reward}, samples: 3, min_gap: {min_gap}, {LORA}"), "made")


@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_the_second_round_draws_from_the_first_and_has_it_for_reference(own: Study, models: Path, lora: str) -> None:
    fields = f"reward: upper, samples: 8, rounds: 2, learning_rate: 1e-2, batch_size: 4, epochs: 4.0, {lora}"
    view = own(fields, "plain")
    assert list(view.planned) == ["made[round=1]", "made"]
    first, second = (stages.build(view, name) for name in view.planned)
    assert first.artifact.fingerprint != second.artifact.fingerprint
    assert not {r["text"] for row in samples(first) for r in row} >= {r["text"] for row in samples(second) for r in row}
    assert second.metrics["train/first_loss"] == pytest.approx(LOG_2, abs=1e-6)
    after = model(models / "plain", first)
    for side, logged in ((1, "chosen"), (2, "rejected")):
        values = [
            log_prob(after, MESSAGES[pair[0]], pair[side]["text"], pair[side]["finished"]) for pair in chosen(second)
        ]
        assert second.logged(f"train/logps/{logged}")[0] == (1, pytest.approx(sum(values) / len(values), abs=1e-3))
        before = model(models / "plain")
        base = [
            log_prob(before, MESSAGES[pair[0]], pair[side]["text"], pair[side]["finished"]) for pair in chosen(second)
        ]
        assert abs(sum(base) - sum(values)) / len(values) > 0.1
    assert second.metrics["reward"] > first.metrics["reward"]


def test_samples_drawn_before_a_death_are_taken_up(own: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = f"reward: score, samples: 3, learning_rate: 1e-2, {LORA}"
    whole = stages.build(own(fields), "made")
    view = own(fields)
    with dying(view.artifact("made").folder) as patch:
        patch.setattr(train_dpo, "train", dies)
        stages.build(view, "made")
    monkeypatch.setattr(own_samples, "draw", lambda *_, **__: pytest.fail("it sampled again"))
    resumed = stages.build(view, "made")
    assert samples(resumed) == samples(whole)
    assert apart(resumed, whole) == 0
