"""`alignflow serve`: policies behind OpenAI's interface, asked by its own client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import stages
import tiny
import torch
import uvicorn
from asked import Asked as Answers
from command import told

from flows import serving
from registry.judges import try_out
from registry.rows import Prompt
from specs.judges import Judge
from specs.problems import UserError
from tasks.live import Live

STUDY = """\
models:
  base: {source: ./model, precision: fp32}
  spoilt: {source: ./spoilt, precision: fp32}
data: {pairs: {source: ./pairs.jsonl, format: preference}}
rewards:
  words: {kind: length}
  classes: {kind: classifier, source: ./classes, precision: fp32}
  picky: {kind: python, target: picky_reward:score}
stages:
  greedy: {do: decode, method: greedy, from: base}
  best: {do: decode, method: best_of_n, from: base, reward: words, n: 4}
  args: {do: decode, method: args, from: base, reward: classes, candidates: 5, strength: 40.0}
  blocks: {do: decode, method: controlled_decoding, from: base, scorers: {words: 1.0}, block: 3, samples: 4}
  chosen: {do: decode, method: controlled_decoding, from: base, scorers: {picky: 1.0}, block: 3, samples: 4}
  raft: {do: raft, from: base, prompts: pairs, reward: words, samples: 2, max_new_tokens: 4, learning_rate: 1e-9}
  cards: {do: decode, method: cards, from: base, reward: classes, target: 4.0, shortest: 2, longest: 4, tries: 3}
  rm: {do: reward_model, from: base, data: pairs}
"""
POLICIES = ["base", "greedy", "best", "args", "blocks", "cards"]
FRAGILE = ["spoilt", "chosen"]
"""Policies that cannot answer what has a Q in it."""
SERVED = [*POLICIES, *FRAGILE, "raft"]
PICKY = """\
def score(prompts, responses):
    return [float("nan") if "Q" in p else float(len(r)) for p, r in zip(prompts, responses)]
"""
KEY = "a key of some length"


class Serving:
    def __init__(self, folder: Path, api_key: str | None = None) -> None:
        tiny.language_model(folder / "model")
        tiny.spoilt(folder / "spoilt", "Q")
        (folder / "picky_reward.py").write_text(PICKY)
        tiny.classifier(folder / "classes", initializer_range=1.0)
        tiny.write_lines(folder / "pairs.jsonl", tiny.TEN)
        self.view = stages.study(folder, STUDY)
        stages.build(self.view, "raft")
        artifacts = {name: self.view.artifact(name) for name in SERVED}
        self.live = Live(artifacts, rows=8, max_new_tokens=400)
        self.live.load()
        self.live.start()
        place = serving._bound("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{place.getsockname()[1]}/v1"
        app = serving.application(self.live, api_key=api_key)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [place]}, daemon=True)
        self.thread.start()

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.live.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("served"))
    yield serving
    serving.stop()


@pytest.fixture
def client(served: Serving) -> openai.OpenAI:
    return served.client()


class Steps:
    """The rows of every step of plain decoding, each of which takes a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        from tasks.tokens import Tokens

        self.rows: list[int] = []
        step = Tokens.step

        def slowly(tokens: Any) -> Any:
            time.sleep(seconds)
            self.rows.append(len(tokens.batch.seats))
            return step(tokens)

        monkeypatch.setattr(Tokens, "step", slowly)

    def until_they_end(self) -> int:
        """How many there were once no more come."""
        done = -1
        while done != len(self.rows):
            done = len(self.rows)
            time.sleep(0.7)
        return done


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def asked(client: openai.OpenAI, model: str, text: str = "Why?", **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=user(text), **{"max_tokens": 10, "seed": 5} | options)


