"""How many rows a data set gives and how long they are in a model's tokens, known before anything runs.

Counted by the model's own tokenizer and chat template, without transformers or torch. Of many rows some are counted, evenly
spread. What was counted is kept in the home folder, so that the next plan is immediate.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from registry import data
from registry.artifacts import Artifact
from registry.dialogue_text import TEMPLATES, Message, encode_answer, encode_prompt
from registry.rows import Pair, reasons
from registry.shapes import folder_of_model
from specs.data import Data
from specs.models import Model
from specs.problems import UserError

COUNTED = 400
"""Rows whose tokens are counted."""
BYTES_A_TOKEN = 4.5
"""Of English text, where the tokenizer is not here yet."""
AROUND = 30
"""Tokens that a chat template writes around a prompt, where it is not here yet."""


@dataclass(frozen=True)
class Lengths:
    """See the module. Tokens are of `COUNTED` rows at most, with what the template writes around them."""

    read: int
    rows: int
    """Those that can be used; of one part where the data are split."""
    prompts: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    """Of pairs, chosen and rejected."""
    prompt_bytes: float
    """Of a prompt's text, on average."""
    letters: float
    """Bytes of text to a token, in prompts."""
    exact: bool
    """Whether the model's own tokenizer counted them."""
    dropped: str = ""
    """How many rows were dropped, and why; empty where none was."""


def lengths(rows: Artifact, model: Artifact, home: Path) -> Lengths | None:
    """Of a data set in the tokens of an external model. None for a hub's data, which the stage that reads them brings here.
    Raises `UserError` where they cannot be read."""
    entry = rows.entry
    assert isinstance(entry, Data)
    if entry.revision is not None:
        return None
    folder = folder_of_model(model)
    key = hashlib.sha256(f"{rows.fingerprint} {model.fingerprint} {folder is not None}".encode()).hexdigest()
    kept = home / "lengths" / f"{key[:32]}.json"
    try:
        found = json.loads(kept.read_bytes())
        return Lengths(**found | {"prompts": tuple(found["prompts"]), "answers": tuple(map(tuple, found["answers"]))})
    except (OSError, ValueError, TypeError, KeyError):
        made = _counted(rows, _counter(model, folder))
    if os.access(home, os.W_OK):
        kept.parent.mkdir(exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(asdict(made)), encoding="utf-8")
        written.replace(kept)  # whole, whoever else writes it
    return made


def _counted(artifact: Artifact, counter: _Counter) -> Lengths:
    entry = artifact.entry
    assert isinstance(entry, Data)
    rows = data.read(entry, artifact.part, f"data.{artifact.name}")
    step = max(1, -(-len(rows.rows) // COUNTED))
    some = rows.rows[::step]
    messages = [row.prompt if isinstance(row, Pair) else row.messages for row in some]
    spoken = [m["content"] for row in messages for m in row]
    pairs = [row for row in some if isinstance(row, Pair)]
    lost = sum(rows.dropped.values())
    return Lengths(
        read=rows.read,
        rows=len(rows.rows),
        prompts=tuple(counter.prompt(m) for m in messages),
        answers=tuple(
            (
                counter.answer(p.prompt, p.chosen, p.chosen_finished),
                counter.answer(p.prompt, p.rejected, p.rejected_finished),
            )
            for p in pairs
        ),
        prompt_bytes=sum(map(_bytes, spoken)) / max(len(some), 1),
        letters=sum(map(_bytes, spoken)) / max(sum(map(counter.text, spoken)), 1),
        exact=isinstance(counter, _Exact),
        dropped=f"{lost} of {rows.read} rows dropped: {reasons(rows)}" if lost else "",
    )


def _counter(model: Artifact, folder: Path | None) -> _Counter:
    """By the model's own tokenizer where it is here and in order: what is wrong with one is told by whoever loads it."""
    entry = model.entry
    assert isinstance(entry, Model)
    if folder is None:
        return _Guess()
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        written = folder / "chat_template.jinja"
        template = TEMPLATES.get(entry.template) or (
            written.read_text(encoding="utf-8") if written.exists() else settings.get("chat_template")
        )
        exact = _Exact(Tokenizer(folder, settings, template))
        exact.prompt([{"role": "user", "content": "?"}])
    except Exception:  # tokenizers raises no narrower one, a template whatever its author wrote
        return _Guess()
    return exact


def _bytes(text: str) -> int:
    return len(text.encode())


class _Counter(Protocol):
    def text(self, text: str) -> int: ...

    def prompt(self, messages: Sequence[Message]) -> int: ...

    def answer(self, messages: Sequence[Message], text: str, finished: bool) -> int: ...


class _Guess:
    """By the number of bytes, until the tokenizer is here."""

    def text(self, text: str) -> int:
        return round(_bytes(text) / BYTES_A_TOKEN)

    def prompt(self, messages: Sequence[Message]) -> int:
        return AROUND + sum(1 + self.text(m["content"]) for m in messages)

    def answer(self, messages: Sequence[Message], text: str, finished: bool) -> int:
        return finished + self.text(text)


@dataclass(frozen=True)
class _Exact:
    tokenizer: Any

    def text(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, messages: Sequence[Message]) -> int:
        return len(encode_prompt(self.tokenizer, messages))

    def answer(self, messages: Sequence[Message], text: str, finished: bool) -> int:
        return len(encode_answer(self.tokenizer, messages, text, finished=finished))


class Tokenizer:
    """As much of transformers' tokenizer as `registry.dialogue_text` asks for."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], template: str):
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer as Inner

        self._inner = Inner.from_file(str(folder / "tokenizer.json"))
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: form}
        self._template = environment.from_string(template)
        self._named = {k: _text(v) for k, v in settings.items() if k.endswith("_token") and v}
        self.bos_token = self._named.get("bos_token")
        self.eos_token_id = self._inner.token_to_id(self._named.get("eos_token", ""))
        self.added_tokens_decoder = self._inner.get_added_tokens_decoder()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self._inner.encode(text, add_special_tokens=add_special_tokens).ids}

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool = False) -> str:
        given = {"messages": messages, "tools": None, "documents": None}
        return self._template.render(**given, add_generation_prompt=add_generation_prompt, **self._named)


def _refuse(message: str) -> None:
    raise UserError(message)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
