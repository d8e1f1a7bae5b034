"""A model's shape, from its settings and the headers of its weights: exact, without loading them and without torch."""

from __future__ import annotations

import json
import os
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from registry.artifacts import Artifact
from registry.methods.footprint import Shape
from registry.models import CATALOGUE, hub_cache, local_folder
from registry.weights import header
from specs.base import expand_environment
from specs.models import Model
from specs.sources import origin

OUTSIDE = ("embed", "lm_head", "wte", "wpe", "score", "classifier")
"""What the names of weights hold that belong to no layer's linear map."""


def shape_of(artifact: Artifact) -> Shape | None:
    """Of an external model, classifier or encoder; None where it is not here yet and the catalogue does not know it."""
    folder, entry = folder_of_model(artifact), artifact.entry
    if folder is not None:
        return shape_in(folder)
    return CATALOGUE[entry.source].shape if isinstance(entry, Model) and entry.source in CATALOGUE else None


def folder_of_model(artifact: Artifact) -> Path | None:
    """Where the files of an external model are; None where they are not on this machine yet."""
    entry: Any = artifact.entry
    if artifact.folder is not None:
        folder = artifact.folder
    elif entry.revision is not None:
        folder = hub_cache(expand_environment(entry.source, os.environ), entry.revision)
    elif origin(entry.source, None) == "catalogue" and isinstance(entry, Model):
        folder = hub_cache(CATALOGUE[entry.source].hub, CATALOGUE[entry.source].revision)
    else:
        folder = local_folder(entry.source)
    return folder if (folder / "config.json").exists() else None


@cache
def shape_in(folder: Path) -> Shape | None:
    """Of the model in a folder of safetensors; None where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        config = config.get("text_config") or config
        sizes = {name: shape for path in sorted(folder.glob("*.safetensors")) for name, shape in header(path).items()}
        heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
        width = int(config.get("hidden_size") or config["n_embd"])
        size = int(config.get("head_dim") or width // heads)
        layers = int(config.get("num_hidden_layers") or config["n_layer"])
        maps = [s for n, s in sizes.items() if len(s) > 1 and not any(word in n for word in OUTSIDE)]
        return Shape(
            parameters=sum(map(prod, sizes.values())),
            linear=sum(map(prod, maps)),
            ends=sum(map(sum, maps)),
            layers=layers,
            width=width,
            inner=int(config.get("intermediate_size") or config.get("n_inner") or 4 * width),
            queries=heads * size,
            keys=int(config.get("num_key_value_heads") or heads) * size,
            vocabulary=int(config["vocab_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
