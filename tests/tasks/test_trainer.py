"""What every training stage adds to the library's trainer: it tries before it spends, names bad rows, and resumes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTTrainer

from specs.problems import UserError
from tasks import trainer as trainers

pytestmark = pytest.mark.slow

TEN = [{"prompt": f"Number {i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(10)]
KINDS = {
    "sft": "do: sft, from: base, data: pairs",
    "reward_model": "do: reward_model, from: base, data: pairs",
    "autoregressive_reward_model": "do: autoregressive_reward_model, from: base, data: pairs",
    "rrhf": "do: rrhf, from: base, data: pairs, reward: length, max_new_tokens: 4",
    "qrpo": "do: qrpo, from: base, data: pairs, reward: rank",
}

Prepared = Callable[..., tuple[Any, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def view(tmp_path: Path, model: Path) -> Callable[..., Any]:
    numbers = itertools.count()

    def made(kind: str, fields: str, pairs: list[Any] = TEN) -> Any:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        tiny.write_lines(folder / "pairs.jsonl", pairs)
        study = stages.study(
            folder,
            f"""\
models: {{base: {{source: {model}, precision: fp32}}}}
data:
  pairs: {{source: ./pairs.jsonl, format: preference}}
  prompts: {{source: ./pairs.jsonl, format: prompt}}
rewards: {{length: {{kind: length}}}}
stages:
  rank: {{do: calibrate, reward: length, reference: base, prompts: prompts, samples: 2, max_new_tokens: 4}}
  made: {{{KINDS[kind]}, {fields}}}
""",
        )
        if kind == "qrpo":
            stages.build(study, "rank")
        return study

    return made


class Died(Exception):
    """What stands for a kill."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.rglob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", ["lora: {rank: 4, alpha: 8, dropout: 0.2}", "lora: null"])
@pytest.mark.parametrize("step", [2, 6])  # in the first and in the second epoch
def test_a_stage_whose_process_died_goes_on_to_the_very_same_weights(
    view: Any, monkeypatch: pytest.MonkeyPatch, kind: str, lora: str, step: int
) -> None:
    fields = f"batch_size: 4, epochs: 3.0, learning_rate: 1e-2, {lora}"
    whole = stages.build(view(kind, fields), "made", micro_batch=2)

    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                control.should_save = True
            if state.global_step == step + 1:
                raise Died

    study = view(kind, fields)
    folder = study.artifact("made").folder
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "CheckpointByClock", lambda every: Dies())
        with pytest.raises(Died):
            stages.build(study, "made", micro_batch=2)
    shutil.rmtree(folder)  # as the store does before it builds again
    # What was being written when the process died is no checkpoint.
    torn = folder.with_name(f"{folder.name}.scratch") / "checkpoints" / f"checkpoint-{step + 1}"
    torn.mkdir()
    read: list[bool] = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *a, **options: (read.append(options["weights_only"]), load(*a, **options))[1]
    )
    resumed = stages.build(study, "made", micro_batch=2)
    assert len(read) >= 2 and all(read)  # nothing but tensors is taken out of a pickle
    assert ("note", f"going on from the checkpoint after step {step}") in resumed.events
    ours, theirs = weights(resumed.folder), weights(whole.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours.keys() == theirs.keys()
    # The curve is whole too, in the artifact and where it is logged.
    assert (resumed.folder / "training.jsonl").read_text().count("\n") == 9
    assert [s for s, _ in resumed.logged("train/loss")] == list(range(1, 10))


def test_the_clock_asks_for_a_checkpoint_and_only_the_last_is_kept(view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    inner = trainers.CheckpointByClock.on_save

    def on_save(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        seen.append(sorted(p.name for p in Path(args.output_dir).glob("checkpoint-*")))
        inner(self, args, state, control, **options)

    monkeypatch.setattr(trainers.CheckpointByClock, "on_save", on_save)
    monkeypatch.setattr(trainers, "seconds", lambda duration: -1)
    stages.build(view("sft", "batch_size: 4, lora: {rank: 2}"), "made")
    assert seen == [["checkpoint-1"], ["checkpoint-2"]]  # the third step is the end


def test_it_saves_once_and_computes_a_batch_of_the_longest_rows_before_it_trains(
    view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[int]] = []
    monkeypatch.setattr(trainers, "loss_of", lambda trainer, rows: tried.append(list(rows)) or 0.5)
    monkeypatch.setattr(trainers.Careful, "train", lambda self, **_: pytest.fail("it trained"), raising=False)
    saved: list[str] = []
    monkeypatch.setattr(trainers.shutil, "rmtree", lambda path, **_: saved.extend(p.name for p in Path(path).iterdir()))
    with pytest.raises(pytest.fail.Exception):
        stages.build(view("sft", "lora: {rank: 2}"), "made", micro_batch=3)
    assert tried == [[9, 8]]  # micro-batches divide the batch of eight
    assert "adapter_model.safetensors" in saved


def test_a_row_whose_loss_is_no_number_is_named_before_the_first_step(
    view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SFTTrainer.compute_loss

    def spoilt(self: Any, model: Any, inputs: Any, **options: Any) -> Any:
        loss = library(self, model, inputs, **options)
        long = int((inputs["labels"] != -100).sum(1).max()) == 3 * 10 + 1
        return loss * float("nan") if long else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", spoilt)
    with pytest.raises(UserError) as caught:
        stages.build(view("sft", "lora: {rank: 2}, batch_size: 2"), "made", micro_batch=2)
    assert str(caught.value) == (
        "the loss is nan at step 1 because of row 10 ('<|user|>Number 9?<|end|><|assistant|>'); mend or remove it"
    )
