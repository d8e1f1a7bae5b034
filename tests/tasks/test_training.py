"""The real training bodies on tiny models: what their loss is, what their weights depend on, what they write."""

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
from safetensors.torch import load_file
from stages import apart, weights
from textbook import LONG, LORA, SHORT, answer_ids, log_probs, prompt_ids
from tiny import PAIRS, TEN
from transformers import AutoModelForCausalLM
from trl import RewardTrainer

from registry.rewards import scorer
from specs.execution import Execution
from specs.problems import UserError
from specs.reward_training import RL
from tasks.inputs import dropped_rows
from tasks.trainer import last_checkpoint
from tasks.training import arguments, tokenised

CUT_OFF = """\
models: {{base: {{source: {model}, precision: fp32}}}}
data: {{prompts: {{source: quickstart-eval, format: prompt}}}}
rewards: {{length: {{kind: length}}}}
stages:
  rolls: {{do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 6}}
  pairs: {{do: label, responses: rolls, reward: length}}
  tuned: {{do: sft, from: base, data: pairs, lora: null, batch_size: 48}}
"""

Train = Callable[..., stages.Built]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def train(tmp_path: Path, model: Path) -> Train:
    """Builds a stage with the given fields on the given pairs, each time in a folder of its own."""
    numbers = itertools.count()

    def built(
        do: str, fields: str, pairs: list[Any] = PAIRS, test: list[Any] | None = None, of: str = "", **execution: Any
    ) -> stages.Built:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        tiny.write_lines(folder / "pairs.jsonl", pairs)
        tiny.write_lines(folder / "test.jsonl", test or pairs)
        study = f"""\
models: {{base: {{{of or f"source: {model}, precision: fp32"}}}}}
data:
  pairs: {{source: ./pairs.jsonl, format: preference, max_dropped: 50%}}
  test: {{source: ./test.jsonl, format: preference}}
stages:
  made: {{do: {do}, from: base, data: pairs, {"test: test, " if test else ""}{fields}}}
"""
        return stages.build(stages.study(folder, study), "made", **execution)

    return built


def encoded(pair: dict[str, str], side: str = "chosen") -> tuple[list[int], list[int]]:
    """Prompt and answer as the tiny template has them, written out."""
    return prompt_ids(pair["prompt"]), answer_ids(pair[side], True)


def test_the_loss_of_sft_is_the_cross_entropy_of_the_answers_tokens(train: Train, model: Path) -> None:
    built = train("sft", "learning_rate: 1e-9, batch_size: 4, lora: null", micro_batch=4)
    causal = AutoModelForCausalLM.from_pretrained(model).eval()
    total, count = 0.0, 0
    for prompt, answer in map(encoded, PAIRS):
        total -= sum(log_probs(causal, prompt, [answer]))
        count += len(answer)
    # Over all the answers' tokens of the batch: a long answer weighs more than a short one.
    assert built.logged("train/loss") == [(1, pytest.approx(total / count, abs=2e-4))]
    assert built.metrics["train/first_loss"] == built.logged("train/loss")[0][1]


@pytest.mark.parametrize(("beta", "center", "micro_batch"), [(1.0, 0.0, 4), (2.0, 0.0, 3), (2.0, 0.3, 1)])
def test_the_loss_of_a_reward_model_is_the_bradley_terry_likelihood(
    train: Train, beta: float, center: float, micro_batch: int
) -> None:
    fields = f"learning_rate: 1e-9, batch_size: 4, {LORA}, beta: {beta}, center: {center}"
    built = train("reward_model", fields, micro_batch=micro_batch)
    prompts = [({"role": "user", "content": pair["prompt"]},) for pair in PAIRS]
    score = scorer(built.artifact, batch=1)
    chosen, rejected = (score(prompts, [pair[side] for pair in PAIRS]) for side in ("chosen", "rejected"))
    losses = [
        math.log1p(math.exp(-beta * (c - r))) + center * (c + r) ** 2 for c, r in zip(chosen, rejected, strict=True)
    ]
    assert built.metrics["train/first_loss"] == pytest.approx(sum(losses) / 4, abs=2e-4)


def job_of(scratch: Path) -> Any:
    entry = RL.model_validate({"do": "rl", "from": "a", "prompts": "b", "reward": "c", "samples": 4, "batch_size": 12})
    return SimpleNamespace(entry=entry, execution=Execution(micro_batch=4), scratch=scratch, seed=0)


def test_processes_share_the_rows_of_a_step_and_never_the_answers_to_one_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = arguments(job_of(Path("nowhere")), 12, "fp32", each=4)
    # Four of twelve prompts, sixteen sequences, in every process.
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (4, 4)


