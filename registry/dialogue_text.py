"""A dialogue as tokens: one rule for training, scoring and sampling.

The prompt's tokens are the chat template's text up to where the assistant speaks; the answer's are tokenised by
themselves and appended, so a sampled answer and a given one have the same form. A tokenizer without a chat
template gets one (`template: hh`, `template: text`), after which there is one way to render.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from specs.problems import UserError

Message = Mapping[str, str]
Tokenizer = Any

TEMPLATES = {
    "hh": (
        "{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '\\n\\nHuman: ' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + m['content'] }}"
        "{% if loop.last %}{{ eos_token }}{% endif %}"
        "{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
    ),
    "text": (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}

ANY_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for an answer where only what the template writes after one matters."""
ANY_DIALOGUE = ({"role": "user", "content": "?"},)
"""Stands for what was asked before it."""


def set_template(tokenizer: Tokenizer, template: str) -> None:
    """Gives the tokenizer the chat template that the spec names."""
    if template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[template]


def prompt_text(tokenizer: Tokenizer, prompt: Sequence[Message]) -> str:
    """The text before the answer."""
    rendered = tokenizer.apply_chat_template(list(map(dict, prompt)), tokenize=False, add_generation_prompt=True)
    return str(rendered)


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message]) -> list[int]:
    """The tokens before the answer. What a tokenizer puts before every text stands here too, unless its template
    writes it itself; what it puts after every text does not, for the answer follows."""
    text = prompt_text(tokenizer, prompt)
    bos = tokenizer.bos_token
    written = bos and text.startswith(bos)
    return ([] if written else _beginning(tokenizer)) + _plain(tokenizer, text)


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text to go on from as it stands, behind what the tokenizer puts before every text."""
    return _beginning(tokenizer) + _plain(tokenizer, text)


def encode_answer(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str, *, finished: bool = True) -> list[int]:
    """The tokens of an answer, and the end of the turn if it is `finished`: as a model gives them, which stops there.
    What the template writes after that end (ChatML a line break) is left out."""
    written = _written(tokenizer, prompt, answer)
    if not finished:
        if answer not in written:
            raise _told_apart()
        return _plain(tokenizer, written[: written.index(answer) + len(answer)])
    ids = _plain(tokenizer, written)
    return ids[: len(ids) - _beyond_the_end(tokenizer, prompt, written)]


def encode_dialogue(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """`(prompt tokens, answer tokens)` of a finished dialogue, all that the template writes: what classifiers were
    trained on, whose last token is the one that they are read at."""
    return encode_prompt(tokenizer, prompt), _plain(tokenizer, _written(tokenizer, prompt, answer))


def behind_the_end(tokenizer: Tokenizer, prompt: Sequence[Message]) -> list[int]:
    """The tokens that the template writes after the end of an answer's turn: ChatML a line break, most nothing."""
    written = _written(tokenizer, prompt, ANY_ANSWER)
    ids = _plain(tokenizer, written)
    return ids[len(ids) - _beyond_the_end(tokenizer, prompt, written) :]


def end_of_answer(tokenizer: Tokenizer) -> int | None:
    """The special token by which the template ends an answer, which a model that learnt from it says there; None where it
    writes none, or there is no template that could."""
    try:
        last = encode_answer(tokenizer, ANY_DIALOGUE, ANY_ANSWER)[-1]
    except (UserError, TemplateError, ValueError):  # a tokenizer without a template raises the last
        return None
    return last if last in _special(tokenizer) else None


def _special(tokenizer: Tokenizer) -> set[int | None]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {tokenizer.eos_token_id}


def _written(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> str:
    """What the template writes behind the prompt for a finished answer."""
    before = prompt_text(tokenizer, prompt)
    whole = str(
        tokenizer.apply_chat_template([*map(dict, prompt), {"role": "assistant", "content": answer}], tokenize=False)
    )
    if not whole.startswith(before):
        raise _told_apart()
    return whole.removeprefix(before)


def _told_apart() -> UserError:
    return UserError(
        "the chat template renders a dialogue differently once it is answered, so prompt and answer cannot be "
        "told apart; name another `template:`"
    )


def _beyond_the_end(tokenizer: Tokenizer, prompt: Sequence[Message], written: str) -> int:
    """How many of the last tokens of an answer as `written` follow the end of its turn: the first special token behind
    the answer's text, whichever the template takes (the tokenizer's end of a text is another one in some models). They
    are counted from behind, for the text of an answer may name that token too."""
    _, _, after = _written(tokenizer, prompt, ANY_ANSWER).partition(ANY_ANSWER)
    if not written.endswith(after):
        return 0
    special, ids = _special(tokenizer), _plain(tokenizer, after)
    return next((len(ids) - 1 - place for place, token in enumerate(ids) if token in special), 0)


def cut_left(
    tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int], longest: int
) -> tuple[list[int], list[int]]:
    """The end of a dialogue that has more than `longest` tokens, behind those that begin every text (`[CLS]` is where
    some classifiers read their score); of an answer that is too long by itself, its end."""
    if len(prompt) + len(answer) <= longest:
        return list(prompt), list(answer)
    begin = _beginning(tokenizer)
    if list(prompt[: len(begin)]) != begin:
        begin = []
    answer = answer[len(answer) - min(len(answer), longest - len(begin)) :]
    room = longest - len(begin) - len(answer)
    return [*begin, *prompt[len(prompt) - room :]], list(answer)


def decode_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a sampled answer, without the spaces at its ends, which a template writes or does not. Where the template is
    the bare words they belong to it: nothing else parts the answer from the prompt. Of a last character whose bytes are not all there,
    because the answer was cut off, there is nothing: what stands for it would be learnt as a character."""
    text = decode_plain(tokenizer, ids).rstrip("\N{REPLACEMENT CHARACTER}")
    return text if tokenizer.chat_template == TEMPLATES["text"] else text.strip()


def decode_plain(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text that goes on from a text: the spaces at its ends belong to it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _beginning(tokenizer: Tokenizer) -> list[int]:
    ids = list(tokenizer("a")["input_ids"])
    return ids[: ids.index(_plain(tokenizer, "a")[0])]


def shown(prompt: Sequence[Message]) -> str:
    """A prompt as a person reads it: the request itself, or the dialogue where there are several turns."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
