"""Judges: language models behind an OpenAI interface that say which of two answers is better."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from specs.base import Count, Duration, Entry, EnvironmentText, MayNameEnvironment, NotIdentity
from specs.problems import Path

if TYPE_CHECKING:
    from specs.graph import Graph

_KEY = re.compile(r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}")


class Judge(Entry):
    """A language model behind OpenAI's HTTP interface. It is shown a prompt with two answers, in both orders, and says which
    is better, or that none is."""

    produces: ClassVar[str] = "judge"

    base_url: str
    """Where it answers: `https://api.openai.com/v1`, or `http://127.0.0.1:8000/v1` for a server of one's own."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name there. It answers in a few tokens, at temperature 0; one that thinks at length first does not
    come to its verdict."""
    api_key: Annotated[EnvironmentText | None, MayNameEnvironment(), NotIdentity()] = None
    """The environment variable that holds the key, written `${env:NAME}`; absent where the server asks for none."""
    instruction: Annotated[str, Field(min_length=1)] = (
        "The better answer follows the instructions and answers the question better; consider its helpfulness, relevance, "
        "accuracy, depth and level of detail."
    )
    """The criterion, as the judge is told it."""
    pairs_per_prompt: Count = 1
    """How many pairs of samples of each prompt it is shown: sample s of a policy beside sample s + 1 of the reference, for
    samples of one number share their random numbers. Each pair is two requests."""
    parallel: Annotated[Count, NotIdentity()] = 4
    """How many requests are on their way at once."""
    timeout: Annotated[Duration, NotIdentity()] = "60s"
    """How long one request may take before it is sent again."""

    @property
    def kind_name(self) -> str:
        return "judge"

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        from urllib.parse import urlsplit  # only a study with a judge pays for it

        if "${" in address:
            raise ValueError("a judge is told from others by its address, so it stands here in full")
        parts = urlsplit(address)
        if parts.username is not None or parts.password is not None:
            raise ValueError("a password here would be shown by every server; give it as `api_key: ${env:NAME}`")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.port == 0:
            raise ValueError("an address is written `https://host/v1`, with http or https, and without a query")
        return address.rstrip("/")

    @field_validator("api_key", mode="before")
    @classmethod
    def _is_no_key(cls, key: Any) -> Any:
        """Before its type is looked at: what is said of a wrong type shows the value."""
        if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise ValueError("a key in a study file would be shown by every server; write `${env:NAME}` for it")
        return key


def pair_problems(judges: Sequence[str], samples: int, graph: Graph) -> Iterator[tuple[Path, str]]:
    """Which of an evaluation's `judges` want more pairs of samples of a prompt than there are."""
    for i, name in enumerate(judges):
        entry = graph.nodes[name].entry if name in graph.nodes else None
        if isinstance(entry, Judge) and entry.pairs_per_prompt > samples:
            message = (
                f"`{name}` is shown {entry.pairs_per_prompt} pairs of samples a prompt, and there are {samples}; raise "
                "`budget.samples_per_prompt`, or lower its `pairs_per_prompt`"
            )
            yield ("judges", i), message
