"""`alignflow decode`: one policy of a study asked at the terminal, by a prompt, a file of prompts, or in a dialogue.

Nothing is built and nothing stored: what the policy is made of must have been run. Its models are loaded once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from flows import silence
from flows.server import lead_to_pages
from registry.artifacts import Artifact
from registry.bases import Bases
from registry.rows import Prompt
from specs.data import Data
from specs.problems import UserError, did_you_mean, listed
from tasks.answers import answer
from tasks.drawing import Answer
from tasks.job import Log
from tasks.lineage import guides_of
from tasks.models import Models
from tasks.places import tracking_place
from tasks.rules import rule_of
from tasks.scores import Scores
from tasks.threads import use_threads
from tasks.trace import Observer, in_words
from tasks.view import View


@dataclass
class Trace:
    """What the policy looked at, written out for a person, and kept for MLflow."""

    view: View
    policy: Artifact
    models: Models
    events: list[Mapping[str, Any]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> None:
        """The choices of these answers, sample by sample."""
        decode = self.models.language_model(rule_of(self.policy).model).tokenizer.decode
        guides = guides_of(self.policy)
        for place, (prompt, row) in enumerate(zip(prompts, answers, strict=True)):
            for number, one in enumerate(row):
                own = [
                    e
                    for e in self.events
                    if (e["prompt"], e["sample"], e.get("of", number)) == (place, one.draw, number)
                ]
                steps = [_with_names(in_words(event, decode), guides) for event in own]
                print("\n".join(line for step in steps for line in _lines(step)))
                self.told.append({"prompt": [dict(m) for m in prompt.messages], "answer": one.text, "steps": steps})
        self.events.clear()

    def log(self) -> None:
        """All of it as one run in MLflow; says where."""
        from tasks.tracking import Tracker

        study = self.view.study
        uri, artifacts = tracking_place(study, self.view.home)
        lead_to_pages(self.view.home, uri)
        tracker = Tracker(uri, study.tracking.experiment or study.name, artifacts)
        tags = {"alignflow.kind": "decode", "alignflow.fingerprint": self.policy.fingerprint}
        tracker.start_parent(f"decode {self.policy.name}", tags, study.model_dump(mode="json"))
        tracker.document(tracker.parent, {"policy": self.policy.name, "answers": self.told}, "trace.json")
        tracker.finish(tracker.parent, "FINISHED")
        for lost in tracker.lost:
            print(f"MLflow: {lost}", file=sys.stderr)
        if uri.startswith("sqlite") and "ALIGNFLOW_MLFLOW_PAGES" not in os.environ:
            print(f"pages: mlflow ui --backend-store-uri {uri}", file=sys.stderr)
        print(f"trace: {tracker.url(tracker.parent)}", file=sys.stderr)


def _with_names(step: dict[str, Any], guides: Sequence[str]) -> dict[str, Any]:
    """Scores under the names of the guides that gave them."""
    if "candidates" in step:
        step["candidates"] = [c | {"scores": dict(zip(guides, c["scores"], strict=False))} for c in step["candidates"]]
    return step


def _lines(step: Mapping[str, Any]) -> Iterator[str]:
    for number, one in enumerate(step.get("candidates", ())):
        scores = "".join(f"  {name} {score:8.3f}" for name, score in one["scores"].items())
        mark = "<-" if one["chosen"] else ""
        at = f"{step['step']:4}" if number == 0 else "    "
        yield f"{at}  {one['token']!r:16}  log p {one['log_prob']:8.3f}{scores}  share {one['share']:.3f} {mark}".rstrip()
    for number, one in enumerate(step.get("branches", ())):
        at = f"{step['step']:4}" if number == 0 else "    "
        yield f"{at}  score {one['score']:8.3f}  {one['text']!r} {'<-' if one['chosen'] else ''}".rstrip()
    if "segment" in step:
        one = step["segment"]
        told = f"reward {one['reward']:8.3f}  threshold {one['threshold']:8.3f}  {one['verdict']}  {one['text']!r}"
        yield f"{step['step']:4}  {told}"
    for one in step.get("draws", ()):
        yield f"draw {one['draw']}  reward {one['reward']:8.3f}  {one['text']!r} {'<-' if one['chosen'] else ''}".rstrip()


class Asking:
    """A policy that answers; its models are loaded once."""

    def __init__(
        self, view: View, policy: str, *, samples: int, max_new_tokens: int, seed: int | None, trace: bool = False
    ) -> None:
        self.policy = ready(view, [policy])[policy]
        self.samples, self.max_new_tokens = samples, max_new_tokens
        self.seed = view.study.seed if seed is None else seed
        self.execution = view.study.execution
        self.log = Log(lambda event: None)
        self.models = Models(self.execution.rows, Bases() if rule_of(self.policy).guided else None)
        self.scores = Scores(self.execution, self.log, self.models)
        self.trace = Trace(view, self.policy, self.models) if trace else None

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
            observer=Observer(self.trace.events.append) if self.trace else None,
        )
        if self.trace:
            self.trace.tell(prompts, found)
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


def ready(view: View, names: Sequence[str]) -> dict[str, Artifact]:
    """The policies of those names, and the process ready to decode them. Raises `UserError`; see `_built`."""
    silence.apply(offline=True)
    disable_progress_bar()
    found = {name: _built(view, name) for name in names}
    use_threads(view.study.execution)
    return found


def _built(view: View, name: str) -> Artifact:
    """The policy, whose models are stored. Raises `UserError` where there is none of that name or something is missing."""
    policies = [n for n, s in view.nodes.items() if s.node.produces in ("language model", "decoding rule")]
    if name not in policies:
        hint = did_you_mean(name, policies) or f"; there are {listed(policies)}"
        raise UserError(f"`{name}` is not a policy of this study{hint}")
    if missing := view.missing(name):
        raise UserError(f"`{name}` is made of what is not there yet: {listed(missing)}; run the study first")
    return view.artifact(name)
