"""`alignflow decode`: one policy of a study asked at the terminal, by a prompt, a file of prompts, or in a dialogue.

Nothing is built and nothing stored: what the policy is made of must have been run. Its models are loaded once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from flows import silence
from registry.artifacts import Artifact
from registry.rows import Prompt
from specs.data import Data
from specs.problems import UserError, did_you_mean, listed
from tasks.answers import Answer, answer
from tasks.job import Log
from tasks.models import Models
from tasks.scores import Scores
from tasks.threads import use_threads
from tasks.view import View


class Asking:
    """A policy that answers."""

    def __init__(self, view: View, policy: str, *, samples: int, max_new_tokens: int, seed: int | None) -> None:
        silence.apply(offline=True)
        disable_progress_bar()
        self.policy = _built(view, policy)
        self.samples, self.max_new_tokens = samples, max_new_tokens
        self.seed = view.study.seed if seed is None else seed
        self.execution = view.study.execution
        use_threads(self.execution)
        self.log = Log(lambda event: None)
        self.models = Models(self.execution.rows)
        self.scores = Scores(self.execution, self.log)

    def __call__(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """`[prompt][sample]`"""
        (found,) = answer(
            [self.policy],
            prompts,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            execution=self.execution,
            log=self.log,
            scores=self.scores,
            models=self.models,
        )
        return found


def print_answers(asking: Asking, prompts: Sequence[Prompt], *, as_json: bool) -> None:
    """The answers to each prompt; as JSON one line a prompt."""
    for prompt, answers in zip(prompts, asking(prompts), strict=True):
        if as_json:
            row = {
                "prompt": prompt.messages[-1]["content"],
                "answers": [{"text": a.text, "tokens": a.tokens, "finished": a.finished} for a in answers],
            }
            print(json.dumps(row, ensure_ascii=False))
            continue
        if len(prompts) > 1:
            print(f"> {prompt.messages[-1]['content']}")
        for number, one in enumerate(answers):
            print(f"[{number + 1}] {one.text}" if len(answers) > 1 else one.text)
        if len(prompts) > 1:
            print()


def converse(asking: Asking) -> None:
    """A dialogue: each line is a turn, and the policy's first answer the next one. Ends with the lines."""
    turns: list[dict[str, str]] = []
    for line in _typed():
        turns.append({"role": "user", "content": line})
        ((first, *_),) = asking([Prompt(tuple(turns))])
        print(first.text, flush=True)
        turns.append({"role": "assistant", "content": first.text})


def asked(text: str) -> Prompt:
    """A request by itself."""
    return Prompt(({"role": "user", "content": text},))


def prompts_of(path: Path) -> list[Prompt]:
    """The prompts of a file: JSON Lines or Parquet as a study reads them, else one prompt a line."""
    from registry import data

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.suffix in (".jsonl", ".gz", ".parquet"):
        rows = data.read(Data(source=str(path.resolve()), format="prompt"), None, str(path))
        return [row for row in rows.rows if isinstance(row, Prompt)]
    texts = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [asked(text) for text in texts if text]


def _typed() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _built(view: View, name: str) -> Artifact:
    """The policy, whose models are stored. Raises `UserError` where there is none of that name or something is missing."""
    policies = [n for n, s in view.nodes.items() if s.node.produces in ("language model", "decoding rule")]
    if name not in policies:
        hint = did_you_mean(name, policies) or f"; there are {listed(policies)}"
        raise UserError(f"`{name}` is not a policy of this study{hint}")
    if missing := view.missing(name):
        raise UserError(f"`{name}` is made of what is not there yet: {listed(missing)}; run the study first")
    return view.artifact(name)
