"""Log-probabilities of answers under a causal language model, the prompt read once and the vocabulary never whole.

The model computes them itself (`model(..., shift_labels=..., fused_lm_head=True)`, TRL's head, which projects a tile of
positions and vocabulary at a time), so that the same call works inside every kind of parallel training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer import utils as trl_head
from trl.trainer.utils import add_fused_lm_head

from registry.batches import batches
from registry.methods.footprint import COLUMNS
from registry.methods.shared_prompt import Packed, by_answer, pack
from specs.problems import UserError

Row = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and its answers, as tokens."""


def with_log_probs(model: Any) -> Any:
    """Lets the model compute log-probabilities of given tokens; before any adapter is laid on it. Raises `UserError`
    for a model of which one answer in a row would feel the others."""
    if not getattr(model, "_gives_log_probs", False):
        _check(model)
        set_head()
        add_fused_lm_head(model)
        model._gives_log_probs = True
    return model


def set_head() -> None:
    """Sets TRL's head for processors; its trainers go by this too. As it comes it leaves out positions without a label on GPUs
    alone, so that prompts are projected as well, and its tiles of 32,768 columns are blocks so large that the C library
    fetches their memory anew for each. Training SmolLM2-135M by RRHF on six answers to each of 8 prompts took 67 s and
    4.5 GB so, and 51 s and 3.2 GB as set here."""
    if not torch.cuda.is_available():
        trl_head._use_triton = lambda device: True
        trl_head._CHUNKED_LOGPROB_CHUNK_SIZE = COLUMNS


def answer_log_probs(model: Any, packed: Packed, answers: int) -> Tensor:
    """Sums [rows, answers] of the log-probabilities of each answer's tokens, in fp32, with their graph."""
    return by_answer(token_log_probs(model, packed), packed.owners, answers)


def token_log_probs(model: Any, packed: Packed) -> Tensor:
    """[rows, L] in fp32: of each position's label; 0 where there is none."""
    outputs = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=attention_mask(model, packed.visible, packed.position_ids),
        shift_labels=packed.labels,
        fused_lm_head=True,
        use_cache=False,
    )
    log_probs: Tensor = outputs.log_probs
    return log_probs.float()


def attention_mask(model: Any, visible: Tensor, positions: Tensor | None = None) -> Any:
    """What the model's attention takes: fused kernels the truth values, the plain one numbers to add; one for each kind
    of layer where some see only so many tokens back, for which the `positions` are needed."""
    inner = getattr(model, "module", model)
    config = inner.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    sliding = "sliding_attention" in (kinds or ["sliding_attention"]) and getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if sliding else None
    if window is None or positions is None:
        return _taken(inner, visible)
    near = visible & (positions[:, None, :, None] - positions[:, None, None, :] < window)
    if not kinds:
        return _taken(inner, near)
    return {"full_attention": _taken(inner, visible), "sliding_attention": _taken(inner, near)}


def _taken(model: Any, visible: Tensor) -> Tensor:
    if model.config._attn_implementation == "sdpa":
        return visible
    dtype = model.dtype
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _check(model: Any) -> None:
    """Between the answers of a row stands the attention mask alone."""
    config = model.config.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if getattr(model, "_is_stateful", False):
        odd.append("a recurrent state")
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        odd.append("positions that cannot be given")
    if odd:
        raise UserError(
            f"{type(model).__name__} has {', '.join(odd)}; answers are trained and scored side by side, for which "
            "every layer must use plain attention; choose another model"
        )


@torch.inference_mode()
def score_rows(
    model: Any,
    rows: Sequence[Row],
    *,
    batch: int,
    precision: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """`[row][answer]`: the log-probability of each answer, its end token included where it has one; without dropout.
    `batch` answers at a time at most, but whole rows (see `batches`). `precision` is what the model computes
    in, its weights' own if left out: a model named bf16 is trained whole in fp32 weights and computes in bf16."""
    with_log_probs(model)
    device = next(model.parameters()).device
    bf16 = model.dtype == torch.bfloat16 if precision is None else precision == "bf16"
    found: list[list[float]] = [[] for _ in rows]
    done = 0
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for chosen in batches([_width(row) for row in rows], [len(answers) for _, answers in rows], batch, model):
            packed = Packed(*(t.to(device) for t in pack([rows[i] for i in chosen])))
            most = max(len(rows[i][1]) for i in chosen)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                sums = answer_log_probs(model, packed, most)
            for i, row in zip(chosen, sums.tolist(), strict=True):
                found[i] = row[: len(rows[i][1])]
            done += len(chosen)
            if on_progress:
                on_progress(done, len(rows))
    finally:
        for module in training:
            module.training = True
    return found


def _width(row: Row) -> int:
    return len(row[0]) + sum(map(len, row[1]))
