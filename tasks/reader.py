"""A model that reads along with the rows of a batch, on a key/value cache of its own.

The policy that is decoded is one reader. A guide (a reward model, a second language model) is another: it has the prompt in
its own template and then the same answer tokens. Row r of every reader is the same sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tasks.attention import grouped_heads
from tasks.slot_cache import Prefill, SlotCache, prefill

# New tokens the cache has room for at first; it doubles when samples turn out longer.
FIRST_ROOM = 128


@dataclass
class Positions:
    """Positions pushed through the model: prompt tokens, decoded tokens, and padding beside both, whose amount depends on what
    else is in the batch."""

    prefill: int = 0
    padding: int = 0
    decode: int = 0
    drawn: int = 0
    """Tokens that were drawn from it, those that were given up again included."""


class Output(Protocol):
    """A model as a function of its inputs [rows, L]: what it gives at every position, or at the positions `keep`."""

    def __call__(self, keep: Tensor | None = None, **inputs: Any) -> Tensor: ...


def next_token_logits(model: Any) -> Output:
    """A causal language model: the logits [rows, L, vocabulary] of the token that follows."""

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        kept = {} if keep is None else {"logits_to_keep": keep}
        with grouped_heads(model):
            found: Tensor = model(**inputs, **kept).logits
        if keep is None:
            return found
        # A model that does not know `logits_to_keep` returns every position.
        return found if found.shape[1] == len(keep) else found[:, keep]

    return output


@dataclass
class Reader:
    """See the module. `start` comes first; rows 0 to `rows` - 1 are the live ones."""

    output: Output
    prompts: list[Sequence[int]]
    device: torch.device
    on_rows: Callable[[Sequence[int]], None] | None = None
    """Hears before each forward pass which prompt is in each of its rows."""
    count: Positions = field(default_factory=Positions)
    lag: int = 0
    """The last tokens of a prompt that are not read with it."""
    cache: SlotCache = field(init=False)
    lengths: Tensor = field(init=False)
    """[slots]: the tokens that each row has read."""
    _seated: list[int] = field(init=False, default_factory=list)
    _lengths: list[int] = field(init=False, default_factory=list)
    """`lengths` of the live rows, known without waiting for the device."""

    @property
    def rows(self) -> int:
        return len(self._seated)

    def start(self, slots: int, new: int) -> None:
        """Room for `slots` rows of a prompt and `new` tokens; it grows where later prompts are longer."""
        longest = max(map(len, self.prompts), default=0)
        self.cache = SlotCache(slots, room=longest + min(new, FIRST_ROOM), most=longest + new, device=self.device)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._seated, self._lengths = [], []

    def prefill(self, which: Sequence[int]) -> Prefill:
        """The prompts `which` read once, for any number of rows."""
        if self.on_rows is not None:
            self.on_rows(which)
        prompts = [self._read(prompt) for prompt in which]
        real = sum(map(len, prompts))
        self.count.prefill += real
        self.count.padding += len(prompts) * max(map(len, prompts)) - real
        return prefill(self.output, prompts, self.device)

    def seat(self, started: Prefill, rows: Sequence[int], which: Sequence[int]) -> Tensor:
        """New rows with what `rows` of a prefill hold, of the prompts `which`; returns what the model gave at their ends."""
        slots = range(self.rows, self.rows + len(rows))
        lengths = [len(self._read(prompt)) for prompt in which]
        self.cache.fill(slots, started.cache, rows)
        self.lengths[slots.start : slots.stop] = torch.tensor(lengths, device=self.device)
        self._seated += which
        self._lengths += lengths
        self.cache.rows = self.rows
        return started.last[list(rows)]

    def _read(self, prompt: int) -> Sequence[int]:
        whole = self.prompts[prompt]
        return whole[: len(whole) - self.lag]

    def step(self, tokens: Tensor) -> Tensor:
        """Every row reads one token [rows]; what the model gives there [rows, ...]."""
        lengths = self.lengths[: self.rows]
        found = self._pass(tokens[:, None], lengths[:, None], self.cache.step(lengths, max(self._lengths)))
        lengths += 1
        self._lengths = [length + 1 for length in self._lengths]
        return found[:, 0]

    def look(
        self, tokens: Tensor, seen: Tensor, ahead: Tensor, rows: Sequence[int] | None = None, padding: int = 0
    ) -> Tensor:
        """What the model gives at tokens [rows, n] behind each row, without their being of the row; see `SlotCache.write`.
        `ahead` [n] or [rows, n] is how far behind the row each stands in its own continuation. `rows` are all if absent. `padding` is
        how many of the tokens stand for none."""
        which = self._which(rows)
        lengths = self.lengths[which]
        mask = self.cache.write(which, lengths, seen, max(self._lengths))
        self.count.decode -= padding
        self.count.padding += padding
        return self._pass(tokens, lengths[:, None] + ahead, mask, rows)

    def keep(self, places: Tensor, rows: Sequence[int] | None = None) -> None:
        """Make the tokens that were looked at, at `places` [rows, n] behind each row, its next ones."""
        which = self._which(rows)
        self.cache.keep(which, self.lengths[which], places)
        self.lengths[which] += places.shape[1]
        for row in range(self.rows) if rows is None else rows:
            self._lengths[row] += places.shape[1]

    def forget(self, row: int, tokens: int) -> None:
        """Take the last `tokens` of a row back."""
        self.lengths[row] -= tokens
        self._lengths[row] -= tokens

    def _which(self, rows: Sequence[int] | None) -> Tensor:
        return torch.arange(self.rows, device=self.device) if rows is None else torch.tensor(rows, device=self.device)

    def close_up(self, sources: Sequence[int], targets: Sequence[int], rows: int) -> None:
        """Move rows `sources` over rows `targets`; the first `rows` rows stay."""
        if targets:
            of, to = (torch.tensor(some, device=self.device) for some in (sources, targets))
            self.cache.move(of, to)
            self.lengths[to] = self.lengths[of]
        for source, target in zip(sources, targets, strict=True):
            self._seated[target], self._lengths[target] = self._seated[source], self._lengths[source]
        del self._seated[rows:], self._lengths[rows:]
        self.cache.rows = rows

    def _pass(self, tokens: Tensor, positions: Tensor, mask: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        if self.on_rows is not None:
            self.on_rows(self._seated if rows is None else [self._seated[row] for row in rows])
        self.count.decode += tokens.numel()
        return self.output(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
