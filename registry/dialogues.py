"""One row of a known format to a `Pair` or a `Prompt`.

Every format ends at the same dialogue: perhaps a system message, then user and assistant by turns,
the last turn the user's. What does not have this shape is refused with the reason, never mended:
two turns of one speaker in a row are a fault of the data and many chat templates refuse them too.
Answers and turns keep their white space, except in HH-RLHF, where it belongs to the markers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from registry.dialogue_text import Message
from registry.rows import Form, Pair, Prompt, Unusable

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TWICE = "two turns of one speaker in a row"


def read_hh_rlhf(row: Mapping[str, Any]) -> Pair:
    """Two whole dialogues `\\n\\nHuman: ...\\n\\nAssistant: ...` that part at the last answer."""
    prompt, chosen = _last_answer(_text(row["chosen"], "chosen"), "chosen")
    other, rejected = _last_answer(_text(row["rejected"], "rejected"), "rejected")
    if prompt != other:
        raise Unusable("chosen and rejected do not share the dialogue before the last answer")
    _, *pieces = _TURN.split(prompt)
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    messages = [{"role": _ROLES[who], "content": said.strip()} for who, said in turns]
    if messages[-1]["role"] == "assistant":
        raise Unusable(_TWICE)
    return _pair(_dialogue(messages), chosen.strip(), rejected.strip())


def _last_answer(dialogue: str, side: str) -> tuple[str, str]:
    """The dialogue before the last `Assistant:` and what follows it."""
    dialogue = "\n\n" + dialogue.lstrip()
    if not dialogue.startswith("\n\nHuman:"):
        raise Unusable(f"`{side}` does not begin with a Human turn")
    before, marker, answer = dialogue.rpartition("\n\nAssistant:")
    if not marker or "\n\nHuman:" in answer:
        raise Unusable(f"`{side}` does not end in an Assistant turn")
    return before, answer


def read_preference(row: Mapping[str, Any]) -> Pair:
    """TRL's preference form. Without a prompt, what the answers share at their beginning is it. So
    it is with a plain text prompt beside answers that are messages: they repeat it (as in TRL)."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable("`chosen` and `rejected` are of different kinds")
    if isinstance(chosen, str):
        chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
        if prompt is None:
            prompt, chosen, rejected = _split_texts(chosen, rejected)
        return _pair(_as_prompt(prompt), chosen, rejected)
    chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if prompt is None or isinstance(prompt, str):
        beginning = _shared(chosen, rejected)
        if not beginning:
            raise Unusable("chosen and rejected share no prompt")
        chosen, rejected = chosen[len(beginning) :], rejected[len(beginning) :]
    else:
        beginning = _messages(prompt, "prompt")
    answers = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    return _pair(_dialogue(beginning), *answers)


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The rule of `trl.data_utils.extract_prompt` for text: the longest shared beginning that
    leaves something of both, the space at its end going to the answers."""
    if chosen.lstrip().startswith("Human:") and "\n\nAssistant:" in chosen:
        raise Unusable("an HH-RLHF dialogue without a prompt, which `format: hh_rlhf` reads")
    if not chosen.strip() or not rejected.strip():
        raise Unusable("empty answer")
    together = enumerate(zip(chosen, rejected, strict=False))
    shared = next((i for i, (a, b) in together if a != b), min(len(chosen), len(rejected)))
    end = min(shared, len(chosen) - 1, len(rejected) - 1)
    if end == shared and end > 0 and chosen[end - 1] == " ":
        end -= 1
    if end == 0:
        raise Unusable("chosen and rejected share no prompt")
    return chosen[:end], chosen[end:], rejected[end:]


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """The shared beginning of two dialogues that leaves at least one message of both."""
    beginning: list[Message] = []
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        beginning.append(one)
    return beginning


def _answer(messages: Sequence[Message], side: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Unusable(f"`{side}` is not one assistant turn after the prompt")
    return messages[0]["content"]


def read_prompt(row: Mapping[str, Any]) -> Prompt:
    """A string, which is one user turn, or messages that end in a user turn."""
    return Prompt(_as_prompt(row["prompt"]))


FORMS = {
    "preference": Form(("chosen", "rejected"), ("prompt",), read_preference),
    "hh_rlhf": Form(("chosen", "rejected"), (), read_hh_rlhf),
    "prompt": Form(("prompt",), (), read_prompt),
}


def _as_prompt(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return _dialogue([{"role": "user", "content": _text(prompt, "prompt")}])
    return _dialogue(_messages(prompt, "prompt"))


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise Unusable(f"`{column}` is neither text nor messages")
    return [_message(message, column) for message in value]


def _message(message: Any, column: str) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise Unusable(f"a message of `{column}` lacks `role` or `content`")
    if message["role"] not in ("system", "user", "assistant"):
        raise Unusable(f"a message of `{column}` has a role other than system, user, assistant")
    # Whatever else a message carries (names, null tool calls) is not part of the text.
    content = _text(message["content"], f"{column}.content")
    return {"role": message["role"], "content": content}


def _dialogue(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, if they are a dialogue that ends in a user turn."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise Unusable("`prompt` has no user turn")
    if any(turn["role"] == "system" for turn in turns):
        raise Unusable("a system message after the first message")
    if turns[0]["role"] != "user":
        raise Unusable("`prompt` does not begin with a user turn")
    if any(a["role"] == b["role"] for a, b in pairwise(turns)):
        raise Unusable(_TWICE)
    if turns[-1]["role"] != "user":
        raise Unusable("`prompt` does not end in a user turn")
    if any(not turn["content"].strip() for turn in turns):
        raise Unusable("empty prompt" if len(turns) == 1 else "empty turn in the prompt")
    return tuple(messages)


def _pair(prompt: tuple[Message, ...], chosen: str, rejected: str) -> Pair:
    if not chosen.strip() or not rejected.strip():
        raise Unusable("empty answer")
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    return Pair(prompt, chosen, rejected)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f"`{column}` is not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON may hold half of a surrogate pair, which no file can
            raise Unusable(f"`{column}` is not valid Unicode") from None
    return value