def test_the_policies_are_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == SERVED
    assert client.models.retrieve("args").id == "args"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_answers_as_it_does_anywhere(served: Serving, client: openai.OpenAI, policy: str) -> None:
    expected = Answers(served.view, policy, prompts=[Prompt(tuple(user("Why?")))], samples=2)
    answer = asked(client, policy, n=2)
    assert [choice.message.content for choice in answer.choices] == expected[policy][0]
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice, one in zip(answer.choices, expected.answers[policy][0], strict=True):
        assert choice.finish_reason == ("stop" if one.finished else "length")
    assert answer.usage.prompt_tokens == 7 and answer.usage.total_tokens == 7 + answer.usage.completion_tokens


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI, policy: str) -> None:
    whole = asked(client, policy, n=2, max_tokens=20)
    pieces: list[list[str]] = [[], []]
    reasons: dict[int, str] = {}
    used = None
    for chunk in asked(client, policy, n=2, max_tokens=20, stream=True, stream_options={"include_usage": True}):
        used = chunk.usage
        for choice in chunk.choices:
            pieces[choice.index].append(choice.delta.content or "")
            reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert ["".join(some) for some in pieces] == [choice.message.content for choice in whole.choices]
    assert [reasons[0], reasons[1]] == [choice.finish_reason for choice in whole.choices]
    assert used == whole.usage
    if policy == "base":
        assert max(map(len, pieces)) > 4


def test_a_policy_that_is_served_may_be_another_studys_judge(served: Serving) -> None:
    """It knows no verdicts, but it is asked and answers."""
    reply = try_out("careful", Judge(base_url=served.url, model="greedy", instruction="Take the shorter one."))
    assert reply.prompt_tokens is not None and reply.prompt_tokens > 300  # a token is a byte
    assert 0 < (reply.completion_tokens or 0) <= 32


