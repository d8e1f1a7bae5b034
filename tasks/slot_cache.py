"""A key/value cache of slots: one preallocated row a running sample, each with its own length.

A decode step writes one position into every row, each at its own place, and reads only the span
that the longest row uses; what lies beyond a row's own length is hidden by the mask. Rows 0 to
`rows` - 1 are the live ones: the next sample's prompt, prefilled once, is copied over a row that
has ended, or the last row is moved into its place, so nothing is computed for ended samples.

A row can try several continuations at once: they lie side by side behind what the row holds, each
seeing that and itself (`write`), until one is kept and the others are overwritten (`keep`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

# Positions the span is rounded up to: few distinct shapes (each costs the matrix kernels a set-up)
# and masks aligned as the fused kernels want them.
GRAIN = 16


def _grains(length: int) -> int:
    return -(-length // GRAIN) * GRAIN


@dataclass(frozen=True, eq=False)
class Prefill:
    """Prompts run through the model once: their keys and values, and what it gave at the end of each."""

    cache: DynamicCache
    last: Tensor


def prefill(output: Callable[..., Tensor], prompts: Sequence[Sequence[int]], device: torch.device) -> Prefill:
    """One pass over `prompts`, padded on the right, where causal attention hides the padding."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
    lasts = sorted({len(prompt) - 1 for prompt in prompts})
    cache = DynamicCache()
    found = output(
        keep=torch.tensor(lasts, device=device),
        input_ids=ids.to(device),
        position_ids=torch.arange(width, device=device).expand(len(prompts), -1),
        past_key_values=cache,
        use_cache=True,
    )
    where = [lasts.index(len(prompt) - 1) for prompt in prompts]
    return Prefill(cache, found[list(range(len(prompts))), where])


