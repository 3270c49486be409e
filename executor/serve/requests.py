"""A request for a chat completion, read strictly: JSON in, an `Ask` out, or one `Refusal` that says what is wrong.

    {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,…"}},
                                               {"type": "text", "text": "What happens?"}]}], "stream": true, …}

Media come as data URLs; as file:NAME from the server's media folder, if it has one; or by http(s), if the URL begins
with one that the server allows, without redirects. Keys that are unknown, or ask for what is not done (tools, several
answers, log-probabilities), are refused by name. Leaves out audio and system turns: the model's template has its own.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

import msgspec

from longvila.answering import Sampler
from longvila.job import JobError
from longvila.settings import read_settings
from longvila.tokens import Turn, media_tags

MOST_MEDIA = 16
MOST_MESSAGES = 1024
"""Also of parts in one of them."""
MOST_STOPS = 4
FETCH_S = 30.0
_ROLES = {"user": "human", "assistant": "gpt"}
_PARTS = {"video_url": "video", "image_url": "image"}


class Refusal(Exception):
    """What the client gets: an HTTP status, one line, and the request's key if one is at fault."""

    def __init__(self, message: str, *, status: int = 400, key: str | None = None) -> None:
        super().__init__(message)
        self.status, self.key = status, key


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes."""

    new_tokens: int
    media_bytes: int  # of all media of a request
    media_folder: Path | None = None
    urls: tuple[str, ...] = ()  # beginnings of what may be fetched
    temperature: float = 0.0  # where a request names none


@dataclass(frozen=True, kw_only=True)
class Medium:
    kind: str  # video | image
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question, ready to be answered."""

    turns: tuple[Turn, ...]
    media: tuple[Medium, ...]  # in the order of their tags in the turns
    sampler: Sampler
    new_tokens: int
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False  # of a stream: tell it in a last chunk


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """The keys of a request; those after `stream_options` must have the value that asks for nothing."""

    messages: list[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    n: int | None = None
    user: str | None = None


def read(body: bytes, model: str, limits: Limits, draw_seed: int) -> Ask:
    """The question of a request; blocking where media are fetched. `draw_seed` serves where the request has none."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Refusal(f"the body is not JSON: {' '.join(str(fault).split())[:200]}") from None
    if not isinstance(given, dict):
        raise Refusal("the body must be a JSON object")
    try:
        request = read_settings(ChatRequest, given, "request")
        sampler = Sampler(
            temperature=limits.temperature if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=request.top_k or 0,
            seed=draw_seed if request.seed is None else request.seed,
        )
    except JobError as fault:
        raise Refusal(str(fault).replace("unknown setting", "unknown key").replace("settings: ", "")) from None
    if request.model not in (None, model):
        raise Refusal(f"model {request.model!r} is not served here; legal: {model}", status=404, key="model")
    if request.n not in (None, 1):
        raise Refusal(f"n={request.n} answers to a request are not given; legal: 1", key="n")
    if odd := sorted({*(request.stream_options or {})} - {"include_usage"}):
        raise Refusal(f"unknown key 'stream_options.{odd[0]}'; legal: include_usage", key="stream_options")
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if wanted is not None and not 1 <= wanted <= limits.new_tokens:
        raise Refusal(f"max_tokens={wanted} must be from 1 to {limits.new_tokens}", key="max_tokens")
    turns, media = _conversation(request.messages, limits)
    return Ask(
        turns=turns, media=media, sampler=sampler, new_tokens=wanted or limits.new_tokens, stops=_stops(request.stop),
        stream=bool(request.stream), usage=(request.stream_options or {}).get("include_usage", False),
    )  # fmt: skip


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > MOST_STOPS or not all(stops):
        raise Refusal(f"stop must be at most {MOST_STOPS} texts, none empty", key="stop")
    return stops


def _conversation(messages: Sequence[dict[str, Any]], limits: Limits) -> tuple[tuple[Turn, ...], tuple[Medium, ...]]:
    turns: list[Turn] = []
    media: list[Medium] = []
    if len(messages) > MOST_MESSAGES:
        raise Refusal(f"{len(messages)} messages; at most {MOST_MESSAGES}", key="messages")
    for place, message in enumerate(messages):
        where, role = f"messages[{place}]", message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise Refusal(f"{where}: role {role!r} is not one of {', '.join(_ROLES)}", key="messages")
        if role != list(_ROLES)[place % 2]:
            raise Refusal(f"{where}: role {role!r}; turns alternate, and user begins", key="messages")
        if odd := sorted({*message} - {"role", "content", "name"}):
            raise Refusal(f"{where}: unknown key {odd[0]!r}", key="messages")
        if not isinstance(message.get("name"), str | None):
            raise Refusal(f"{where}: name must be text", key="messages")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise Refusal(f"{where}: content must be text or a list of parts", key="messages")
        if len(parts) > MOST_MESSAGES:
            raise Refusal(f"{where}: {len(parts)} parts; at most {MOST_MESSAGES}", key="messages")
        text = "".join(_part(part, f"{where}.content[{number}]", role, media, limits)
                       for number, part in enumerate(parts))  # fmt: skip
        turns.append(Turn(role=_ROLES[role], text=text))
    if not turns or turns[-1].role != "human":
        raise Refusal("messages must end with a turn of the user", key="messages")
    return tuple(turns), tuple(media)


def _part(part: Any, where: str, role: str, media: list[Medium], limits: Limits) -> str:
    """The part's text; a medium is added to `media` and leaves its tag."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(text := part.get("text"), str):
        if media_tags([Turn(role="human", text=text)]):
            raise Refusal(f"{where}: text may not hold <video> or <image>; add it as a part", key="messages")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Refusal(f"{where}: text holds half a surrogate pair, which is no character", key="messages")
        return text
    if kind not in _PARTS or role != "user":
        raise Refusal(f"{where}: a part is a text, or in a user's turn {' or '.join(_PARTS)}", key="messages")
    holder = part.get(kind)
    url = holder.get("url") if isinstance(holder, dict) else None
    if not isinstance(url, str):
        raise Refusal(f'{where}: {kind} must be {{"url": …}}', key="messages")
    if len(media) == MOST_MEDIA:
        raise Refusal(f"{where}: more than {MOST_MEDIA} media", key="messages")
    room = limits.media_bytes - sum(len(one.content) for one in media)
    media.append(Medium(kind=_PARTS[kind], content=_content(url, where, limits, room)))
    return f"<{_PARTS[kind]}>\n"


def _content(url: str, where: str, limits: Limits, room: int) -> bytes:
    scheme, _, rest = url.partition(":")
    if scheme == "data":
        head, comma, text = rest.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refusal(f"{where}: a data URL must be data:TYPE;base64,…", key="messages")
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(f"{where}: the data URL is not base64", key="messages") from None
    elif scheme == "file" and limits.media_folder is not None:
        content = _from_folder(rest.removeprefix("//"), where, limits.media_folder, room)
    elif scheme in ("http", "https") and not _climbs(url) and any(url.startswith(allowed) for allowed in limits.urls):
        content = _fetched(url, where, room)
    else:
        legal = ["data:", *(["file:NAME"] if limits.media_folder else []), *limits.urls]
        raise Refusal(f"{where}: media are not taken from {url[:60]!r}; legal: {', '.join(legal)}", key="messages")
    if len(content) > room:
        raise Refusal(f"{where}: media of more than {limits.media_bytes} bytes", status=413, key="messages")
    if not content:
        raise Refusal(f"{where}: the media are empty", key="messages")
    return content


def _from_folder(name: str, where: str, folder: Path, room: int) -> bytes:
    try:
        file = (folder / name.lstrip("/")).resolve()
        if file.is_relative_to(folder.resolve()) and file.is_file():
            with file.open("rb") as stream:
                return stream.read(room + 1)
    except (OSError, ValueError):  # a name that is too long or holds a NUL, a file that may not be read
        pass
    raise Refusal(f"{where}: {name[:60]!r} is not in the media folder", key="messages")


def _climbs(url: str) -> bool:
    """Whether a server may read the URL as one that lies above what it begins with.

    >>> [_climbs(f"https://host/open/{rest}") for rest in ("a..b/clip", "../secret", "%2E./secret")]
    [False, True, True]
    """
    return ".." in urllib.parse.unquote(url).replace("\\", "/").split("/")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


def _fetched(url: str, where: str, room: int) -> bytes:
    """All of it within `FETCH_S`, whatever the server's pace; what ends early is no clip."""
    until_s, content = time.monotonic() + FETCH_S, bytearray()
    try:
        with urllib.request.build_opener(_NoRedirect).open(url, timeout=FETCH_S) as answer:
            while len(content) <= room and (more := answer.read1(2**16)):
                content += more
                if time.monotonic() > until_s:
                    raise TimeoutError(f"it has not come within {FETCH_S:g} s")
            if len(content) <= room and answer.length:
                raise OSError(f"it ends {answer.length} bytes early")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as fault:
        raise Refusal(f"{where}: {url[:60]!r} cannot be fetched: {fault}", key="messages") from None
    return bytes(content)