def test_a_checkpoint_is_for_as_many_processes_that_hold_the_model_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = [{}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"}]
    found = []
    for way in ways:
        with monkeypatch.context() as patch:
            for name, value in way.items():
                patch.setenv(name, value)
            assert last_checkpoint(tmp_path / "checkpoints") is None
            folder = Path(arguments(job_of(tmp_path), 12, "fp32")["output_dir"])
            for step in (1, 2):
                (folder / f"checkpoint-{step}").mkdir(parents=True)
                (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}" if step == 1 else "")
            found.append(last_checkpoint(tmp_path / "checkpoints"))
            assert found[-1] == folder / "checkpoint-1"  # the second was torn
    assert len(set(found)) == 4


@pytest.mark.parametrize("do", ["reward_model", "autoregressive_reward_model"])
def test_where_the_template_writes_something_behind_the_end_a_reward_reads_what_it_was_trained_on(
    train: Train, tmp_path: Path, do: str
) -> None:
    chatml = tiny.language_model(tmp_path / "chatml", chat_template=tiny.CHAT.replace("<|end|>", "<|end|>\n"))
    pairs = PAIRS[:1] + PAIRS[3:]
    fields = f"learning_rate: 1e-9, batch_size: 2, {LORA}, beta: 1.0"
    built = train(do, fields, pairs, pairs, of=f"source: {chatml}, precision: fp32", micro_batch=2)
    score = scorer(built.artifact, batch=2)
    prompts = [({"role": "user", "content": pair["prompt"]},) for pair in pairs]
    chosen, rejected = (score(prompts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert built.metrics["test/mean_margin"] == pytest.approx(sum(margins) / 2, abs=2e-4)
    losses = [math.log1p(math.exp(-m)) for m in margins]
    assert built.metrics["train/first_loss"] == pytest.approx(sum(losses) / 2, abs=2e-4)


@pytest.mark.parametrize("fields", [f"batch_size: 4, {LORA}", "batch_size: 1, lora: null"])
def test_the_seed_draws_both_the_adapters_and_the_order_of_the_rows(train: Train, fields: str) -> None:
    # One batch of all rows has no order that matters; weights that were there already are not drawn.
    one, other = (train("sft", f"learning_rate: 1e-2, {fields}, seed: {seed}", micro_batch=4) for seed in (5, 6))
    assert apart(one, other) > 1e-3


@pytest.mark.parametrize(
    ("batch", "epochs", "steps"), [(4, 2.0, 6), (4, 1.5, 5), (5, 1.0, 2), (10, 0.5, 1), (16, 1.0, 1), (1, 1.0, 10)]
)
def test_each_epoch_ends_with_what_is_left_for_a_batch(train: Train, batch: int, epochs: float, steps: int) -> None:
    built = train("sft", f"batch_size: {batch}, epochs: {epochs}, {LORA}", TEN)
    assert built.finished("steps") == [steps]
    assert [step for step, _ in built.logged("train/loss")] == list(range(1, steps + 1))
    curve = [json.loads(line) for line in (built.folder / "training.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in curve] == list(range(1, steps + 1))
    assert built.metrics["train/last_loss"] == curve[-1]["loss"]


@pytest.mark.parametrize("do", ["sft", "reward_model"])
def test_one_epoch_reads_every_token_once(train: Train, do: str) -> None:
    built = train(do, f"batch_size: 4, {LORA}", TEN, micro_batch=2)
    sides = ["chosen"] if do == "sft" else ["chosen", "rejected"]
    expected = sum(len(part) for pair in TEN for side in sides for part in encoded(pair, side))
    assert built.logged("train/num_tokens")[-1] == (3, expected)


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_zero(train: Train) -> None:
    built = train("sft", f"learning_rate: 1e-2, warmup_steps: 2, batch_size: 2, {LORA}", TEN)
    rates = [rate for _, rate in built.logged("train/learning_rate")]
    assert rates == pytest.approx([0, 5e-3, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3])


@pytest.mark.parametrize("do", ["sft", "reward_model"])
def test_rows_that_are_too_long_are_dropped_and_counted(train: Train, do: str) -> None:
    rows = "rows" if do == "sft" else "pairs"
    built = train(do, f"max_length: 53, {LORA}", [SHORT, LONG, SHORT, SHORT])
    assert (built.metrics[rows], built.metrics["dropped_too_long"]) == (3, 1)
    built = train(do, f"max_length: 54, {LORA}", [SHORT, LONG, SHORT, SHORT])
    assert (built.metrics[rows], built.metrics["dropped_too_long"]) == (4, 0)
    built = train(do, f"max_length: 8, too_long: truncate_left, {LORA}", [LONG, LONG, LONG])
    assert (built.metrics[rows], built.metrics["dropped_too_long"]) == (3, 0)


def test_more_lost_rows_than_allowed_are_told_with_their_numbers(train: Train) -> None:
    with pytest.raises(UserError) as caught:
        train("sft", f"max_length: 20, {LORA}", [SHORT, LONG, LONG])
    assert str(caught.value) == (
        "data.pairs: 2 of 3 rows (66.7 %) are longer than 20 tokens; 50% may be dropped; "
        "raise `max_length` or set `too_long: truncate_left` or raise `max_dropped`"
    )


@pytest.mark.parametrize("do", ["sft", "reward_model"])
def test_no_row_is_longer_than_the_model_whatever_max_length_says(train: Train, tmp_path: Path, do: str) -> None:
    short = tiny.language_model(tmp_path / "short", max_position_embeddings=53)
    with pytest.raises(UserError, match=r"2 of 3 rows .* longer than 53 tokens, all that the model reads; 50%"):
        train(do, LORA, [SHORT, LONG, LONG], of=f"source: {short}, precision: fp32")
    built = train(do, f"too_long: truncate_left, {LORA}", [SHORT, LONG], of=f"source: {short}, precision: fp32")
    assert built.metrics["dropped_too_long"] == 0


def test_sft_learns_no_end_from_an_answer_that_was_cut_off(train: Train, tmp_path: Path) -> None:
    view = stages.study(tmp_path, CUT_OFF.format(model=tiny.language_model(tmp_path / "m", eos_token_id=0)))
    rolls = stages.build(view, "rolls")
    assert rolls.metrics["finished"] < 0.5  # the limit is so low that hardly an answer ends by itself
    stages.build(view, "pairs")
    pairs = [json.loads(line) for line in (view.artifact("pairs").folder / "pairs.jsonl").read_text().splitlines()]
    assert not all(pair["chosen_finished"] for pair in pairs)
    # TRL counts the tokens that it read: a prompt, an answer, and an end only where there was one.
    expected = 0
    for pair in pairs:
        before, after = encoded({"prompt": pair["prompt"][0]["content"], "chosen": pair["chosen"]})
        expected += len(before) + len(after) - (not pair["chosen_finished"])
    built = stages.build(view, "tuned")
    assert built.logged("train/num_tokens")[-1][1] == expected


def test_a_dialogue_that_is_cut_keeps_its_end() -> None:
    prompt = ({"role": "user", "content": "Why now?"},)

    def cut(longest: int) -> list[tuple[str, str]]:
        tokenizer = tiny.tokenizer()
        pair = [(prompt, "Because.", True), (prompt, "No.", True)]
        (row,), _ = tokenised(tokenizer, [pair], longest, "truncate_left")
        return [(tokenizer.decode(prompt), tokenizer.decode(answer)) for prompt, answer in row]

    whole = "<|user|>Why now?<|end|><|assistant|>"
    assert cut(20) == [(whole, "Because.<|end|>"), (whole, "No.<|end|>")]
    assert cut(12) == [("?<|end|><|assistant|>", "Because.<|end|>"), ("y now?<|end|><|assistant|>", "No.<|end|>")]
    assert cut(9) == [("", "Because.<|end|>"), ("ow?<|end|><|assistant|>", "No.<|end|>")]
    assert cut(8) == [("", "ecause.<|end|>"), ("w?<|end|><|assistant|>", "No.<|end|>")]


def test_without_adapters_all_weights_are_trained(train: Train, model: Path) -> None:
    before = load_file(model / "model.safetensors")
    built = train("sft", "learning_rate: 1e-3, lora: null")
    after = weights(built)
    assert after.keys() == before.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    head = weights(train("reward_model", "learning_rate: 1e-3, lora: null")).keys() - before.keys()
    assert head == {"score.weight"}


@pytest.mark.parametrize("do", ["sft", "reward_model"])
@pytest.mark.parametrize(("lora", "place"), [(LORA, "adapter"), ("lora: null", "model")])
def test_weights_are_written_as_safetensors_only(train: Train, do: str, lora: str, place: str) -> None:
    built = train(do, lora)
    written = [path for path in built.folder.rglob("*") if path.is_file()]
    assert [p.parent.name for p in written if p.suffix == ".safetensors"] == [place]
    assert {p.suffix for p in written} <= {".safetensors", ".json", ".jsonl", ".md", ".jinja"}


def test_adapters_sit_on_every_linear_layer_and_leave_the_rest(train: Train) -> None:
    names = weights(train("sft", LORA)).keys()
    layers = {name.split(".lora_")[0].split(".")[-1] for name in names}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    others = [name for name in weights(train("reward_model", LORA)) if ".lora_" not in name]
    assert [name.split(".")[-2:] for name in others] == [["score", "weight"]]


@pytest.mark.parametrize("do", ["sft", "reward_model"])
@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_what_is_trained_is_fp32_also_beside_bf16(train: Train, model: Path, do: str, lora: str) -> None:
    built = train(do, lora, of=f"source: {model}, precision: bf16")
    assert {tensor.dtype for tensor in weights(built).values()} == {torch.float32}
    full = train(do, lora).metrics["train/first_loss"]
    assert built.metrics["train/first_loss"] == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize("do", ["sft", "reward_model"])
def test_a_training_that_diverges_ends_there_and_says_where(train: Train, do: str) -> None:
    with pytest.raises(UserError, match=r"^training diverged: [\w/ ]+ is (nan|inf) at step \d; lower `learning_rate`$"):
        train(do, "learning_rate: 1e30, batch_size: 1, epochs: 2.0, lora: null", TEN)


def test_test_rows_are_read_before_anything_is_trained(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardTrainer, "train", lambda self: pytest.fail("it trained"))
    with pytest.raises(UserError, match=r"^data\.test: none of 1 rows can be used"):
        train("reward_model", LORA, test=[{"prompt": "x", "chosen": "y", "rejected": 3}])


def marked(mark: dict[str, str], numbers: range) -> list[dict[str, str]]:
    return [{"prompt": f"Say {i}"} | {side: f"It is {i}{end}" for side, end in mark.items()} for i in numbers]


def test_a_separable_preference_is_learnt_for_held_out_pairs(train: Train) -> None:
    mark = {"chosen": "!", "rejected": "?"}
    fields = f"learning_rate: 1e-2, batch_size: 8, epochs: 3.0, {LORA}"
    built = train("reward_model", fields, marked(mark, range(32)), marked(mark, range(100, 108)), micro_batch=8)
    assert built.metrics["test/accuracy"] == 1
    # Both answers are of one length, so the rule of the longer one is a toss.
    assert built.metrics["test/length_baseline"] == 0.5
    assert built.metrics["test/accuracy_minus_length_baseline"] == 0.5
    assert built.metrics["test/loss"] < 0.1 < built.metrics["test/mean_margin"]
    assert built.metrics["train/last_loss"] < built.metrics["train/first_loss"]


def test_the_length_baseline_counts_characters_with_half_a_point_for_a_tie(train: Train) -> None:
    answers = [("longer", "short"), ("longest", "long"), ("éé", "abc"), ("same", "size")]
    test = [{"prompt": "Which?", "chosen": c, "rejected": r} for c, r in answers]
    built = train("reward_model", LORA, test=test)
    # 1 + 1 + 0 (four bytes, but two characters) + 1/2, of four.
    assert built.metrics["test/length_baseline"] == 0.625
    assert built.metrics["test/pairs"] == 4
    difference = built.metrics["test/accuracy"] - 0.625
    assert built.metrics["test/accuracy_minus_length_baseline"] == pytest.approx(difference)
    for name in ("accuracy", "length_baseline", "accuracy_minus_length_baseline"):
        low, high = (built.metrics[f"test/{name}_{end}"] for end in ("low", "high"))
        assert low <= built.metrics[f"test/{name}"] <= high


@pytest.mark.parametrize("do", ["sft", "reward_model"])
def test_a_tokenizer_with_more_tokens_than_the_model_trains_it_too(train: Train, tmp_path: Path, do: str) -> None:
    small = tiny.language_model(tmp_path / "small", vocab_size=260)
    assert len(tiny.tokenizer()) == 261
    assert train(do, LORA, of=f"source: {small}, precision: fp32").metrics["train/first_loss"] > 0


def test_dropped_rows_are_said_and_kept_with_what_was_made(train: Train) -> None:
    built = train("sft", f"learning_rate: 1e-3, batch_size: 2, {LORA}", [*PAIRS, {"prompt": "x", "chosen": "y"}])
    said = [content for kind, content in built.events if kind == "note"]
    assert said == ["data.pairs: 1 of 5 rows dropped: `rejected` is missing: 1 (row 5)"]
    kept = json.loads((built.folder / "dropped.json").read_bytes())
    assert kept == {"data": {"read": 5, "dropped": {"`rejected` is missing": 1}}}
    assert dropped_rows(built.folder) == {"dropped_rows/data": 1.0}
