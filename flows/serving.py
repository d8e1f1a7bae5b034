"""`alignflow serve`: policies of a study behind OpenAI's HTTP interface.

Nothing is built: what the policies are made of must have been run. Requests are decoded together (`tasks.live`); who goes
away in the middle frees the rows that were taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from flows.openai_api import Answering, ChatCompletion, Completion, error, every_asked, usage
from specs.problems import UserError, did_you_mean, listed
from tasks.live import Live
from tasks.requests import Asked, Done, End, Event, Failed, Piece

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Heard = TypeVar("Heard")
STATUS = {"request": 400, "policy": 500, "busy": 429, "closing": 503}
AWAY = 0.5
"""Seconds between two looks at whether a client that waits for a whole answer is still there."""


class Refused(Exception):
    """An answer of the interface that is an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.response = JSONResponse(error(message, kind, param=param, code=code), status)


class Underway:
    """The answers to a request: one for each of its prompts, all heard in one place."""

    def __init__(self, live: Live, asked: Sequence[Asked]) -> None:
        loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.samples = asked[0].samples
        self.choices = self.samples * len(asked)
        self._left = len(asked)

        def telling(number: int) -> Callable[[Event], None]:
            def tell(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody hears any more
                    loop.call_soon_threadsafe(self.events.put_nowait, (number, event))

            return tell

        self._give_up = [live.ask(one, telling(number)) for number, one in enumerate(asked)]

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Each event with the choice that it is of. Raises `Refused` where there will be no answer."""
        while self._left:
            number, event = await self.events.get()
            if isinstance(event, Failed):
                raise Refused(STATUS[event.fault], event.message)
            self._left -= isinstance(event, Done)
            yield (0 if isinstance(event, Done) else number * self.samples + event.choice), event

    def give_up(self) -> None:
        for give_up in self._give_up:
            give_up()


def application(live: Live, *, api_key: str | None = None) -> FastAPI:
    """The interface to the policies of `live`."""

    async def authorised(request: Request) -> None:
        # Without a key a page in somebody's browser must not reach it by a name of its own for this address.
        if api_key is None and request.url.hostname not in LOOPBACK:
            raise Refused(400, "this server answers to the names of this machine alone; others take an --api-key")
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not secrets.compare_digest(given.encode(), api_key.encode()):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    app = FastAPI(
        title="AlignFlow", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(authorised)]
    )
    started = int(time.time())

    @app.exception_handler(Refused)
    async def refused(_: Request, problem: Refused) -> Response:
        return problem.response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> Response:
        first = problem.errors()[0]
        # Between the names of parameters Pydantic puts those of types, such as `list[constrained-str]`.
        is_json = first["type"] != "json_invalid"  # the place of what is not is a number of bytes
        inside = [
            str(part)
            for part in first["loc"][1:]
            if re.fullmatch(r"[a-z_]+|[0-9]+", str(part)) and part != "str" and is_json
        ]
        place = ".".join(inside)
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"`{place}` is no parameter of this interface"
        elif not is_json:
            message = f"the body is no JSON: {first['ctx']['error']}"
        elif place:
            message = f"{place}: {message}"
        elif first["type"] == "model_attributes_type":
            message = "the body is to be a JSON object, sent as `Content-Type: application/json`"
        return JSONResponse(error(message, "invalid_request_error", param=place or None), 400)

    @app.exception_handler(HTTPException)
    async def failed(_: Request, problem: HTTPException) -> Response:
        return JSONResponse(error(str(problem.detail), "invalid_request_error"), problem.status_code)

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "alignflow"}

    def check(name: str) -> None:
        if name not in live.policies:
            hint = did_you_mean(name, live.policies) or f"; there are {listed(list(live.policies))}"
            raise Refused(404, f"there is no model `{name}`{hint}", param="model", code="model_not_found")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in live.policies]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check(name)
        return model(name)

    async def respond(body: ChatCompletion | Completion, request: Request) -> Response:
        check(body.model)
        if (body.most or 0) > live.max_new_tokens:
            param = "max_completion_tokens" if body.most != body.max_tokens else "max_tokens"
            raise Refused(400, f"an answer has at most {live.max_new_tokens} tokens here", param=param)
        asking = Underway(live, every_asked(body))
        if not body.stream:
            return JSONResponse(await _whole(asking, Answering(body), request))
        events = aiter(asking)
        # What is wrong with a request is told before the stream begins.
        first = await _heard(asyncio.ensure_future(anext(events)), asking, request)
        if first is None:
            return Response(status_code=499)  # nobody is there to read it
        lines = _stream(
            asking, first, events, Answering(body), bool(body.stream_options and body.stream_options.include_usage)
        )
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @app.post("/v1/chat/completions")
    async def chat(body: ChatCompletion, request: Request) -> Response:
        return await respond(body, request)

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Response:
        return await respond(body, request)

    return app


async def _whole(asking: Underway, answering: Answering, request: Request) -> dict[str, Any]:
    """The answer once all of it is there."""
    texts, reasons, done = [""] * asking.choices, [""] * asking.choices, list[Done]()

    async def gather() -> None:
        async for choice, event in asking:
            match event:
                case Piece():
                    texts[choice] += event.text
                case End():
                    reasons[choice] = event.reason
                case Done():
                    done.append(event)

    await _heard(asyncio.ensure_future(gather()), asking, request)
    return answering.whole(texts, reasons, usage(done))


async def _heard(waiting: asyncio.Future[Heard], asking: Underway, request: Request) -> Heard | None:
    """What is waited for; None where the client went away meanwhile, who gives the request up by that."""
    try:
        while not (await asyncio.wait([waiting], timeout=AWAY))[0]:
            if await request.is_disconnected():
                asking.give_up()
                return None
        return await waiting
    except BaseException:
        asking.give_up()
        raise
    finally:
        waiting.cancel()


async def _stream(
    asking: Underway,
    first: tuple[int, Event],
    events: AsyncIterator[tuple[int, Event]],
    answering: Answering,
    with_usage: bool,
) -> AsyncIterator[str]:
    """The answer as it comes, in server-sent events."""
    done = list[Done]()
    try:
        for begun in answering.begun(asking.choices):
            yield _sent(begun)
        try:
            async for choice, event in _after(first, events):
                match event:
                    case Piece():
                        yield _sent(answering.more(choice, event.text))
                    case End():
                        yield _sent(answering.end(choice, event.reason))
                    case Done():
                        done.append(event)
        except Refused as problem:
            yield f"data: {bytes(problem.response.body).decode()}\n\n"
        else:
            if with_usage:
                yield _sent(answering.used(usage(done)))
        yield "data: [DONE]\n\n"
    finally:
        asking.give_up()


async def _after(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


def _sent(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def serve(live: Live, *, host: str, port: int, api_key: str | None) -> None:
    """Serve until interrupted; port 0 is any free one. Raises `UserError` for a place that cannot be had."""
    if api_key is not None and not api_key.strip():
        raise UserError(
            "--api-key (or ALIGNFLOW_API_KEY) is empty: whoever sends none would have it; give one, or unset it"
        )
    if api_key is None and host not in LOOPBACK:
        raise UserError(f"--host {host} is open to others; give an --api-key, or leave --host out")
    with _bound(host, port) as place:
        live.load()
        live.start()
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {listed(list(live.policies))} at http://{shown}:{place.getsockname()[1]}/v1", flush=True)
        app = application(live, api_key=api_key)
        # What is being answered when an interrupt comes has two seconds more.
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        try:
            uvicorn.Server(config).run(sockets=[place])
        except KeyboardInterrupt:  # how uvicorn hands on the interrupt that it ended by
            print("stopped", flush=True)
        finally:
            live.close()


def _bound(host: str, port: int) -> socket.socket:
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
        place.listen(2048)  # from now on whoever comes waits, and nobody is turned away
    except (OSError, OverflowError) as problem:
        place.close()
        why = problem.strerror if isinstance(problem, OSError) else "ports go up to 65535"
        raise UserError(f"{host}:{port} cannot be served at: {why}; name another --host or --port") from None
    return place