class SlotCache(Cache):
    """Keys and values of each layer as [slots, heads, capacity, head size]."""

    def __init__(self, slots: int, *, room: int, most: int, device: torch.device) -> None:
        """Rows for `slots` samples of `room` positions at first, doubled up to `most`."""
        super().__init__(layers=[])
        self.slots = slots
        self.capacity = _grains(room)
        self.most = _grains(most)
        self.rows = slots
        self.span = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._numbers = torch.arange(max(slots, self.capacity), device=device)
        self._row_index = self._numbers[:slots]
        # Where the coming pass writes: [rows], one place a row, or [rows, places].
        self._places = self._row_index

    def fill(self, slots: Sequence[int], source: DynamicCache, which: Sequence[int]) -> None:
        """Copy rows `which` of a prefill into `slots`; `slots` may name one row several times."""
        layers: list[Any] = source.layers
        if not self.keys:
            for layer in layers:
                self.keys.append(self._room(layer.keys))
                self.values.append(self._room(layer.values))
        length = layers[0].keys.shape[2]
        self._grow(length)
        self.span = max(self.span, length)
        to = torch.tensor(slots, device=self._numbers.device)
        of = torch.tensor(which, device=self._numbers.device)
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            keys[to, :, :length] = layer.keys[of]
            values[to, :, :length] = layer.values[of]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows `sources` over rows `targets`."""
        for held in (*self.keys, *self.values):
            held[targets, :, : self.span] = held[sources, :, : self.span]

    def step(self, positions: Tensor, longest: int) -> Tensor:
        """Get ready to write at `positions`, of which `longest` is the largest; returns the mask.

        The mask is additive [rows, 1, 1, span], which every attention implementation takes.
        """
        self._grow(longest + 1)
        self._places = positions
        self._row_index = self._numbers[: self.rows]
        return self._seen_before(positions + 1, longest + 1)[:, None, None]

    def write(self, rows: Tensor, lengths: Tensor, seen: Tensor, longest: int) -> Tensor:
        """Get ready to write several tokens behind the length of each of `rows`, of which `longest` is the largest; returns
        the mask.

        Args:
            lengths: [rows], what of each row every new token sees.
            seen: [rows or 1, tokens, places], which of the places behind the length each new token sees. The tokens
                go to the last of those places; what lies at the others was written there before.
        Returns:
            the additive mask [rows, 1, tokens, span].
        """
        tokens, places = seen.shape[1:]
        self._grow(longest + places, ahead=places)
        behind = lengths[:, None] + self._numbers[:places]
        self._places = behind[:, places - tokens :]
        self._row_index = rows[:, None]
        mask = self._seen_before(lengths, longest + places)[:, None].repeat(1, tokens, 1)
        own = mask.new_zeros(seen.shape).masked_fill_(~seen, torch.finfo(mask.dtype).min)
        return mask.scatter_(2, behind[:, None].expand(-1, tokens, -1), own.expand(len(rows), -1, -1))[:, None]

    def keep(self, rows: Tensor, lengths: Tensor, places: Tensor) -> None:
        """Lay what was written at `places` [rows, n], counted from the length of each of `rows`, right behind that length."""
        to = lengths[:, None] + self._numbers[: places.shape[1]]
        for held in (*self.keys, *self.values):
            held[rows[:, None], :, to] = held[rows[:, None], :, lengths[:, None] + places]

    def _seen_before(self, lengths: Tensor, end: int) -> Tensor:
        """The additive mask [rows, span] under which a row shows its first `lengths` positions; the span reaches `end`."""
        self.span = _grains(end)
        hidden = self._numbers[: self.span] >= lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.keys[0].dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        for held, states in ((keys, key_states), (values, value_states)):
            new = states[:, :, 0] if self._places.dim() == 1 else states.transpose(1, 2)
            # Under autocast one position may come in another type than many.
            held[self._row_index, :, self._places] = new.to(held.dtype)
        if len(self._row_index) == self.rows:
            return keys[: self.rows, :, : self.span], values[: self.rows, :, : self.span]
        some = self._row_index[:, 0]
        return keys[some, :, : self.span], values[some, :, : self.span]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.span - (1 if self._places.dim() == 1 else self._places.shape[1])

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.span, 0

    def _room(self, like: Tensor) -> Tensor:
        # Zeros: hidden positions weigh 0, and 0 times whatever memory held could be a NaN.
        _, heads, _, size = like.shape
        return like.new_zeros(self.slots, heads, self.capacity, size)

    def _grow(self, needed: int, ahead: int = 0) -> None:
        """Have `needed` positions, of which the last `ahead` are looked at only: `most` does not count them."""
        if needed <= self.capacity:
            return
        most = self.most + ahead
        # Later prompts may be longer than those that `most` was reckoned from.
        most = max(most, 2 * self.capacity) if needed > most else most
        used, self.capacity = self.capacity, max(_grains(needed), min(2 * self.capacity, _grains(most)))
        self._numbers = torch.arange(max(self.slots, self.capacity), device=self._numbers.device)
        for held in (self.keys, self.values):
            for layer, old in enumerate(held):
                held[layer] = self._room(old)
                held[layer][:, :, :used] = old


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its modules in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_room(model: Any, names: Iterable[object], prompts: Iterable[Sequence[int]], new: int) -> None:
    """Raises ValueError, with the prompt's name, where one is empty or leaves no room for `new` tokens."""
    limits = list(_limits(model))
    for name, prompt in zip(names, prompts, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"prompt {name} is empty: there is no token to go on from")
        needed = len(prompt) + new
        for limit, of in limits:
            if needed > limit:
                raise ValueError(
                    f"prompt {name}: {len(prompt)} tokens and {new} new ones are more than {of}; "
                    "shorten the prompt or lower max_new_tokens"
                )


def room(model: Any) -> int:
    """The most positions that a model has for a prompt and what follows it."""
    return min((limit for limit, _ in _limits(model)), default=1 << 30)


def _limits(model: Any) -> Iterator[tuple[int, str]]:
    """How many positions a model has, and of what they are."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        yield positions, f"the model's {positions} positions"
    if (window := attention_window(model)) is not None:
        yield window, f"the {window} positions that a layer of the model attends to (sliding window)"


def attention_window(model: Any) -> int | None:
    """The shortest span that a layer attends to, None where all see everything.

    Refuses a model whose layers keep anything but plain keys and values, one pair a position.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    odd = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if getattr(base, "_is_stateful", False):
        odd.append("a recurrent state")
    if getattr(config, "is_encoder_decoder", False):
        odd.append("an encoder")
    if getattr(config, "num_kv_shared_layers", 0):
        odd.append("keys shared between layers")
    given = inspect.signature(base.forward).parameters
    if "position_ids" not in given or getattr(config, "alibi", False):
        odd.append("positions that cannot be given")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        odd.append("an adapter of virtual tokens")
    if odd:
        raise ValueError(
            f"{type(base).__name__} has {', '.join(odd)}; this sampler needs a decoder whose "
            "layers all use plain attention"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{type(base).__name__} runs `{config._attn_implementation}` attention; load it with "
            "attn_implementation='sdpa' (or 'eager') to sample from it"
        )
    windows = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    if not kinds and getattr(config, "use_sliding_window", True):
        kinds = {"sliding_attention"}
    return min((window for kind in kinds if (window := windows.get(kind))), default=None)