def test_a_text_is_gone_on_from_as_it_stands(served: Serving, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="greedy", prompt=["Why", "Where to"], max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1]
    again = client.completions.create(model="greedy", prompt="Where to", max_tokens=6)
    assert again.choices[0].text == answer.choices[1].text
    assert again.usage is not None and again.usage.prompt_tokens == len("Where to")
    guided = client.completions.create(model="args", prompt="Where to", max_tokens=6)
    assert guided.choices[0].text != again.choices[0].text
    streamed = client.completions.create(model="greedy", prompt="Where to", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == again.choices[0].text


def test_temperature_and_nucleus_are_in_place_of_the_rules_own(client: openai.OpenAI) -> None:
    greedy = asked(client, "greedy").choices[0].message.content
    assert asked(client, "base", temperature=0).choices[0].message.content == greedy
    assert asked(client, "base", top_p=1e-6).choices[0].message.content == greedy
    assert asked(client, "greedy", temperature=1.0).choices[0].message.content != greedy


def test_a_seed_gives_its_answer_again_and_none_gives_others(client: openai.OpenAI) -> None:
    one, again = (asked(client, "base").choices[0].message.content for _ in range(2))
    others = {asked(client, "base", seed=None).choices[0].message.content for _ in range(3)}
    assert one == again and len(others) > 1


def test_an_answer_ends_before_a_stop_and_a_stream_shows_none_of_it(client: openai.OpenAI) -> None:
    whole = asked(client, "base", max_tokens=40).choices[0].message.content
    stop = whole[4:7]
    cut = asked(client, "base", max_tokens=40, stop=[stop, "never said"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    chunks = asked(client, "base", max_tokens=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == cut.message.content


def test_thirty_two_clients_at_once_get_the_answers_that_each_gets_alone(client: openai.OpenAI) -> None:
    def one(number: int) -> str:
        model = POLICIES[number % len(POLICIES)]
        content: str = (
            asked(client, model, f"Question {number}?", max_tokens=12, seed=number).choices[0].message.content
        )
        return content

    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(one, range(32)))
    assert together == [one(number) for number in range(32)]


def test_requests_that_come_together_share_a_batch(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 0.02)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: asked(served.client(), "base", f"{n}", max_tokens=200, seed=n), range(4)))
    assert max(steps.rows) >= 3 and len(steps.rows) < 4 * 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_rows(served: Serving, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    steps = Steps(monkeypatch, 0.05)
    if stream:
        chunks = asked(served.client(), "base", n=8, max_tokens=400, stop="\0", stream=True)
        next(iter(chunks))
        chunks.response.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            asked(served.client().with_options(timeout=0.5), "base", n=8, max_tokens=400)
    assert steps.until_they_end() < 300, "it was decoded to its end"
    assert asked(served.client(), "base").choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"max_tokens": 401}, "max_tokens", "an answer has at most 400 tokens here"),
        (
            {"max_completion_tokens": 401},
            "max_completion_tokens",
            "an answer has at most 400 tokens here",
        ),
        ({"temperature": -1}, "temperature", "temperature: Input should be greater than or equal to 0"),
        ({"n": 0}, "n", "n: Input should be greater than or equal to 1"),
        ({"logprobs": True}, None, "`logprobs` is not supported: leave it out"),
        ({"extra_body": {"logprobs": 0}}, None, "`logprobs` is not supported: leave it out"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
            "parts of type `image_url` are not supported: only text is",
        ),
        ({"model": "blocks", "temperature": 0}, None, "at temperature 0 all ways to continue a block are one"),
        ({"model": "cards", "temperature": 0}, None, "`cards`: temperature must be greater than 0"),
        ({"tools": [{"type": "function"}]}, None, "`tools` is not supported: leave it out"),
        ({"extra_body": {"smaples": 2}}, "smaples", "`smaples` is no parameter of this interface"),
        ({"messages": [{"role": "assistant", "content": "Hm."}]}, "messages", "the last message is to be the user's"),
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
    ],
)
def test_a_bad_request_gets_an_error_of_the_interface(
    client: openai.OpenAI, options: dict[str, Any], param: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "base", "messages": user("Why?")} | options)
    problem = caught.value.body
    assert isinstance(problem, dict) and words in problem["message"]
    assert (problem["type"], problem["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("prompt", ["", [1, 2], [""]])
def test_a_bad_prompt_is_named_without_the_names_of_types(client: openai.OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt=prompt)
    problem = caught.value.body
    assert isinstance(problem, dict) and problem["param"] in ("prompt", "prompt.0")
    assert problem["message"].startswith(f"{problem['param']}: ") and "function" not in problem["message"]


def test_a_body_that_is_not_told_to_be_json_is_named_as_such(served: Serving) -> None:
    answer = httpx.post(
        f"{served.url}/chat/completions", content='{"model": "base"}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_leaves_no_room_is_told_before_a_stream_begins(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="more than the model's 512 positions"):
        asked(client, "base", "a" * 600, stream=stream)
    with pytest.raises(openai.BadRequestError, match="more than the model's 512 positions"):
        asked(client, "args", "a" * 600, stream=stream)


def test_half_a_character_is_refused_before_any_tokenizer_meets_it(served: Serving) -> None:
    body = '{"model": "base", "messages": [{"role": "user", "content": "half \\ud800"}]}'
    answer = httpx.post(f"{served.url}/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "holds half a character" in answer.json()["error"]["message"]


def test_without_a_limit_an_answer_may_be_as_long_as_there_is_room(served: Serving, client: openai.OpenAI) -> None:
    long = asked(client, "greedy", "a" * 490, max_tokens=None)
    assert long.usage.prompt_tokens == 493 and long.usage.completion_tokens <= 19
    guided = asked(client, "args", "a" * 490, max_tokens=None)
    assert guided.usage.completion_tokens <= 19
    with pytest.raises(
        openai.BadRequestError, match=r"prompt of this request: 493 .* shorten the prompt or lower max_tokens"
    ):
        asked(client, "greedy", "a" * 490, max_tokens=20)


def test_the_spaces_at_the_ends_of_a_text_that_is_gone_on_from_belong_to_it(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import tokens

    space = tiny.tokenizer().convert_tokens_to_ids("Ġ")
    monkeypatch.setattr(tokens, "inverse_cdf", lambda logits, u, **rule: torch.full((len(u),), space))
    answer = client.completions.create(model="base", prompt="Why", max_tokens=3)
    assert answer.choices[0].text == "   "
    assert asked(client, "base", max_tokens=3).choices[0].message.content == ""
    stopped = client.completions.create(model="base", prompt="Why", max_tokens=3, stop=" ")
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")


def test_a_request_that_breaks_something_breaks_no_other(
    served: Serving, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import lane

    with monkeypatch.context() as broken:
        broken.setattr(lane, "encode_request", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="the server failed: ZeroDivisionError; its log says more"):
            asked(client, "base")
    assert served.live.is_alive()
    assert asked(client, "base").choices[0].finish_reason in ("stop", "length")


def test_a_reward_that_fails_is_told_by_its_name(client: openai.OpenAI, served: Serving) -> None:
    reward = served.view.artifact("best").one("reward")
    held = served.live.models._held
    key = (reward.fingerprint, "score")
    before = held[key]

    def failing(prompts: Any, answers: Any) -> Any:
        raise UserError("the reward `words` returned nan for the response 'a'; it must return finite numbers")

    held[key] = failing
    try:
        with pytest.raises(openai.InternalServerError, match="the reward `words` returned nan"):
            asked(client, "best")
    finally:
        held[key] = before


@pytest.mark.parametrize("policy", FRAGILE)
@pytest.mark.parametrize("stream", [False, True])
def test_of_requests_that_are_decoded_together_the_one_that_cannot_be_answered_fails_alone(
    client: openai.OpenAI, policy: str, stream: bool
) -> None:
    texts = [f"Why {i}?" for i in range(6)]
    alone = [asked(client, policy, text, n=2).choices for text in texts]

    def ask(text: str) -> Any:
        if not stream:
            return [
                (choice.message.content, choice.finish_reason) for choice in asked(client, policy, text, n=2).choices
            ]
        said, ends = ["", ""], list[list[str]]([[], []])
        for chunk in asked(client, policy, text, n=2, stream=True):
            for choice in chunk.choices:
                said[choice.index] += choice.delta.content or ""
                ends[choice.index] += [choice.finish_reason] if choice.finish_reason else []
        return [(text, *reasons) for text, reasons in zip(said, ends, strict=True)]

    with ThreadPoolExecutor(7) as pool:
        waiting = [pool.submit(ask, text) for text in (*texts[:3], "Q?", *texts[3:])]
        with pytest.raises(openai.APIError, match=r"no numbers|returned nan"):
            waiting.pop(3).result()
        answers = [each.result() for each in waiting]
    expected = [[(choice.message.content, choice.finish_reason) for choice in choices] for choices in alone]
    assert answers == expected


def test_a_trained_models_own_temperature_is_that_of_its_training(client: openai.OpenAI) -> None:
    greedy = [choice.message.content for choice in asked(client, "raft", temperature=0, n=2).choices]
    assert greedy == [asked(client, "greedy").choices[0].message.content] * 2


def test_a_message_that_was_answered_is_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = asked(client, "base").choices[0].message
    messages = [*user("Why?"), first, *user("And then?")]
    again = client.chat.completions.create(model="base", messages=messages, max_tokens=6, seed=5)
    plain: Any = [*user("Why?"), {"role": "assistant", "content": first.content}, *user("And then?")]
    expected = client.chat.completions.create(model="base", messages=plain, max_tokens=6, seed=5)
    assert again.choices[0].message.content == expected.choices[0].message.content


def test_a_prompt_that_comes_twice_has_answers_of_its_own(served: Serving, client: openai.OpenAI) -> None:
    found = client.completions.create(model="base", prompt=["a b", "c", "a b"], max_tokens=12, seed=5)
    first, _, third = (choice.text for choice in found.choices)
    assert first == client.completions.create(model="base", prompt="a b", max_tokens=12, seed=5).choices[0].text
    assert third != first


@pytest.mark.parametrize("policy", ["base", "best", "blocks", "cards"])
def test_how_many_answers_are_asked_for_changes_none_of_them(client: openai.OpenAI, policy: str) -> None:
    one, three = (asked(client, policy, n=n).choices for n in (1, 3))
    assert one[0].message.content == three[0].message.content
    assert len({choice.message.content for choice in three}) > 1


def test_what_means_the_same_is_decoded_together(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 0.02)
    ways: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"top_p": 1}, {"temperature": 1, "top_p": 1.0}]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda way: asked(served.client(), "base", max_tokens=200, seed=1, **way), ways))
    assert max(steps.rows) >= 3


def test_a_very_low_temperature_is_greedy(client: openai.OpenAI) -> None:
    greedy = asked(client, "greedy").choices[0].message.content
    assert asked(client, "base", temperature=1e-40).choices[0].message.content == greedy


def test_more_than_can_wait_are_told_to_come_later(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import live

    monkeypatch.setattr(live, "WAITING", 0)
    with pytest.raises(openai.RateLimitError, match="ask again later"):
        asked(client, "base")


def test_a_client_that_leaves_before_the_first_piece_frees_its_rows(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy that chooses among draws nothing is heard before all are there."""
    steps = Steps(monkeypatch, 0.05)
    with pytest.raises(openai.APITimeoutError):
        asked(served.client().with_options(timeout=0.5), "best", max_tokens=400, stop="\0", stream=True)
    assert steps.until_they_end() < 300, "it was decoded to its end"


def test_a_model_that_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model `arsg`; did you mean `args`"):
        asked(client, "arsg")
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        client.embeddings.create(model="base", input="a")


def test_a_key_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    serving = Serving(tmp_path, api_key=KEY)
    try:
        with pytest.raises(openai.AuthenticationError) as caught:
            serving.client("another").models.list()
        assert isinstance(caught.value.body, dict) and caught.value.body["code"] == "invalid_api_key"
        assert [model.id for model in serving.client().models.list()] == SERVED
    finally:
        serving.stop()


def test_logits_that_are_no_numbers_fail_the_request_and_not_the_server(
    served: Serving, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import tokens

    real = tokens.inverse_cdf
    monkeypatch.setattr(tokens, "inverse_cdf", lambda logits, u, **rule: real(logits, u, **rule) * 0 - 1)
    with pytest.raises(openai.InternalServerError, match="`base` gave logits that are no numbers"):
        asked(client, "base")
    monkeypatch.undo()
    assert asked(client, "base").choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "bset"], "`bset` is not a policy of this study; did you mean `best`?"),
        (["--policy", "args2"], "`args2` is not a policy of this study; did you mean `args`?"),
        (["--policy", "base", "--host", "0.0.0.0"], "--host 0.0.0.0 is open to others; give an --api-key"),
        (["--policy", "base", "--port", "TAKEN"], "cannot be served at: Address already in use; name another"),
        (["--policy", "base", "--port", "70000"], "127.0.0.1:70000 cannot be served at: ports go up to 65535"),
        (["--policy", "base", "--host", "0.0.0.0", "--api-key", ""], "--api-key (or ALIGNFLOW_API_KEY) is empty"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(
    served: Serving,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    folder = served.view.folder
    (tmp_path / "study.yaml").write_text("version: 1\nname: served\n" + STUDY.replace("./", f"{folder}/"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    taken = served.url.split(":")[2].removesuffix("/v1")
    status, _, err = told(capsys, "serve", "study.yaml", *(taken if a == "TAKEN" else a for a in arguments))
    assert status == 2 and len(err) == 1 and words in err[0]


def test_more_settings_than_there_is_room_for_wait_their_turn(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tasks import live

    monkeypatch.setattr(live, "LANES", 2)
    Steps(monkeypatch, 0.02)  # so that they meet
    temperatures = [0.5 + number / 10 for number in range(7)]
    with ThreadPoolExecutor(7) as threads:
        together = list(threads.map(lambda t: asked(client, "base", temperature=t), temperatures))
    alone = [asked(client, "base", temperature=t) for t in temperatures]
    assert [a.choices[0].message.content for a in together] == [a.choices[0].message.content for a in alone]


@pytest.mark.parametrize(
    ("body", "message"), [('{"model": ', "the body is no JSON: "), ('{"model": "\\ud800"}', "holds half a character")]
)
def test_what_is_no_text_at_all_is_told_in_the_interface_s_form(served: Serving, body: str, message: str) -> None:
    answer = httpx.post(f"{served.url}/completions", content=body, headers={"content-type": "application/json"})
    problem = answer.json()["error"]
    assert answer.status_code == 400 and message in problem["message"]
    assert problem["param"] in (None, "model")


def test_a_page_that_calls_this_machine_by_a_name_of_its_own_is_refused(served: Serving) -> None:
    answer = httpx.get(f"{served.url}/models", headers={"Host": "evil.example"})
    assert answer.status_code == 400 and "names of this machine" in answer.json()["error"]["message"]
    for name in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert httpx.get(f"{served.url}/models", headers={"Host": name}).status_code == 200
