"""A judge is asked by OpenAI's own client, and what goes wrong is told in a sentence that holds no key."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from traceback import format_exception
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import HTMLResponse, JSONResponse
from judge_endpoint import Endpoint, fault, longer, serving

from registry import judges
from registry.judges import connect, fact, request, try_out
from registry.verdicts import Reply
from specs.judges import Judge
from specs.problems import UnfitError

KEY = "sk-geheim-0123456789"
ASKED = [{"role": "user", "content": "Why?"}]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(longer) as made:
        yield made


def judge(endpoint: Endpoint, **fields: Any) -> Judge:
    return Judge.model_validate({"base_url": endpoint.url, "model": "some-model"} | fields)


def refusal(made: Judge) -> str:
    with pytest.raises(UnfitError) as told:
        try_out("careful", made)
    text = str(told.value)
    assert "\n" not in text and KEY not in "".join(format_exception(told.value))
    return text


def test_it_is_shown_the_criterion_the_dialogue_and_both_answers_in_order(endpoint: Endpoint) -> None:
    made = judge(endpoint, instruction="Prefer {braces}.")
    asked = request(made, [{"role": "system", "content": "Be brief."}, *ASKED], "Because {so}.", "No.")
    assert connect("careful", made)(asked).text == "[[A]]"
    assert endpoint.asked == [("System: Be brief.\n\nUser: Why?", "Because {so}.", "No.")]
    (body,) = endpoint.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, judges.MAX_TOKENS)
    assert "Prefer {braces}." in body["messages"][0]["content"]


def test_a_reply_comes_with_what_the_endpoint_counted(endpoint: Endpoint) -> None:
    reply = try_out("careful", judge(endpoint))
    words = len(endpoint.bodies[0]["messages"][0]["content"].split())
    assert reply == Reply("[[C]]", words, 1)  # "Four." is as long as "Five."
    endpoint.usage = False
    assert try_out("careful", judge(endpoint)) == Reply("[[C]]", None, None)
    assert (endpoint.trials, endpoint.asked) == (2, [])


def test_a_reply_without_text_is_empty(endpoint: Endpoint) -> None:
    endpoint.rule = lambda first, second: None  # type: ignore[assignment,return-value]
    endpoint.usage = False
    made = JSONResponse({"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]})
    endpoint.faults = [made]
    assert try_out("careful", judge(endpoint)).text == ""


def test_the_key_is_the_environments_variable_that_is_named_and_no_other(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    try_out("careful", judge(endpoint, api_key="${env:JUDGE_KEY}"))
    assert endpoint.headers.pop()["authorization"] == f"Bearer {KEY}"
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "another key, of another endpoint")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    try_out("careful", judge(endpoint))
    assert not [value for value in endpoint.headers.pop().values() if "another key" in value]


@pytest.mark.parametrize("value", ["", " \n", "two\nlines", "schlüssel"])
def test_a_variable_without_a_key_is_told_before_anything_is_sent(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    assert refusal(judge(endpoint, api_key="${env:JUDGE_KEY}")) == (
        "judges.careful.api_key: the environment variable `JUDGE_KEY` holds no key; set it to one"
    )
    assert endpoint.bodies == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (fault(401, f"Incorrect key: {KEY}"), "{url} wants another key in `api_key` (401: Incorrect key: ***)"),
        (fault(403, "Not for you"), "{url} wants another key in `api_key` (403: Not for you)"),
        (
            fault(404, "No model\nof that name"),
            "{url} has no `some-model` (404: No model of that name); correct `model` or `base_url`",
        ),
        (JSONResponse({"detail": "Not Found"}, 404), "{url} has no `some-model` (404: Not Found); correct"),
        (fault(400, "Unsupported parameter: temperature"), "{url} gave no reply (400: Unsupported parameter: temperature)"),
        (HTMLResponse("<h1>Welcome</h1>"), "{url} answers, but not as OpenAI's interface does; correct `base_url`"),
        (JSONResponse(["a list"]), "{url} answers, but not as OpenAI's interface does; correct `base_url`"),
        (JSONResponse({"error": {"message": "no"}}), "{url} answers, but not as OpenAI's interface does; correct"),
        (
            Response("{half a", media_type="application/json"),
            "{url} answers, but not as OpenAI's interface does; correct `base_url`",
        ),
    ],
    ids=["wrong key", "forbidden", "no model", "no path", "refused", "a page", "a list", "an error", "no JSON"],
)  # fmt: skip
def test_what_goes_wrong_is_one_sentence_without_the_key(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, answer: Response, told: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.faults = [answer]
    said = refusal(judge(endpoint, api_key="${env:JUDGE_KEY}"))
    assert said.startswith(f"judges.careful: {told.format(url=endpoint.url)}")
    assert len(endpoint.bodies) == 1  # none of these is worth another try


def test_no_part_of_a_key_survives_where_a_long_message_is_cut(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.faults = [fault(401, "x" * 290 + KEY)]
    assert KEY[:6] not in refusal(judge(endpoint, api_key="${env:JUDGE_KEY}"))


def test_an_endpoint_that_asks_for_a_key_that_none_was_named_for_is_told_so(endpoint: Endpoint) -> None:
    endpoint.faults = [fault(401, "Who are you?")]
    assert refusal(judge(endpoint)) == (
        f"judges.careful: {endpoint.url} wants a key; write `api_key: ${{env:NAME}}` (401: Who are you?)"
    )


def test_nothing_that_answers_is_told_with_the_systems_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    told = refusal(Judge(base_url=url, model="some-model"))
    assert told.startswith(f"judges.careful: nothing answers at {url} (") and "refused" in told
    assert told.endswith("; start it, or correct `base_url`")


def test_a_fault_that_passes_is_tried_again_and_one_that_stays_is_told(endpoint: Endpoint) -> None:
    made = judge(endpoint)
    asked = request(made, ASKED, "Because.", "No.")
    endpoint.faults = [fault(500, "Out of order"), fault(429, "Too many"), fault(503, "Busy")]
    assert connect("careful", made)(asked).text == "[[A]]"
    assert len(endpoint.bodies) == 4
    endpoint.faults = [fault(500, "Out of order")] * (1 + judges.RETRIES)
    with pytest.raises(UnfitError, match=r"gave no reply \(500: Out of order\)"):
        connect("careful", made)(asked)
    assert endpoint.faults == []


def test_a_request_that_takes_too_long_is_told_with_its_limit(endpoint: Endpoint) -> None:
    endpoint.seconds = 1.5
    told = refusal(judge(endpoint, timeout="1s"))
    assert told == f"judges.careful: {endpoint.url} took longer than 1s; raise `timeout`, or look after the server"


def test_offline_asks_this_machine_alone() -> None:
    def problem(address: str) -> str | None:
        return fact(Judge(base_url=address, model="m"), offline=True).problem

    for here in ("http://127.0.0.1:9000/v1", "http://localhost/v1", "http://[::1]:80/v1", "https://127.8.0.1/v1"):
        assert problem(here) is None
    for elsewhere in ("https://api.openai.com/v1", "http://10.0.0.4/v1", "http://localhost.example.org/v1"):
        assert problem(elsewhere) == "is in the network, which --offline forbids; a judge on this machine may be asked"
        assert fact(Judge(base_url=elsewhere, model="m"), offline=False).problem is None
