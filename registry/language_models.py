"""An artifact that is a language model to a torch model with its tokenizer.

It does what the trained model did: see `registry.beside` for what adapters have learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from registry.artifacts import WEIGHTS, Artifact, bottom
from registry.bases import Bases
from registry.beside import fold, lay
from registry.dialogue_text import end_of_answer, set_template
from registry.four_bits import hold, is_rounded, rounded
from registry.models import CATALOGUE, located
from registry.updates import expert_of
from specs.models import Model
from specs.problems import UserError
from specs.sources import origin

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in memory."""

    model: Any
    tokenizer: Any
    precision: str

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: the tokenizer's, the generation configuration's, and the template's (base models come
        with a chat template whose turns end otherwise than their texts)."""
        ids = self.model.generation_config.eos_token_id
        configured = ids if isinstance(ids, list) else [ids]
        known = (*configured, self.tokenizer.eos_token_id, end_of_answer(self.tokenizer))
        return tuple(sorted({i for i in known if i is not None}))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def root(artifact: Artifact) -> Artifact:
    """The external model at the bottom of a chain of trained ones."""
    while not isinstance(artifact.entry, Model):
        artifact = artifact.start
    return artifact


def source_folder(artifact: Artifact) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for an external model: a folder, or a hub id with its revision."""
    entry = artifact.entry
    assert isinstance(entry, Model)
    if artifact.folder is not None:
        return str(artifact.folder), {}
    if origin(entry.source, entry.revision) == "catalogue":
        packaged = CATALOGUE[entry.source]
        return packaged.hub, {"revision": packaged.revision}
    return located(entry.source, entry.revision)


def config_of(artifact: Artifact) -> Any:
    """The configuration of the external model below."""
    below = root(artifact)
    folder, where = source_folder(below)
    return pretrained(below.name, AutoConfig.from_pretrained, folder, **where)


def own_precision(artifact: Artifact) -> str:
    """The precision that the external model at the bottom names, `auto` resolved."""
    return str(root(artifact).payload["facts"]["precision"])


def load_tokenizer(artifact: Artifact) -> Any:
    bottom = root(artifact)
    entry = bottom.entry
    assert isinstance(entry, Model)
    folder, where = source_folder(bottom)
    tokenizer = pretrained(bottom.name, AutoTokenizer.from_pretrained, folder, **where)
    set_template(tokenizer, entry.template)
    if tokenizer.chat_template is None:
        raise UserError(
            f"models.{bottom.name}: its tokenizer has no chat template; add `template: hh` or `template: text`"
        )
    if entry.pad_token is not None:
        if entry.pad_token not in tokenizer.get_vocab():
            raise UserError(f"models.{bottom.name}.pad_token: `{entry.pad_token}` is not one of its tokenizer's tokens")
        tokenizer.pad_token = entry.pad_token
    return tokenizer


def load_language_model(
    artifact: Artifact,
    *,
    precision: str | None = None,
    four_bits: Literal["held", "rounded"] | None = None,
    bases: Bases | None = None,
) -> LanguageModel:
    """The model on the device, in evaluation mode, in the precision its source names (or in `precision`), and what its
    adapters have learnt in its weights (fp32) or beside them (bf16, and where the weights are shared by way of `bases`).
    The weights below the adapters are held in four bits or rounded to those where `four_bits` asks for it, and rounded
    where an adapter was trained so."""
    resolved = precision or own_precision(artifact)
    below = bottom(artifact)
    update = expert_of(artifact, below).update
    tokenizer = load_tokenizer(below)
    if four_bits is None and not is_rounded(artifact):

        def load() -> Any:
            return _load_weights(below, resolved).to(device())

        model = load() if bases is None else bases.of(below.fingerprint, resolved, load)
    elif four_bits == "held":
        model = hold(_load_weights(below, own_precision(artifact))).to(device())
    else:
        model = rounded(_load_weights(below, own_precision(artifact))).to(device(), DTYPES[resolved])
    if resolved == "fp32" and four_bits != "held" and bases is None:
        fold(model, update)
    else:
        lay(model, update)
    return LanguageModel(model.eval(), tokenizer, resolved)


def _load_weights(artifact: Artifact, precision: str) -> Any:
    load = AutoModelForCausalLM.from_pretrained
    if isinstance(artifact.entry, Model):
        folder, where = source_folder(artifact)
        return pretrained_model(artifact.name, load, folder, dtype=DTYPES[precision], **where)
    assert artifact.folder is not None
    return pretrained_model(artifact.name, load, str(artifact.folder / WEIGHTS), dtype=DTYPES[precision])


def pretrained(name: str, load: Any, folder: str, **options: Any) -> Any:
    """`from_pretrained` with code from the model refused, and its faults as one line."""
    try:
        return load(folder, trust_remote_code=False, **options)
    except Exception as error:  # malformed settings fall over anywhere in transformers
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{name}: cannot be loaded from {folder}: {text}") from error


def pretrained_model(name: str, load: Any, folder: str, **options: Any) -> Any:
    """As `pretrained`, and every weight is the folder's own: transformers would make up what is missing."""
    strict = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    model, found = pretrained(name, load, folder, **strict, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{name}: {folder} holds an adapter, laid on whatever model it names; merge and save the whole")
    unfit = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if unfit:
        raise UserError(
            f"{name}: its weights do not fit its `config.json`: {len(unfit)} are missing or of another shape, such as "
            f"`{unfit[0]}`; fetch or save {folder} again"
        )
    return model


def context_length(model: Any) -> int:
    """The most positions the model was made for."""
    return int(getattr(model.config, "max_position_embeddings", 2**31 - 1))
