"""What every training stage adds to the library's trainer: it tries before it spends, names bad rows, and resumes; what
it learns does not depend on how it is computed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from deaths import DiesAfter, dies, dying
from stages import Built, apart
from textbook import LORA, METHODS, Lab
from tiny import TEN
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from specs.problems import UserError
from tasks import train_rl
from tasks import trainer as trainers

pytestmark = pytest.mark.slow

DRAWN = "from: base, prompts: prompts, reward: points, max_new_tokens: 5"
KINDS = METHODS | {
    "sft": "do: sft, from: base, data: pairs",
    "reward_model": "do: reward_model, from: base, data: pairs",
    "dpo": "do: dpo, from: base, data: pairs",
    "rloo": f"do: rl, algorithm: rloo, samples: 2, {DRAWN}",
    "grpo": f"do: rl, algorithm: grpo, samples: 2, {DRAWN}",
    "bond": f"do: bond, anchor_rate: 0.3, {DRAWN}",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.write("ten", TEN)
    return made


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> Callable[[str], Built]:
    """The stage with these fields as it is when no process dies, built once."""
    return functools.cache(lambda fields: lab.train(fields, micro_batch=2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [LORA, "lora: null"])
@pytest.mark.parametrize(("step", "later"), [(2, True), (4, False), (6, True)])  # three steps are an epoch
def test_a_stage_whose_process_died_goes_on_to_the_very_same_weights(
    lab: Lab, undisturbed: Callable[[str], Built], kind: str, lora: str, step: int, later: bool
) -> None:
    if lora == LORA and kind not in ("rloo", "grpo", "bond"):  # what samples refuses dropout
        lora = "lora: {rank: 4, alpha: 8, dropout: 0.2}"
    fields = f"{KINDS[kind]}, batch_size: 4, epochs: 3.0, learning_rate: 1e-2, {lora}"
    whole = undisturbed(fields)
    into = lab.place()
    library = Trainer._save_checkpoint
    with dying(into) as patch:
        patch.setattr(trainers, "CheckpointByClock", lambda every: DiesAfter(step))
        if not later:  # the checkpoint is written, and nothing after it
            patch.setattr(Trainer, "_save_checkpoint", lambda self, *args: library(self, *args) or dies())
        lab.train(fields, into, micro_batch=2)
    # What was being written when the process died is no checkpoint.
    torn = into.with_name(f"{into.name}.scratch") / "checkpoints" / f"checkpoint-{step + 1}"
    torn.mkdir()
    if later:  # nor is what the system had not yet written when the power went
        (torn / TRAINER_STATE_NAME).touch()
    read: list[bool] = []
    load = torch.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "load", lambda *a, **options: (read.append(options["weights_only"]), load(*a, **options))[1]
        )
        resumed = lab.train(fields, into, micro_batch=2)
    assert len(read) >= 2 and all(read)  # nothing but tensors is taken out of a pickle
    assert ("note", f"going on from the checkpoint after step {step}") in resumed.events
    assert apart(resumed, whole) == 0
    # The curve is whole too, in the artifact and where it is logged.
    assert curve(resumed) == curve(whole)
    losses = resumed.logged("train/loss")
    assert losses == whole.logged("train/loss") and [s for s, _ in losses] == list(range(1, 10))
    assert resumed.finished("steps") == [9]


def curve(built: Built) -> list[dict[str, float]]:
    """Without what TRL counts of each process by itself."""
    entries = map(json.loads, (built.folder / "training.jsonl").read_text().splitlines())
    return [{k: v for k, v in entry.items() if k not in ("num_tokens", "step_time")} for entry in entries]


# All weights of the two that are left out have gradients of all but zero, of whose rounding errors Adam makes steps.
@pytest.mark.parametrize(
    ("kind", "lora"), [*product(KINDS, [LORA]), *((k, "lora: null") for k in KINDS if k not in ("qrpo", "dpo"))]
)
def test_how_a_batch_is_accumulated_changes_nothing_but_rounding(lab: Lab, kind: str, lora: str) -> None:
    # Eleven rows: a step of eight and one of three, which micro-batches of two divide into two and one.
    fields = f"{KINDS[kind]}, learning_rate: 1e-3, batch_size: 8, epochs: 2.0, {lora}"
    whole, pairs, single = (lab.train(fields, micro_batch=size) for size in (16, 2, 1))
    for other in (pairs, single):
        # Of a step of 1e-3: where a gradient is hardly more than rounding, Adam's step may be any part of that.
        assert apart(whole, other) < 3e-5
        for name in ("loss", "grad_norm", "reward", "kl_to_anchor"):  # the last two where there are such
            expected = [value for _, value in whole.logged(f"train/{name}")]
            found = [value for _, value in other.logged(f"train/{name}")]
            assert found == pytest.approx(expected, rel=2e-5, abs=1e-5)
        assert [step for step, _ in other.logged("train/loss")] == [1, 2, 3, 4]
        assert whole.finished("steps") == other.finished("steps") == [4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(lab: Lab, kind: str, lora: str) -> None:
    fields = f"{KINDS[kind]}, learning_rate: 1e-2, batch_size: 2, {lora}"
    one, same, other = (lab.train(f"{fields}, seed: {seed}") for seed in (5, 5, 6))
    assert apart(one, same) == 0
    assert apart(one, other) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [LORA, "lora: null"])
def test_keeping_fewer_activations_changes_nothing_but_rounding(lab: Lab, kind: str, lora: str) -> None:
    fields = f"{KINDS[kind]}, learning_rate: 1e-2, batch_size: 4, epochs: 2.0, {lora}"
    fewer, every = (lab.train(fields, gradient_checkpointing=flag) for flag in (True, False))
    assert apart(fewer, every) < 1e-6


@pytest.mark.parametrize("kind", ["sft", "reward_model", "dpo", "rrhf"])
def test_dropout_is_the_adapters_and_changes_what_is_learnt(lab: Lab, kind: str) -> None:
    fields = f"{KINDS[kind]}, learning_rate: 1e-2, batch_size: 2"
    none, much = (lab.train(f"{fields}, lora: {{rank: 4, alpha: 8, dropout: {rate}}}") for rate in (0.0, 0.5))
    assert apart(none, much) > 1e-3


@pytest.mark.parametrize(
    "fields",
    [*(KINDS[kind] for kind in ("rloo", "grpo", "bond", "rrhf")), f"{KINDS['rrhf']}, candidates: {{by: beam}}"],
)
def test_a_prompt_to_which_the_model_has_no_numbers_is_named(tmp_path: Path, fields: str) -> None:
    lab = Lab(tmp_path)
    tiny.spoilt(lab.model, "5")
    with pytest.raises(UserError) as caught:
        lab.train(f"{fields}, {LORA}, batch_size: 11")
    assert str(caught.value) == "`base` gives logits that are no numbers to 'Number 5 please'; look at its weights"


@pytest.mark.parametrize("kind", ["rloo", "grpo", "bond"])
def test_the_longest_prompt_is_tried_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(train_rl, "sample", lambda *_, **__: pytest.fail("it drew"))
    lab = Lab(tmp_path)
    tiny.spoilt(lab.model, "3")
    with pytest.raises(UserError) as caught:
        lab.train(f"{KINDS[kind]}, {LORA}")
    longest = "Number 3 please please please"
    assert str(caught.value) == f"`base` gives logits that are no numbers to {longest!r}; look at its weights"


@pytest.mark.parametrize(
    "fields",
    [
        KINDS["rloo"],
        KINDS["bond"],
        *(f"{KINDS['rrhf']}, max_length: 1000, candidates: {{by: {how}}}" for how in ("sample", "beam")),
    ],
)
def test_prompts_that_leave_no_room_for_an_answer_are_told_before_anything_is_trained(lab: Lab, fields: str) -> None:
    with pytest.raises(UserError) as caught:
        lab.train(fields.replace("max_new_tokens: 5", "max_new_tokens: 481"))
    assert str(caught.value) == (
        "`base` reads 512 tokens, and the longest prompt has 32 before 481 new ones; "
        "shorten the prompts or `max_new_tokens`"
    )


def test_the_clock_asks_for_a_checkpoint_and_only_the_last_is_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    inner = trainers.CheckpointByClock.on_save

    def on_save(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        seen.append(sorted(p.name for p in Path(args.output_dir).glob("checkpoint-*")))
        inner(self, args, state, control, **options)

    monkeypatch.setattr(trainers.CheckpointByClock, "on_save", on_save)
    monkeypatch.setattr(trainers, "seconds", lambda duration: -1)
    lab.train(f"{KINDS['sft']}, batch_size: 4, {LORA}", pairs="ten")
    assert seen == [["checkpoint-1"], ["checkpoint-2"]]  # the third step is the end


def test_it_saves_once_and_computes_a_batch_of_the_longest_rows_before_it_trains(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[int]] = []
    monkeypatch.setattr(trainers, "loss_of", lambda trainer, rows: tried.append(list(rows)) or 0.5)
    monkeypatch.setattr(trainers.Careful, "train", lambda self, **_: pytest.fail("it trained"), raising=False)
    saved: list[str] = []
    monkeypatch.setattr(trainers.shutil, "rmtree", lambda path, **_: saved.extend(p.name for p in Path(path).iterdir()))
    with pytest.raises(pytest.fail.Exception):
        lab.train(f"{KINDS['sft']}, {LORA}", pairs="ten", micro_batch=3)
    assert tried == [[9, 8]]  # micro-batches divide the batch of eight
    assert "adapter_model.safetensors" in saved


def test_a_row_whose_loss_is_no_number_is_named_before_the_first_step(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SFTTrainer.compute_loss

    def spoilt(self: Any, model: Any, inputs: Any, **options: Any) -> Any:
        loss = library(self, model, inputs, **options)
        long = int((inputs["labels"] != -100).sum(1).max()) == 3 * 10 + 1
        return loss * float("nan") if long else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", spoilt)
    with pytest.raises(UserError) as caught:
        lab.train(f"{KINDS['sft']}, {LORA}, batch_size: 2", pairs="ten", micro_batch=2)
    assert str(caught.value) == (
        "the loss is nan at step 1 because of row 10 ('<|user|>Number 9?<|end|><|assistant|>'); mend or remove it"
    )
