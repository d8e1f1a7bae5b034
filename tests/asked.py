"""Policies of a study asked in the test's own process, with what was generated and scored meanwhile."""

from __future__ import annotations

from typing import Any

from registry.rows import Prompt
from specs.execution import Execution
from tasks.answers import answer
from tasks.drawing import Answer
from tasks.job import Event, Log
from tasks.scores import Scores

MESSAGES = ["Why?", "How was the trip to the far side of the lake?", "Where to?"]
PROMPTS = [Prompt(({"role": "user", "content": text},)) for text in MESSAGES]


class Asked:
    """One round of answers, with the events and the scores of it."""

    def __init__(self, view: Any, *names: str, prompts: list[Prompt] = PROMPTS, rows: int = 64, **options: int):
        self.events: list[Event] = []
        log, execution = Log(self.events.append), Execution(rows=rows)
        settings = {"samples": 2, "max_new_tokens": 10, "seed": 5} | options
        self.scores = Scores(execution, log)
        found = answer(
            [view.artifact(name) for name in names], prompts, execution=execution, log=log, scores=self.scores, **settings
        )  # fmt: skip
        self.answers: dict[str, list[list[Answer]]] = dict(zip(names, found, strict=True))

    @property
    def generated(self) -> list[int]:
        """How many answers each generation was for."""
        counts = [content for kind, content in self.events if kind == "progress"]
        return [total for done, total, what in counts if what == "responses" and done == total]

    def __getitem__(self, name: str) -> list[list[str]]:
        return [[a.text for a in row] for row in self.answers[name]]
