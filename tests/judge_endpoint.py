"""A judge that is a function: OpenAI's interface on a free port of this machine, answered by rule."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

SHOWN = re.compile(
    r"(?P<criterion>.*)\[The dialogue\]\n(?P<prompt>.*)\n\n\[Answer A begins\]\n(?P<first>.*)\n\[Answer A ends\]"
    r"\n\n\[Answer B begins\]\n(?P<second>.*)\n\[Answer B ends\]",
    re.DOTALL,
)
TRIAL = "What is two and two?"

Rule = Callable[[str, str], str]


def longer(first: str, second: str) -> str:
    """The one with more characters."""
    return "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"


def always_first(first: str, second: str) -> str:
    return "The verdict is [[A]]"


def rambles(first: str, second: str) -> str:
    return "Both answers have much to be said for them, and"


class Endpoint:
    """What it was asked, and how it answers."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.asked: list[tuple[str, str, str]] = []
        """`(prompt, first answer, second answer)` in the order they came, but for trial questions."""
        self.trials = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Response] = []
        """What is answered first, before the rule is asked."""
        self.usage = True
        self.seconds = 0.0
        """How long an answer takes."""
        self.busy = self.most_at_once = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        await asyncio.sleep(self.seconds)
        self.busy -= 1
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        if self.faults:
            return self.faults.pop(0)
        (message,) = body["messages"]
        found = SHOWN.fullmatch(message["content"])
        assert found is not None and message["role"] == "user"
        prompt, first, second = found["prompt"], found["first"], found["second"]
        if prompt == TRIAL:
            self.trials += 1
        else:
            self.asked.append((prompt, first, second))
        text = self.rule(first, second)
        return JSONResponse(completion(text, len(message["content"].split()), len(text.split()), usage=self.usage))


def completion(text: str, prompt_tokens: int = 1, completion_tokens: int = 1, *, usage: bool = True) -> dict[str, Any]:
    """An answer in OpenAI's form."""
    counted = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    made = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub", "choices": [choice]}
    return made | ({"usage": counted | {"total_tokens": sum(counted.values())}} if usage else {})


def fault(status: int, message: str) -> Response:
    """An error in OpenAI's form. The client waits no time before it tries again."""
    return JSONResponse({"error": {"message": message}}, status, {"retry-after-ms": "1"})


@contextmanager
def serving(rule: Rule) -> Iterator[Endpoint]:
    """An endpoint that answers until the block ends."""
    endpoint = Endpoint(rule)
    app = FastAPI()
    app.add_api_route("/v1/chat/completions", endpoint.answer, methods=["POST"])
    with socket.create_server(("127.0.0.1", 0)) as place:
        endpoint.port = place.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield endpoint
        server.should_exit = True
        thread.join()
