"""The requests and answers of OpenAI's HTTP interface, as far as a policy has an answer to them.

A model is a policy with its decoding rule. What is asked for and cannot be had (log-probabilities, tools, penalties) is
refused by name, never left out in silence.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from registry.rows import Prompt
from tasks.requests import Asked, Done

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "suffix": (None,),
    "echo": (None, False),
    "best_of": (None, 1),
    # What a client may say of itself changes no answer.
    "user": (),
    "metadata": (),
    "store": (),
    "service_tier": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
}
"""Parameters of the interface that policies do not have, with the values under which that makes no difference (none named:
all of them)."""
UNUSED = frozenset({"refusal", "tool_calls", "function_call", "audio", "annotations"})
"""Fields of a message that policies never fill."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate), which no text can") from None
    return text


Written = Annotated[str, AfterValidator(_writable)]


class Text(_Strict):
    type: Literal["text"]
    text: Written


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Written | list[Text]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_empty(cls, data: Any) -> Any:
        """A client sends the message of an answer back with all its fields, those that hold nothing too."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in UNUSED or value not in (None, [])}

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise ValueError(f"parts of type `{kind}` are not supported: only text is")
        return content

    @property
    def as_turn(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Body(_Strict):
    model: Written
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: Written | Annotated[list[Written], Field(max_length=16)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_makes_no_difference(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, values in NEUTRAL.items():
            if name in data and values and not any(type(data[name]) is type(v) and data[name] == v for v in values):
                raise ValueError(f"`{name}` is not supported: leave it out")
        return {key: value for key, value in data.items() if key not in NEUTRAL}

    @property
    def most(self) -> int | None:
        return self.max_tokens

    def asked(self, prompt: Prompt, repetition: int, *, is_plain: bool) -> Asked:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Asked(
            self.model,
            prompt,
            is_plain,
            self.n or 1,
            self.most,
            secrets.randbelow(2**31) if self.seed is None else self.seed,
            repetition,
            self.temperature,
            self.top_p,
            tuple(text for text in stop if text),
            bool(self.stream),
        )


class ChatCompletion(_Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @field_validator("messages")
    @classmethod
    def _end_in_a_question(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError("the last message is to be the user's")
        return messages

    @property
    def most(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def prompts(self) -> list[Prompt]:
        return [Prompt(tuple(message.as_turn for message in self.messages))]


Asking = Annotated[Written, Field(min_length=1)]


class Completion(_Body):
    prompt: Asking | Annotated[list[Asking], Field(min_length=1, max_length=128)]

    @property
    def prompts(self) -> list[Prompt]:
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [Prompt(({"role": "user", "content": text},)) for text in texts]


def every_asked(body: ChatCompletion | Completion) -> list[Asked]:
    """What is asked of a policy, prompt by prompt."""
    seen, found = Counter[str](), list[Asked]()
    for prompt in body.prompts:
        found.append(body.asked(prompt, seen[prompt.id], is_plain=isinstance(body, Completion)))
        seen[prompt.id] += 1
    return found


class Answering:
    """The objects of one answer, which share an id and a time."""

    def __init__(self, request: ChatCompletion | Completion) -> None:
        self.is_chat = isinstance(request, ChatCompletion)
        self.id = ("chatcmpl-" if self.is_chat else "cmpl-") + secrets.token_hex(12)
        self.created, self.model = int(time.time()), request.model

    def _object(self, choices: Sequence[dict[str, Any]], chunk: bool, usage: dict[str, int] | None) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.is_chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}
        return head | ({} if usage is None else {"usage": usage})

    def whole(self, texts: Sequence[str], reasons: Sequence[str], usage: dict[str, int]) -> dict[str, Any]:
        choices = []
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            said: dict[str, Any] = {"text": text}
            if self.is_chat:
                said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
        return self._object(choices, False, usage)

    def begun(self, choices: int) -> Iterator[dict[str, Any]]:
        """The chunks before any text: who speaks."""
        for index in range(choices if self.is_chat else 0):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)

    def more(self, choice: int, text: str) -> dict[str, Any]:
        return self._chunk(choice, {"content": text} if self.is_chat else text, None)

    def end(self, choice: int, reason: str) -> dict[str, Any]:
        return self._chunk(choice, {} if self.is_chat else "", reason)

    def used(self, usage: dict[str, int]) -> dict[str, Any]:
        return self._object([], True, usage)

    def _chunk(self, index: int, said: Any, reason: str | None) -> dict[str, Any]:
        key = "delta" if self.is_chat else "text"
        return self._object([{"index": index, key: said, "logprobs": None, "finish_reason": reason}], True, None)


def usage(done: Sequence[Done]) -> dict[str, int]:
    """Tokens read and drawn; those of draws that a rule did not choose are drawn too."""
    prompt, drawn = sum(d.prompt_tokens for d in done), sum(d.drawn_tokens for d in done)
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}


def error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The interface's own form of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
