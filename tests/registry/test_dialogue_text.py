"""A dialogue's tokens: what a prompt and an answer become, apart and together, under each template."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from registry.dialogue_text import (
    TEMPLATES,
    decode_answer,
    decode_plain,
    encode_answer,
    encode_dialogue,
    encode_prompt,
    prompt_text,
    set_template,
    shown,
)
from specs.problems import UserError

USER = {"role": "user", "content": "How are you?"}
ASSISTANT = {"role": "assistant", "content": "Well."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATML = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
ENDS_THE_TEXT_TOO = CHATML + "{% if not add_generation_prompt %}<|system|>{% endif %}"
ENDS_WITH_WORDS = tiny.CHAT.replace("<|end|>", "\n###\n")
WRITES_BOS = "<|system|>" + tiny.CHAT
TRIMS = tiny.CHAT.replace("m['content']", "m['content'] | trim")
THINKS_BEFORE_IT_ANSWERS = tiny.CHAT.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
COUNTS_THE_TURNS = (
    "{{ messages | length }} turns{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def made(template: str = tiny.CHAT) -> Any:
    tokenizer = tiny.tokenizer(chat_template=template)
    set_template(tokenizer, template)  # `hh` and `text` are names
    return tokenizer


def adding(tokenizer: Any, single: str) -> Any:
    """The tokenizer with special tokens put around every text; `<|system|>` begins one."""
    tokenizer.bos_token = "<|system|>"
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|system|>", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def rendered(tokenizer: Any, prompt: list[dict[str, str]], answer: str) -> str:
    whole = [*prompt, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(whole, tokenize=False))


@pytest.mark.parametrize("template", [tiny.CHAT, CHATML, "hh", "text", TRIMS])
@given(question=text, first=text, answer=text)
@settings(max_examples=25, deadline=None)
def test_prompt_and_answer_together_are_the_templates_rendering(
    template: str, question: str, first: str, answer: str
) -> None:
    tokenizer = made(template)
    prompt = [SYSTEM, {"role": "user", "content": first}, ASSISTANT, {"role": "user", "content": question}]
    before, after = encode_dialogue(tokenizer, prompt, answer)
    whole = rendered(tokenizer, prompt, answer)
    assert tokenizer.decode(before + after) == whole
    # A byte tokenizer merges nothing, so that even the tokens are those of the whole text.
    assert before + after == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(before) == prompt_text(tokenizer, prompt)


@pytest.mark.parametrize("template", [tiny.CHAT, CHATML, "hh", "text"])
def test_an_unfinished_answer_has_the_same_tokens_but_no_end(template: str) -> None:
    tokenizer = made(template)
    finished, unfinished = (encode_answer(tokenizer, [USER], "Fine.", finished=f) for f in (True, False))
    assert finished[: len(unfinished)] == unfinished
    assert tokenizer.decode(unfinished).strip() == "Fine."
    assert encode_answer(tokenizer, [USER], "", finished=False) == encode_answer(tokenizer, [USER], "")[:0]


@pytest.mark.parametrize("template", [tiny.CHAT, CHATML, "hh", "text"])
def test_an_answers_tokens_end_with_the_end_of_the_turn_once(template: str) -> None:
    tokenizer = made(template)
    after = encode_answer(tokenizer, [USER], "Fine.")
    assert after.count(tokenizer.eos_token_id) == 1
    # ChatML writes a line break after it, which no sampled answer has.
    assert tokenizer.decode(after).endswith("Fine.<|end|>")


def test_the_end_of_the_turn_is_the_templates_where_the_tokenizer_has_another() -> None:
    tokenizer = made(ENDS_THE_TEXT_TOO)
    tokenizer.eos_token = "<|system|>"
    assert rendered(tokenizer, [USER], "Fine.").endswith("Fine.<|end|>\n<|system|>")
    assert tokenizer.decode(encode_answer(tokenizer, [USER], "Fine.")) == "Fine.<|end|>"


def test_a_template_without_an_end_token_ends_a_turn_with_all_that_it_writes() -> None:
    tokenizer = made(ENDS_WITH_WORDS)
    assert tokenizer.decode(encode_answer(tokenizer, [USER], "Fine.")) == "Fine.\n###\n"


@pytest.mark.parametrize("answer", ["It is <|end|>, you see.", "<|end|>", "\n<|end|>\n", "", "n", "\n"])
def test_an_answer_that_names_the_end_token_keeps_it(answer: str) -> None:
    tokenizer = made(CHATML)
    assert tokenizer.decode(encode_answer(tokenizer, [USER], answer)) == f"{answer}<|end|>"


def test_a_whole_dialogue_is_all_that_the_template_writes_as_classifiers_know_it() -> None:
    tokenizer = made(CHATML)
    _, after = encode_dialogue(tokenizer, [USER], "Fine.")
    assert tokenizer.decode(after) == "Fine.<|end|>\n"


@pytest.mark.parametrize("template", [tiny.CHAT, CHATML, "hh", "text"])
@given(answer=text)
@settings(max_examples=25, deadline=None)
def test_a_sampled_answer_encoded_again_has_the_form_of_a_given_one(template: str, answer: str) -> None:
    tokenizer = made(template)
    given = answer if template == "text" else answer.strip()
    given_ids = encode_answer(tokenizer, [USER], given)
    # What a model that learnt this answer samples: its tokens up to and with the end of the turn.
    assert given_ids.index(tokenizer.eos_token_id) == len(given_ids) - 1
    sampled = decode_answer(tokenizer, given_ids)
    assert sampled == given
    assert encode_answer(tokenizer, [USER], sampled) == given_ids


def test_an_unfinished_answer_is_read_as_far_as_it_goes() -> None:
    tokenizer = made()
    ids = encode_answer(tokenizer, [USER], "naïve")
    assert decode_answer(tokenizer, ids[:2]) == "na"
    # Half of the two bytes of ï, as a sample that was cut off may have: it would be learnt as another character.
    assert decode_answer(tokenizer, ids[:3]) == "na"
    assert decode_plain(tokenizer, ids[:3]) == "na\N{REPLACEMENT CHARACTER}"


def test_the_hh_form_is_that_of_the_data_set() -> None:
    tokenizer = made("hh")
    assert prompt_text(tokenizer, [USER]) == "\n\nHuman: How are you?\n\nAssistant:"
    assert tokenizer.decode(encode_answer(tokenizer, [USER], "Fine.")) == " Fine.<|end|>"
    dialogue = [USER, ASSISTANT, {"role": "user", "content": "Good."}]
    expected = "\n\nHuman: How are you?\n\nAssistant: Well.\n\nHuman: Good.\n\nAssistant:"
    # The earlier answer is not the end: only the last one is followed by the end of the text.
    assert prompt_text(tokenizer, dialogue) == expected
    assert prompt_text(tokenizer, [SYSTEM, USER]) == "Be brief.\n\nHuman: How are you?\n\nAssistant:"


def test_the_text_form_is_the_bare_words() -> None:
    tokenizer = made("text")
    assert prompt_text(tokenizer, [USER]) == "How are you?"
    assert tokenizer.decode(encode_answer(tokenizer, [USER], " Fine.")) == " Fine.<|end|>"


def test_a_system_message_stands_where_the_template_puts_it() -> None:
    tokenizer = made()
    expected = "<|system|>Be brief.<|end|><|user|>How are you?<|end|><|assistant|>"
    assert tokenizer.decode(encode_prompt(tokenizer, [SYSTEM, USER])) == expected
    without = encode_answer(tokenizer, [USER], "Fine.")
    assert encode_answer(tokenizer, [SYSTEM, USER], "Fine.") == without


def test_a_named_template_replaces_the_tokenizers_own_and_tokenizer_keeps_it() -> None:
    tokenizer = tiny.tokenizer()
    set_template(tokenizer, "tokenizer")
    assert tokenizer.chat_template == tiny.CHAT
    for name, template in TEMPLATES.items():
        set_template(tokenizer, name)
        assert tokenizer.chat_template == template


@pytest.mark.parametrize("template", [tiny.CHAT, "hh", "text", WRITES_BOS])
def test_the_beginning_of_the_text_is_written_once(template: str) -> None:
    tokenizer = adding(made(template), "<|system|> $A")
    before, after = encode_dialogue(tokenizer, [USER], "Fine.")
    assert before[0] == tokenizer.bos_token_id
    assert (before + after).count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt() -> None:
    tokenizer = adding(made("hh"), "<|system|> $A <|end|>")
    before, after = encode_dialogue(tokenizer, [USER], "Fine.")
    assert tokenizer.decode(before) == "<|system|>\n\nHuman: How are you?\n\nAssistant:"
    assert tokenizer.decode(after) == " Fine.<|end|>"


def test_a_tokenizer_that_adds_nothing_adds_no_beginning() -> None:
    tokenizer = made("hh")
    tokenizer.bos_token = "<|system|>"  # named, but put before nothing
    assert tokenizer.decode(encode_prompt(tokenizer, [USER])) == "\n\nHuman: How are you?\n\nAssistant:"


@pytest.mark.parametrize("template", [THINKS_BEFORE_IT_ANSWERS, COUNTS_THE_TURNS])
def test_a_template_that_renders_a_prompt_differently_once_answered_is_refused(template: str) -> None:
    tokenizer = made(template)
    with pytest.raises(UserError, match="renders a dialogue differently once it is answered") as caught:
        encode_answer(tokenizer, [USER], "Fine.")
    assert "name another `template:`" in str(caught.value)


def test_a_prompt_is_shown_as_its_words_and_a_dialogue_with_its_speakers() -> None:
    assert shown([USER]) == "How are you?"
    assert shown([SYSTEM, USER]) == "System: Be brief.\n\nUser: How are you?"
