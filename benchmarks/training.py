"""`reward_model` and `dpo` as stages against bare TRL scripts with the same settings: time and peak memory.

Each side is a process of its own that loads the demo model, trains a LoRA on 64 pairs for two epochs (sixteen optimizer
steps) and saves; both are timed from before loading to after saving, and say how much memory they held at most. The
stage's trial before the first step (a save, and a forward pass of the longest rows) is in its time. Two repeats of each,
alternately. The last losses are compared; with bf16 they differ in `reward_model`, whose head is fp32 here and bf16 there.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, against
from benchmarks.sampler import TASKS, TOPICS, demo_model
from registry.precision import best

BF16 = best(0) == "bf16"  # where a processor lacks it, both sides would emulate it
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2.0, "learning_rate": 1e-4,
    "lr_scheduler_type": "linear", "max_grad_norm": 1.0, "max_length": None, "logging_steps": 1, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "seed": 3, "data_seed": 3, "use_cpu": True, "bf16": BF16,
    "gradient_checkpointing": False, "dataloader_pin_memory": False,
}  # fmt: skip
STUDY = """\
version: 1
name: bench
seed: 3
models: {{base: {{source: {model}, precision: auto}}}}
data: {{pairs: {{source: {pairs}, format: preference}}}}
stages:
  reward_model: {{do: reward_model, from: base, data: pairs, epochs: 2.0}}
  dpo: {{do: dpo, from: base, data: pairs, epochs: 2.0}}
"""


def pairs(path: Path) -> None:
    """64 pairs of some length."""
    rows = [
        {
            "prompt": f"My question is about {topic}. {task}",
            "chosen": f"Here is what I know about {topic}. "
            + "First of all, take your time and look at it closely. " * (1 + n),
            "rejected": f"I cannot say much about {topic}, "
            + "and it would take too long to explain it here. " * (1 + n % 3),
        }
        for topic in TOPICS
        for n, task in enumerate(TASKS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def by_stage(kind: str, folder: Path) -> float:
    """The stage's body, as its child process calls it; the last loss."""
    import importlib

    from specs.execution import Execution
    from specs.load import load
    from tasks.bodies import BODIES
    from tasks.job import Job, Log
    from tasks.view import View

    view = View.of(load(folder / "study.yaml").study, folder / "home", folder, offline=True)
    out = folder / f"{kind}-stage"
    module, function = BODIES[kind].split(":")
    job = Job(view.artifact(kind), out, folder / f"{kind}-scratch", Execution(), Log(lambda event: None))
    out.mkdir()
    result = getattr(importlib.import_module(module), function)(job)
    return float(result.metrics["train/last_loss"])


def by_script(kind: str, folder: Path) -> float:
    """What a person would write with TRL alone; the last loss."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    model_folder = (folder / "model").read_text()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    columns = [
        {"prompt": [{"role": "user", "content": r["prompt"]}]}
        | {side: [{"role": "assistant", "content": r[side]}] for side in ("chosen", "rejected")}
        for r in rows
    ]
    dtype = torch.bfloat16 if BF16 else torch.float32
    settings = SETTINGS | {"output_dir": str(folder / f"{kind}-script")}
    lora = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    if kind == "dpo":
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
        trainer: Any = DPOTrainer(
            model=model,
            args=DPOConfig(**settings, beta=0.1),
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
            peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"),
        )
    else:
        model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1, dtype=dtype)
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**settings),
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
            peft_config=LoraConfig(**lora, task_type="SEQ_CLS", modules_to_save=["score"]),
        )
    trainer.train()
    trainer.save_model()
    return float([e["loss"] for e in trainer.state.log_history if "loss" in e][-1])


def _side(name: str, kind: str, folder: str) -> None:
    """One side in a process of its own: prints seconds, bytes and the last loss."""
    import peft  # noqa: F401  (imported on both sides before the clock starts)
    import torch
    import trl  # noqa: F401  (likewise)

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    began = time.perf_counter()
    loss = {"stage": by_stage, "script": by_script}[name](kind, Path(folder))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "bytes": peak, "loss": loss}))


def run_side(name: str, kind: str, folder: Path) -> dict[str, float]:
    for left in folder.glob(f"{kind}-*"):
        subprocess.run(["rm", "-rf", str(left)], check=True)
    command = [sys.executable, "-m", "benchmarks.training", name, kind, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, repeats: int = 2) -> Iterator[Figure]:
    """Both sides in turn."""
    model = demo_model(folder)
    (folder / "model").write_text(str(model))
    pairs(folder / "pairs.jsonl")
    (folder / "study.yaml").write_text(STUDY.format(model=model, pairs=folder / "pairs.jsonl"))
    for kind in ("reward_model", "dpo"):
        sides = [(run_side("stage", kind, folder), run_side("script", kind, folder)) for _ in range(repeats)]
        losses = " and ".join(f"{side['loss']:.3f}" for side in sides[0])
        name = f"`{kind}` as a stage against a bare TRL script (last losses {losses})"
        yield against(name, [(ours["seconds"], theirs["seconds"]) for ours, theirs in sides], "s", 1.05)
        yield against(f"{name}: peak memory", [(o["bytes"] / 1e9, t["bytes"] / 1e9) for o, t in sides], "GB", 1.05)


if __name__ == "__main__":
    _side(*sys.argv[1:])
