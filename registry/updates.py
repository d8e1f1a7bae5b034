"""What training added to a shared model: a chain of LoRA adapters in the store as an update, and an update as an adapter.

Only what can be averaged exactly is read: plain LoRA on linear layers, and whole heads beside it. Anything else is refused
with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from registry.artifacts import ADAPTER, WEIGHTS, Artifact
from registry.methods.soup import Factor, Soup, Update, average
from specs.problems import UserError

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Expert:
    """An expert's update of the model that all experts share, and the heads that were trained whole."""

    name: str
    update: Update
    heads: dict[str, Tensor]


def expert_of(artifact: Artifact, shared: Artifact) -> Expert:
    """Everything that training has added to `shared`. Raises `UserError` for what has no exact average."""
    update: dict[str, list[Factor]] = {}
    heads: dict[str, Tensor] = {}
    for adapted in _chain(artifact, shared):
        assert adapted.folder is not None
        if (adapted.folder / WEIGHTS).is_dir():
            raise UserError(
                f"`{adapted.name}` has whole weights (of training with `lora: null`, or of `rule: weights`), so it has no adapter to "
                "average; use `rule: weights`"
            )
        if not (adapted.folder / ADAPTER).is_dir():
            continue  # a round that gave up what it learnt
        factors, found = _read(adapted.folder / ADAPTER, artifact.name)
        heads = heads or found  # of a reward model; the language models below it have none
        for module, factor in factors.items():
            update.setdefault(module, []).append(factor)
    return Expert(artifact.name, update, heads)


def _chain(artifact: Artifact, shared: Artifact) -> Iterator[Artifact]:
    while artifact.fingerprint != shared.fingerprint:
        yield artifact
        artifact = artifact.start


def _read(folder: Path, name: str) -> tuple[dict[str, Factor], dict[str, Tensor]]:
    settings = json.loads((folder / "adapter_config.json").read_bytes())
    for key, why in (
        ("use_rslora", "scales its ranks otherwise"),
        ("use_dora", "rescales whole columns, which is no sum"),
        ("rank_pattern", "has a rank of its own for some layers"),
        ("alpha_pattern", "has a scale of its own for some layers"),
    ):
        if settings.get(key):
            raise UserError(f"`{name}` cannot be averaged exactly: its adapter's `{key}` {why}")
    if settings.get("bias", "none") != "none":
        raise UserError(f"`{name}` cannot be averaged exactly: its adapter trains biases too")
    tensors = {key.removeprefix(PREFIX): t for key, t in load_file(folder / "adapter_model.safetensors").items()}
    scaling = settings["lora_alpha"] / settings["r"]
    factors = {
        key.removesuffix(".lora_A.weight"): Factor(t, tensors[key.replace(".lora_A.", ".lora_B.")], scaling)
        for key, t in tensors.items()
        if key.endswith(".lora_A.weight")
    }
    return factors, {key: t for key, t in tensors.items() if ".lora_" not in key}


def save_update(soup: Soup, heads: dict[str, Tensor], folder: Path, like: Path) -> None:
    """Writes an update, one factor a module, as an adapter with the settings of the one in `like`."""
    rank = max(len(parts[0].A) for parts in soup.values())
    tensors: dict[str, Tensor] = dict(heads)
    for module, (part,) in soup.items():
        spare = rank - len(part.A)
        tensors[f"{module}.lora_A.weight"] = torch.nn.functional.pad(part.A, (0, 0, 0, spare))
        tensors[f"{module}.lora_B.weight"] = torch.nn.functional.pad(part.B * part.scaling, (0, spare))
    before: dict[str, Any] = json.loads((like / "adapter_config.json").read_bytes())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(soup),
        task_type=before["task_type"],
        modules_to_save=before.get("modules_to_save"),
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file({PREFIX + k: t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors")


def average_heads(experts: Sequence[Expert], weights: Sequence[float]) -> dict[str, Tensor]:
    """The heads' average: they are whole weights."""
    return average([e.heads for e in experts], weights)
