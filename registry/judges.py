"""A judge's name to its replies: OpenAI's client, what it is asked, and what went wrong in a sentence for the person."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from registry.dialogue_text import Message, shown
from registry.verdicts import Reply
from specs.base import environment_names, expand_environment, seconds
from specs.judges import Judge
from specs.plan import Fact
from specs.problems import UnfitError

OPENAI = "is asked through the package openai, which is not installed; install that, or `alignflow[judge]`"
MAX_TOKENS = 32
"""Room for `[[A]]` and a few words before it."""
RETRIES = 5
"""How often the client sends a request again that found no answer, a full queue or a fault of the server; it waits half a
second, then twice as long each time, or as long as the server asks."""

ASKED = """\
Below are a dialogue and two answers to it, A and B. Judge which answer is better. {instruction} The order in which they are \
shown says nothing. Reply with your verdict alone: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if \
neither is.

[The dialogue]
{prompt}

[Answer A begins]
{first}
[Answer A ends]

[Answer B begins]
{second}
[Answer B ends]"""
"""All in the user's turn: some models have no other."""

Ask = Callable[[Mapping[str, Any]], Reply]


def fact(judge: Judge, *, offline: bool) -> Fact:
    """Why a judge cannot be asked, as far as can be told without asking. A server on this machine is not the network."""
    if importlib.util.find_spec("openai") is None:
        return Fact(problem=OPENAI)
    if offline and not _is_here(judge.base_url):
        return Fact(problem="is in the network, which --offline forbids; a judge on this machine may be asked")
    return Fact()


def _is_here(address: str) -> bool:
    import ipaddress
    from urllib.parse import urlsplit

    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def request(judge: Judge, prompt: Sequence[Message], first: str, second: str) -> dict[str, Any]:
    """What the endpoint is sent about two answers."""
    text = ASKED.format(instruction=judge.instruction, prompt=shown(prompt), first=first, second=second)
    return {
        "model": judge.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }


def try_out(name: str, judge: Judge) -> Reply:
    """The reply to a question of no consequence, which goes the way of every other. Raises `UnfitError` as `connect` says."""
    ask = connect(name, judge, retries=1)
    return ask(request(judge, [{"role": "user", "content": "What is two and two?"}], "Four.", "Five."))


def connect(name: str, judge: Judge, retries: int = RETRIES) -> Ask:
    """A function from requests to replies, which threads may share. It raises `UnfitError` where the endpoint cannot be
    reached, does not take the key, or does not know the model, after the client's own retries."""
    import openai  # two thirds of a second, and only evaluations with a judge need it

    key = _key(name, judge)
    # Without a key of its own the client would take one of the environment, and send it to whoever answers here.
    client = openai.OpenAI(
        base_url=judge.base_url, api_key=key or "none", timeout=seconds(judge.timeout), max_retries=retries
    )

    def ask(request: Mapping[str, Any]) -> Reply:
        try:
            made = client.chat.completions.create(**request)
            usage = made.usage
            return Reply(
                made.choices[0].message.content or "",
                usage.prompt_tokens if usage else None,
                usage.completion_tokens if usage else None,
            )
        except openai.OpenAIError as error:
            # Alone, for what it came of may quote the key.
            raise UnfitError(f"judges.{name}: {_explained(judge, error, key)}") from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # a page, or an error under status 200
            told = f"{judge.base_url} answers, but not as OpenAI's interface does; correct `base_url`"
            raise UnfitError(f"judges.{name}: {told}") from error

    return ask


def _key(name: str, judge: Judge) -> str:
    if judge.api_key is None:
        return ""
    key = expand_environment(judge.api_key, os.environ).strip()
    if not key or not (key.isascii() and key.isprintable()):
        (variable,) = environment_names(judge.api_key)
        raise UnfitError(f"judges.{name}.api_key: the environment variable `{variable}` holds no key; set it to one")
    return key


def _explained(judge: Judge, error: Any, key: str) -> str:
    """One line on why the endpoint gave no reply, without the key, which some endpoints quote."""
    import openai

    def line(text: object) -> str:
        whole = " ".join(str(text).split())
        return (whole.replace(key, "***") if key else whole)[:300]

    if isinstance(error, openai.APITimeoutError):
        return f"{judge.base_url} took longer than {judge.timeout}; raise `timeout`, or look after the server"
    if not isinstance(error, openai.APIStatusError):
        reason = line(error.__cause__ or error)
        return f"nothing answers at {judge.base_url} ({reason}); start it, or correct `base_url`"
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, Mapping) else body
    reason = f"{error.status_code}: {line(said or error.message)}"
    if error.status_code in (401, 403):
        remedy = "another key in `api_key`" if judge.api_key else "a key; write `api_key: ${env:NAME}`"
        return f"{judge.base_url} wants {remedy} ({reason})"
    if error.status_code == 404:
        return f"{judge.base_url} has no `{judge.model}` ({reason}); correct `model` or `base_url`"
    return f"{judge.base_url} gave no reply ({reason})"
