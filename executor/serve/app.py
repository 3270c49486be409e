"""The HTTP side of a server: OpenAI's chat completions, models, health and metrics, in a thread of rank 0.

    POST /v1/chat/completions   an answer, or with "stream" its pieces as server-sent events, then data: [DONE]
    GET /v1/models · /health (waiting and working) · /metrics (Prometheus)

4xx: 400 and 404 say what is wrong with the request, 413 it is too large, 429 too many wait; never a traceback. A client
that leaves frees its slot before the next step. No authentication and no TLS: put a proxy in front.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Thread
from typing import Any

from cost_models.errors import InputError
from executor.serve.desk import Begun, Desk, Full, Refused, Ticket
from executor.serve.requests import Limits, Refusal, read
from executor.serve.settings import ServeSettings
from longvila.tokens import Tokenizer

try:
    import uvicorn
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise InputError(f"{error.name} is not installed: pip install 'mmsp[serve]'") from None

_BODY_S = 120.0
_SPARE_CONNECTIONS = 64  # besides two for each answer that may be asked for
_LOOK_S = 0.25  # how often a silent answer looks whether its client is there


@contextmanager
def serving(settings: ServeSettings, desk: Desk) -> Iterator[Callable[[Tokenizer], None]]:
    """Take the port; what is given, once called with the tokenizer, serves until the context ends."""
    host, _, port = settings.listen.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise InputError(f"--listen {settings.listen} cannot be used: {error.strerror}") from None
    servers: list[tuple[uvicorn.Server, Thread]] = []

    def ready(tokenizer: Tokenizer) -> None:
        app = application(desk, tokenizer, settings.name, settings.limits, settings.max_request_bytes)
        most = _SPARE_CONNECTIONS + 2 * (settings.slots + settings.waiting)  # more are told 503
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, limit_concurrency=most
            )
        )
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
        thread.start()
        servers.append((server, thread))
        print(f"listening on http://{host}:{listener.getsockname()[1]}/v1, model {settings.name}", flush=True)

    try:
        yield ready
    finally:
        for server, thread in servers:
            server.should_exit = True
            thread.join(5)
        listener.close()


class Text:
    """The text of an answer, token by token: whole characters, up to a stop text, which is left out."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._start = self._read = 0  # ids from `start` are decoded together; those before `read` are in the text
        self._held = ""  # may be the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """What the answer has more by this token; empty within a character, or a stop text."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        whole = self._tokenizer.decode(self._ids[self._start :])
        if len(whole) <= len(before) or whole.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(whole[len(before) :])

    def end(self) -> str:
        """What is left when no token follows."""
        if self.stopped:
            return ""
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._release(self._tokenizer.decode(self._ids[self._start :])[len(before) :]) + self._held

    def _release(self, more: str) -> str:
        text = self._held + more
        at = min((text.find(stop) for stop in self._stops if stop in text), default=None)
        if at is not None:
            self.stopped, self._held = True, ""
            return text[:at]
        held = max(
            (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


class Metrics:
    """What /metrics shows; a registry of its own, so that servers of one process do not mix."""

    def __init__(self, desk: Desk) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("mmsp_requests", "Requests by their end", ["end"], **own)
        self.prompt_tokens = Counter("mmsp_prompt_tokens", "Tokens of prompts, frames included", **own)
        self.answer_tokens = Counter("mmsp_answer_tokens", "Tokens of answers", **own)
        buckets = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
        self.first_token_s = Histogram(
            "mmsp_first_token_seconds", "From request to first token", buckets=buckets, **own
        )
        self.token_s = Histogram("mmsp_token_seconds", "Between tokens", buckets=buckets, **own)
        for place, name in enumerate(("waiting", "working")):
            gauge = Gauge(f"mmsp_{name}", f"Requests that are {name}", **own)
            gauge.set_function(partial(_count, desk, place))


def _count(desk: Desk, place: int) -> float:
    return desk.counts[place]


@dataclass(eq=False)
class _Answer:
    """One request from its ticket to its end."""

    ticket: Ticket
    desk: Desk
    metrics: Metrics
    text: Text
    prompt_tokens: int = 0
    tokens: int = 0
    finish: str = ""  # stop | length, once it has ended
    _last_s: float = field(default_factory=time.monotonic)

    async def pieces(self, gone: Callable[[], Any]) -> AsyncIterator[str]:
        """The texts; the first is empty and comes when the prompt was read. Leaves the desk in any case."""
        try:
            while not self.finish:
                try:
                    told = await asyncio.wait_for(self.ticket.events.get(), _LOOK_S)
                except TimeoutError:
                    if await gone():
                        raise ClientDisconnect from None
                    continue
                if isinstance(told, Refused):
                    raise Refusal(told.message)
                if isinstance(told, Begun):
                    self.prompt_tokens = told.prompt_tokens
                    self.metrics.prompt_tokens.inc(told.prompt_tokens)
                    yield ""
                    continue
                self._time()
                self.tokens += 1
                self.metrics.answer_tokens.inc()
                piece = "" if told.end == "stop" else self.text.push(told.token)
                self.finish = told.end or ("stop" if self.text.stopped else "")
                piece += self.text.end() if self.finish else ""
                if piece:
                    yield piece
            self.metrics.requests.labels("done").inc()
        except (ClientDisconnect, asyncio.CancelledError, GeneratorExit):
            self.metrics.requests.labels("cancelled").inc()
            raise
        except Refusal:
            self.metrics.requests.labels("refused").inc()
            raise
        finally:
            self.desk.cancel(self.ticket)

    def _time(self) -> None:
        now_s = time.monotonic()
        if self.tokens:
            self.metrics.token_s.observe(now_s - self._last_s)
        else:
            self.metrics.first_token_s.observe(now_s - self.ticket.came_s)
        self._last_s = now_s

    @property
    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


def application(desk: Desk, tokenizer: Tokenizer, model: str, limits: Limits, body_bytes: int) -> Starlette:
    """The ASGI application; what a body may hold follows from its bytes."""
    metrics, began = Metrics(desk), int(time.time())

    async def chat(request: Request) -> Response:
        try:
            body = await _body(request, body_bytes)
            ask = await asyncio.to_thread(read, body, model, limits, secrets.randbelow(2**63))
            ticket = desk.submit(ask, asyncio.get_running_loop())
        except ClientDisconnect:
            metrics.requests.labels("cancelled").inc()
            return Response(status_code=499)
        except Refusal as refusal:
            metrics.requests.labels("refused").inc()
            return _refused(refusal)
        except Full:
            metrics.requests.labels("refused").inc()
            response = _refused(Refusal("too many requests wait; come again", status=429))
            response.headers["Retry-After"] = "1"
            return response
        answer = _Answer(ticket, desk, metrics, Text(tokenizer, ask.stops))
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        pieces = answer.pieces(request.is_disconnected)
        try:
            await anext(pieces)  # what is wrong with the prompt is said by a status, also of a stream
            if ask.stream:
                events = _events(head, answer, pieces, ask.usage)
                return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            text = "".join([piece async for piece in pieces])
        except Refusal as refusal:
            return _refused(refusal)
        except ClientDisconnect:
            return Response(status_code=499)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish, "logprobs": None}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": answer.usage})

    async def models(request: Request) -> Response:
        entry = {"id": model, "object": "model", "created": began, "owned_by": "mmsp"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(request: Request) -> Response:
        waiting, working = desk.counts
        return JSONResponse({"status": "ok", "waiting": waiting, "working": working})

    async def figures(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
        Route("/metrics", figures),
    ]
    return Starlette(routes=routes)


async def _body(request: Request, most_bytes: int) -> bytes:
    """The body, not read further than it may be long. A data URL is a third longer than its media."""
    most, body = most_bytes * 4 // 3 + 2**20, bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise Refusal(f"the request has more than {most} bytes", status=413)
    except TimeoutError:
        raise Refusal(f"the request has not come within {_BODY_S:g} s", status=408) from None
    return bytes(body)


def _refused(refusal: Refusal) -> JSONResponse:
    kind = "rate_limit_error" if refusal.status == 429 else "invalid_request_error"
    error = {"message": str(refusal), "type": kind, "param": refusal.key, "code": None}
    return JSONResponse({"error": error}, status_code=refusal.status)


async def _events(head: dict[str, Any], answer: _Answer, pieces: AsyncIterator[str], usage: bool) -> AsyncIterator[str]:
    """Server-sent events: the role, each piece, the reason of the end, the usage if asked for, and [DONE]."""

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def choice(delta: dict[str, str], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    yield event(choice({"role": "assistant", "content": ""}))
    try:
        async for piece in pieces:
            yield event(choice({"content": piece}))
    except ClientDisconnect:
        return
    yield event(choice({}, answer.finish))
    if usage:
        yield event([], usage=answer.usage)
    yield "data: [DONE]\n\n"
