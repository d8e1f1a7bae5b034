"""Decoding with rewards: against the published forms, against the passes that it cannot do without, and in positions.

Greedy unless the rule draws, in fp32 on processors. The published forms go prompt by prompt, so their tokens a second do not
depend on how many prompts there are: each repeat times another one. Sides are timed in turn, prefills included. Where there is
a GPU, all is repeated there in bf16 at batches of 1, 16 and 64.

Forward passes and the positions in them are counted by hooks on the models, and have to be what the engine itself counts.

Where torch, transformers and peft are all there is, as on a lent GPU, `python -m benchmarks.decoding FOLDER` measures the model in
that folder, a line of JSON a figure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from benchmarks import engine_decoding as engine
from benchmarks import textbook_decoding as textbook
from benchmarks.decoding_models import Models, load
from benchmarks.figures import Figure, against, bounded
from benchmarks.passes import Passes, counted, told
from benchmarks.sampler import demo_model
from tasks.cards import Segments
from tasks.slot_cache import GRAIN

K, STRENGTH = 10, 1.0
# Two fifths of the segments are rejected (116 of 288, in answers of 64 tokens to 16 prompts).
CARDS = Segments(target=-0.77)
T = TypeVar("T")


def timed(work: Callable[..., T], *given: Any, **named: Any) -> tuple[float, T]:
    """All that is timed returns numbers on the host, so nothing is left to wait for."""
    began = time.perf_counter()
    found = work(*given, **named)
    return time.perf_counter() - began, found


def agree(run: engine.Run, counts: Sequence[Passes]) -> None:
    """What the engine counted is what the hooks did."""
    for own, count in zip([run.policy, *run.guides], counts, strict=True):
        if own.prefill + own.padding + own.decode != count.positions:
            raise AssertionError(f"the engine counted {own}, the hooks {count}")


@dataclass
class Likeness:
    """How many tokens of two sides are the same, and how near the two best scores were where they first part."""

    same: int = 0
    whole: int = 0
    parted: list[str] = field(default_factory=list)

    def add(self, ours: Sequence[int], theirs: Sequence[int], margins: Sequence[float] | None = None) -> None:
        equal = [a == b for a, b in zip(ours, theirs, strict=True)]
        self.same += sum(equal)
        self.whole += len(equal)
        if not all(equal):
            at = equal.index(False)
            self.parted.append(f"first apart at token {at}" + (f" by {margins[at]:.1g}" if margins else ""))

    def __str__(self) -> str:
        return "; ".join([f"{self.same} of {self.whole} ids equal", *self.parted])


def args(models: Models, batch: int, length: int, new: int, repeats: int, target: float) -> Iterator[Figure]:
    prompts = models.prompts(batch, length)
    pair, asked = (models.policy, models.judge), {"k": K, "new": new}
    rates, times, alike = [], [], Likeness()
    for repeat in range(repeats):
        number = repeat % batch
        floor, _ = timed(textbook.args_floor, *pair, prompts, **asked)
        with counted(*pair) as counts:
            ours, run = timed(engine.args, *pair, prompts, strength=STRENGTH, **asked)
        with counted(*pair) as theirs:
            took, book = timed(textbook.args, *pair, prompts[number], strength=STRENGTH, **asked)
        agree(run, counts)
        alike.add(run.ids[number][0], book.ids[0], book.margins[0])
        rates.append((batch * new / ours, new / took))
        times.append((ours, floor))
    name = f"ARGS, k={K}, {batch} prompts of {length} tokens, {new} new ones{models.where}"
    forms = f"{told(counts)}; a prompt of the published form {told(theirs)}; {alike}"
    yield against(f"{name}: against the published form ({forms})", rates, "tokens/s", target, higher_is_better=True)
    yield against(f"{name}: against its passes alone", times, "s", 1.25)
    least = batch * (length + K * new)
    yield _over(f"{name}: the reward model's positions, over prompts and candidates", counts[1], least)


def genarm(models: Models, batch: int, length: int, new: int, repeats: int) -> Iterator[Figure]:
    prompts = models.prompts(batch, length)
    pair, times, alike = (models.policy, models.second), [], Likeness()
    for _ in range(repeats):
        loop, book = timed(textbook.genarm, *pair, prompts, strength=STRENGTH, new=new)
        with counted(*pair) as counts:
            ours, run = timed(engine.genarm, *pair, prompts, strength=STRENGTH, new=new)
        agree(run, counts)
        times.append((ours, loop))
    for (mine,), its, margins in zip(run.ids, book.ids, book.margins, strict=True):
        alike.add(mine, its, margins)
    name = f"GenARM, {batch} prompts of {length} tokens, {new} new ones{models.where}"
    yield against(f"{name}: against a plain loop of both models ({told(counts)}; {alike})", times, "s", 1.15)


def cards(models: Models, batch: int, length: int, new: int, repeats: int) -> Iterator[Figure]:
    """Both sides draw with the same numbers, so they try and reject the same segments but for rounding."""
    prompts = models.prompts(batch, length)
    pair, rates, alike = (models.policy, models.judge), [], Likeness()
    for repeat in range(repeats):
        number = repeat % batch
        with counted(*pair) as theirs:
            numbers = engine.numbers_of_cards(number)
            took, book = timed(textbook.cards, *pair, prompts[number], new=new, **numbers, **asdict(CARDS))
        with counted(*pair) as counts:
            ours, (run, tried) = timed(engine.cards, *pair, prompts, rule=CARDS, new=new)
        agree(run, counts)
        alike.add(run.ids[number][0], book.ids)
        rates.append((batch * new / ours, new / took))
    of_all = f"{tried.rejected} of {tried.segments} segments rejected"
    name = f"CARDS, {batch} prompts of {length} tokens, {new} new ones, {of_all}{models.where}"
    forms = f"{told(counts)}; the published form rejects {book.rejected} of {book.segments} in {told(theirs)}; {alike}"
    yield against(f"{name}: accepted tokens, against the published form ({forms})", rates, "tokens/s", 4.0,
                  higher_is_better=True)  # fmt: skip
    needed = batch * length + tried.sampled
    yield _over(f"{name}: positions of the policy, over prompts and sampled tokens", counts[0], needed, 1.3)
    yield _over(f"{name}: positions of the reward model, over the same", counts[1], needed, 1.3)


def blocks(models: Models, batch: int, length: int, new: int, branches: int = 4, block: int = 16) -> Iterator[Figure]:
    """Of a branch the last token is read by the policy only where it is kept and something comes behind it."""
    prompts, pair = models.prompts(batch, length), (models.policy, models.judge)
    with counted(*pair) as counts:
        run = engine.blocks(*pair, prompts, branches=branches, block=block, new=new)
    agree(run, counts)
    many = new // block
    name = (
        f"the best of {branches}, block by block of {block}, prompts of {length} tokens, {new} new ones{models.where}"
    )
    least = batch * (length + many * branches * (block - 1) + many - 1)
    yield _over(f"{name}: positions of the policy, over prompts once and branches", counts[0], least)
    least = batch * (length + branches * new)
    yield _over(f"{name}: positions of the scorer, over the same", counts[1], least)


def best_of(models: Models, batch: int, length: int, new: int, n: int = 8) -> Iterator[Figure]:
    prompts = models.prompts(batch, length)
    with counted(models.policy) as counts:
        run = engine.best_of(models.policy, prompts, n=n, new=new)
    agree(run, counts)
    name = f"best of {n}, prompts of {length} tokens, {new} new ones{models.where}"
    least = batch * (length + n * (new - 1))
    yield _over(f"{name}: positions of the policy, over prompts once and samples", counts[0], least)


def transfer_q(models: Models, batch: int, length: int, new: int, look_ahead: int = 20) -> Iterator[Figure]:
    """The least is every prompt once, and of each candidate itself and what is looked ahead, of which the baseline need not
    read the last; less where the answer ends sooner."""
    prompts, trio = models.prompts(batch, length), (models.policy, models.second, models.judge)
    with counted(*trio) as counts:
        run = engine.transfer_q(*trio, prompts, k=K, look_ahead=look_ahead, strength=STRENGTH, new=new)
    agree(run, counts)
    ahead = [min(look_ahead, left) for left in range(new)]
    least = {
        "policy": length + new - 1,
        "baseline": length + sum(K * many for many in ahead),
        "reward model": length + sum(K * (1 + many) for many in ahead),
    }
    name = f"Transfer-Q*, k={K}, {look_ahead} ahead, prompts of {length} tokens, {new} new ones{models.where}"
    for count, (which, needed) in zip(counts, least.items(), strict=True):
        yield _over(f"{name}: positions of the {which}, over the least of a shared prefix", count, batch * needed, 1.1)


def memory(folder: Path, new: int = 64) -> Iterator[Figure]:
    """Of one layer, times all of them: they hold the same."""
    layers = AutoConfig.from_pretrained(folder).num_hidden_layers
    one = load(folder, torch.device("cpu"), torch.float32, num_hidden_layers=1)
    for length in (64, 512):
        (prompt,) = one.prompts(1, length)
        held, position = {}, 0.0
        for k in (1, 10, 40):
            asked: dict[str, Any] = {"k": k, "strength": STRENGTH, "new": new}
            ours = engine.args(one.policy, one.judge, [prompt], **asked).held
            theirs = textbook.args(one.policy, one.judge, prompt, **asked).held
            held[k], position = ours, theirs / (k * (length + new))
            name = f"keys and values of the reward model in ARGS, k={k}, a prompt of {length} tokens and {new} new ones"
            target = (length + new + k + GRAIN) / (k * (length + new))
            sides = ours * layers / 1e6, theirs * layers / 1e6
            yield against(f"{name}: against k copies of the text", [sides], "MB", target)
        more = (held[40] - held[1]) / position
        yield bounded(f"positions held for k=40 beyond those for k=1, {length} tokens", [more], "", 39 + GRAIN)


def _over(name: str, count: Passes, least: int, target: float = 1.0) -> Figure:
    return bounded(f"{name} ({told([count])}, {least} needed)", [count.positions / least], "times", target)


def on(models: Models, batch: int, repeats: int) -> Iterator[Figure]:
    """All of it on one device."""
    # The first passes set kernels up.
    warm = models.prompts(batch, 64)
    asked: dict[str, Any] = {"k": K, "strength": STRENGTH, "new": 2}
    engine.args(models.policy, models.judge, warm, **asked)
    textbook.args(models.policy, models.judge, warm[0], **asked)
    alone = batch == 1  # with nothing to batch it is only to be no slower
    yield from args(models, batch, 64, 128, repeats, 1.0 if alone else 8.0)
    fewer = max(1, repeats // 2)  # of what takes minutes: prefills of 512 tokens, texts read anew for every token
    yield from args(models, batch, 512, 64, fewer, 1.0 if alone else 10.0)
    yield from genarm(models, batch, 64, 64, repeats)
    yield from cards(models, batch, 64, 128, fewer)
    # Counts are the same at any batch.
    yield from blocks(models, min(batch, 4), 64, 128)
    yield from best_of(models, min(batch, 4), 64, 128)
    yield from transfer_q(models, min(batch, 2), 64, 32)


def measure(folder: Path, repeats: int = 2) -> Iterator[Figure]:
    """Both sides in turn."""
    yield from everywhere(demo_model(folder), repeats)


def everywhere(source: Path, repeats: int) -> Iterator[Figure]:
    """On the processor, and on a GPU where there is one."""
    yield from on(load(source, torch.device("cpu"), torch.float32), 16, repeats)
    yield from memory(source)
    if torch.cuda.is_available():
        models = load(source, torch.device("cuda"), torch.bfloat16, f", {torch.cuda.get_device_name()}, bf16")
        for batch in (1, 16, 64):
            yield from on(models, batch, repeats)


if __name__ == "__main__":
    for found in everywhere(Path(sys.argv[1]), 2):
        print(json.dumps(asdict(found)), flush=True)
