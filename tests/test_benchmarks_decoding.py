"""The textbook forms that decoding is timed against give the engine's tokens, and the counts are what they are said to be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from guided import llama, reward_model

from benchmarks import decoding, textbook_decoding
from benchmarks import engine_decoding as engine
from benchmarks.decoding_models import Models, load
from benchmarks.passes import Passes, counted
from tasks.cards import Segments

# One length, as the benchmark has it.
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]]
NEW = 12
# Half of what these models draw is refused, and of some segments all tries are.
SEGMENTS = Segments(target=2.0, beta=1.0, entropy=2.0, shortest=2, longest=5, tries=4)


@pytest.fixture
def judge() -> Any:
    return textbook_decoding.without_padding(reward_model(1))


@pytest.mark.parametrize("k", [1, 6])
def test_args_gives_the_tokens_of_the_published_form_from_a_tenth_of_its_positions(judge: Any, k: int) -> None:
    base, asked = llama(0), {"k": k, "strength": 1.5, "new": NEW}
    with counted(base, judge) as ours:
        run = engine.args(base, judge, PROMPTS, **asked)
    with counted(base, judge) as theirs:
        books = [textbook_decoding.args(base, judge, prompt, **asked) for prompt in PROMPTS]
    assert [row for (row,) in run.ids] == [book.ids[0] for book in books]
    assert ours == [Passes(NEW, 3 * (5 + NEW - 1)), Passes(1 + NEW, 3 * (5 + k * NEW))]
    assert theirs == [Passes(3 * NEW, 3 * (5 + NEW - 1)), Passes(3 * (1 + NEW), 3 * k * (5 + NEW))]


def test_the_floor_of_args_has_its_passes(judge: Any) -> None:
    base = llama(0)
    with counted(base, judge) as ours:
        engine.args(base, judge, PROMPTS, k=6, strength=1.5, new=NEW)
    with counted(base, judge) as floor:
        textbook_decoding.args_floor(base, judge, PROMPTS, k=6, new=NEW)
    assert ours == floor


def test_genarm_gives_the_tokens_of_a_plain_loop() -> None:
    base, guide, asked = llama(0), llama(2), {"strength": 0.8, "new": NEW}
    run, book = engine.genarm(base, guide, PROMPTS, **asked), textbook_decoding.genarm(base, guide, PROMPTS, **asked)
    assert [row for (row,) in run.ids] == book.ids
    assert run.ids != engine.genarm(base, guide, PROMPTS, strength=0.0, new=NEW).ids


@pytest.mark.parametrize("target", [2.0, 40.0])
def test_cards_gives_the_tokens_of_the_published_form(judge: Any, target: float) -> None:
    base, rule = llama(0), Segments(**asdict(SEGMENTS) | {"target": target})
    with counted(base, judge) as counts:
        run, tried = engine.cards(base, judge, PROMPTS, rule=rule, new=NEW)
    decoding.agree(run, counts)
    books = [
        textbook_decoding.cards(base, judge, prompt, new=NEW, **engine.numbers_of_cards(number), **asdict(rule))
        for number, prompt in enumerate(PROMPTS)
    ]
    assert [row for (row,) in run.ids] == [book.ids for book in books]
    assert tried.sampled == sum(book.sampled for book in books) > 3 * NEW
    assert (tried.segments, tried.rejected) == (
        sum(book.segments for book in books), sum(book.rejected for book in books),
    )  # fmt: skip
    # Where all tries of a segment failed, the best of them is read again.
    assert counts[0].positions >= 3 * 5 + tried.sampled


def test_what_the_cache_of_a_guide_holds_does_not_grow_with_k_but_for_the_candidates(judge: Any) -> None:
    base, position = llama(0), 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, bytes
    for k in (1, 10, 37):
        run = engine.args(base, judge, PROMPTS[:1], k=k, strength=1.0, new=NEW)
        book = textbook_decoding.args(base, judge, PROMPTS[0], k=k, strength=1.0, new=NEW)
        assert run.held <= (5 + NEW + k + 16) * position and book.held == k * (5 + NEW) * position


def test_nothing_but_torch_and_transformers_has_to_be_there() -> None:
    """On a lent GPU there is no more."""
    asked = "import benchmarks.decoding, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    ours = {"prefect", "mlflow", "trl", "datasets", "pydantic", "rich", "ruamel"}
    assert "transformers" in done.stdout.split() and not ours & set(done.stdout.split())


@pytest.mark.slow
def test_the_part_runs_whole_and_every_count_is_at_its_least(tmp_path: Path) -> None:
    folder = tiny.language_model(tmp_path / "model", max_position_embeddings=1024)
    models: Models = load(folder, torch.device("cpu"), torch.float32)
    figures = [*decoding.on(models, 2, 1), *decoding.memory(folder)]
    bounds = [figure for figure in figures if figure.baseline is None or figure.unit == "MB"]
    assert len(bounds) == 18 and all(figure.reached for figure in bounds), [f for f in bounds if not f.reached]
