"""The server: requests read strictly, texts cut whole, the desk's bounds, and a launched one under load."""

import asyncio
import base64
import http.server
import json
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from starlette.testclient import TestClient

from executor.serve.app import Text, application
from executor.serve.desk import Begun, Desk, Full, Refused, Token
from executor.serve.requests import Limits, Refusal, read
from longvila.tokens import ByteTokenizer
from tests.executor.planned import ROOT

LIMITS = Limits(new_tokens=20, media_bytes=1000)


def data_url(content: bytes = b"clip") -> str:
    return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"


def video(url: str) -> dict:
    return {"type": "video_url", "video_url": {"url": url}}


def asking(*parts: object, **more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": list(parts) or "Why?"}], **more}).encode()


def test_a_request_becomes_turns_media_and_a_sampler():
    text = {"type": "text", "text": "What?"}
    ask = read(asking(text, video(data_url()), temperature=0.5, max_tokens=7, seed=3, stop="x"), "m", LIMITS, 0)
    assert ask.turns[0].text == "What?<video>\n" and ask.media[0].content == b"clip"
    assert (ask.sampler.temperature, ask.sampler.seed, ask.new_tokens, ask.stops) == (0.5, 3, 7, ("x",))
    plain = read(asking(), "m", LIMITS, 11)
    assert (plain.sampler.seed, plain.new_tokens, plain.stream) == (11, 20, False)


@pytest.mark.parametrize(
    ("body", "message", "status"),
    [
        (b"{", "the body is not JSON", 400),
        (b'{"a": NaN}', "the body is not JSON", 400),
        (b"[" * 100_000, "the body is not JSON", 400),
        (b"[]", "must be a JSON object", 400),
        (b"{}", "missing setting 'messages'", 400),
        (asking(tools=[]), "unknown key 'tools'", 400),
        (asking(temperature=-1), "temperature -1", 400),
        (asking(temperature="hot"), "'hot' is not a number", 400),
        (asking(top_p=0), "top_p 0", 400),
        (asking(n=2), "n=2", 400),
        (asking(max_tokens=21), "max_tokens=21 must be from 1 to 20", 400),
        (asking(max_completion_tokens=0), "max_tokens=0 must be from 1 to 20", 400),
        (asking(stream_options={"include_all": True}), "unknown key 'stream_options.include_all'", 400),
        (asking(stop=["a"] * 5), "stop must be at most 4", 400),
        (asking(model="other"), "'other' is not served here; legal: m", 404),
        (asking({"type": "text", "text": "<video>"}), "text may not hold <video>", 400),
        (asking({"type": "text", "text": "\ud800"}), "JSON|surrogate", 400),
        (asking({"type": "input_audio"}), "a part is a text", 400),
        (asking(video("data:video/mp4,abc")), "must be data:TYPE;base64", 400),
        (asking(video("data:video/mp4;base64,?")), "is not base64", 400),
        (asking(video("data:video/mp4;base64,")), "are empty", 400),
        (asking(video(data_url(b"x" * 1001))), "more than 1000 bytes", 413),
        (asking(video(data_url(b"x" * 600)), video(data_url(b"x" * 600))), "more than 1000 bytes", 413),
        (asking(*[video(data_url(b"x"))] * 17), "more than 16 media", 400),
        (asking(video("file:///etc/passwd")), "not taken from 'file:///etc/passwd'; legal: data:", 400),
        (asking(video("http://127.0.0.1/x")), "not taken from 'http://127.0.0.1/x'", 400),
        (asking(*[{"type": "text", "text": "a"}] * 1025), "1025 parts; at most 1024", 400),
        (json.dumps({"messages": [{"role": "user", "content": "a"}] * 1025}).encode(), "1025 messages; at most", 400),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "is not one of user, assistant", 400),
        (b'{"messages": [{"role": "user", "content": "x", "name": []}]}', "name must be text", 400),
        (b'{"messages": []}', "must end with a turn of the user", 400),
        (b'{"messages": [{"role": "system", "content": "x"}]}', "role 'system' is not one of user, assistant", 400),
    ],
)
def test_what_a_request_may_not_say_is_refused_by_name(body, message, status):
    with pytest.raises(Refusal, match=message) as refusal:
        read(body, "m", LIMITS, 0)
    assert refusal.value.status == status


def test_files_come_from_the_folder_and_urls_from_what_is_allowed_without_redirects(tmp_path, monkeypatch):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "clip.mp4").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "media" / "link").symlink_to(tmp_path / "secret")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith("odd"):
                self.wfile.write(b"no status line\r\n\r\n")
                return
            self.send_response(302 if "moved" in self.path else 200)
            self.send_header("Location", f"file://{tmp_path}/secret")
            if self.path.endswith(("early", "slow")):
                self.send_header("Content-Length", "70")
            self.end_headers()
            self.wfile.write(b"fetched")
            if self.path.endswith("slow"):  # never silent for long, and never done
                with suppress(OSError):
                    for _ in range(60):
                        self.wfile.write(b".")
                        time.sleep(0.05)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        limits = Limits(new_tokens=1, media_bytes=100, media_folder=tmp_path / "media", urls=(f"{base}open/",))

        def content(url):
            return read(asking(video(url)), "m", limits, 0).media[0].content

        assert content("file:clip.mp4") == content("file:///clip.mp4") == b"inside"
        assert content(f"{base}open/clip") == b"fetched"
        monkeypatch.setattr("executor.serve.requests.FETCH_S", 0.3)
        for url, message in {
            "file:../secret": "is not in the media folder", "file:link": "is not in the media folder",
            "file:gone": "is not in the media folder", "file:a\0b": "is not in the media folder",
            f"file:{'a' * 5000}": "is not in the media folder",
            f"{base}closed": "are not taken from", f"{base}open/../closed": "are not taken from",
            f"{base}open/%2e%2e/closed": "are not taken from", f"{base}open/..\\closed": "are not taken from",
            f"{base}open/moved": "cannot be fetched", f"{base}open/odd": "cannot be fetched: no status line",
            f"{base}open/a b": "cannot be fetched: URL can't contain control characters",
            f"{base}open/early": "cannot be fetched: it ends 63 bytes early",
            f"{base}open/slow": "cannot be fetched: it has not come within 0.3 s",
        }.items():  # fmt: skip
            with pytest.raises(Refusal, match=message):
                content(url)
        server.shutdown()


def texts(answer: str, *stops: str) -> tuple[list[str], bool]:
    text, pieces = Text(ByteTokenizer(), stops), []
    for token in answer.encode():
        if not text.stopped:
            pieces.append(text.push(token))
    return [*pieces, text.end()], text.stopped


def test_texts_come_in_whole_characters_and_end_before_a_stop():
    assert texts("aé€") == (["a", "", "é", "", "", "€", ""], False)
    assert texts("one two", " t") == (["o", "n", "e", "", "", ""], True)
    assert texts("one t", " two") == (["o", "n", "e", "", "", " t"], False)
    assert "".join(texts("x" * 50 + "stop it", "stop")[0]) == "x" * 50


def test_the_desk_takes_as_many_as_it_may_and_a_cancelled_ask_frees_its_place():
    desk, loop = Desk(slots=1, waiting=1), asyncio.new_event_loop()
    ask = read(asking(), "m", LIMITS, 0)
    first, second = desk.submit(ask, loop), desk.submit(ask, loop)
    with pytest.raises(Full):
        desk.submit(ask, loop)
    assert desk.next(0) == ([first], [], False) and desk.counts == (1, 1)
    desk.cancel(first)
    desk.cancel(first)
    assert desk.next(0) == ([second], [first.key], False) and desk.counts == (0, 1)
    desk.report([(first.key, Token(token=1)), (second.key, Token(token=2, end="stop"))])
    assert desk.counts == (0, 0)
    loop.run_until_complete(asyncio.sleep(0))
    assert first.events.empty() and second.events.get_nowait() == Token(token=2, end="stop")
    third, fourth = desk.submit(ask, loop), desk.submit(ask, loop)
    desk.cancel(fourth)
    assert desk.next(0)[0] == [third]
    desk.stop()
    assert desk.next(0) == ([], [], True)
    loop.close()


def answers(desk: Desk) -> None:
    """In place of ranks: each ask gets its question back; one with media is refused."""
    left: dict[int, list[int]] = {}
    while True:
        begin, drop, stop = desk.next(0.05)
        if stop:
            return
        for ticket in begin:
            if ticket.ask.media:
                desk.report([(ticket.key, Refused(message="no video"))])
            else:
                left[ticket.key] = list(ticket.ask.turns[0].text.encode())[: ticket.ask.new_tokens]
                desk.report([(ticket.key, Begun(prompt_tokens=5))])
        for key in drop:
            left.pop(key, None)
        for key in list(left):
            token, end = left[key].pop(0), "" if left[key] else "length"
            desk.report([(key, Token(token=token, end=end))])
            if end:
                del left[key]


def test_answers_plain_and_streamed_and_refusals():
    desk = Desk(slots=2, waiting=2)
    model = Thread(target=answers, args=(desk,))
    model.start()
    with TestClient(application(desk, ByteTokenizer(), "m", LIMITS, 1000)) as client:
        chat = "/v1/chat/completions"
        plain = client.post(chat, content=asking()).json()
        assert plain["choices"][0]["message"]["content"] == "Why?" and plain["choices"][0]["finish_reason"] == "length"
        assert plain["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        body = asking(stream=True, stop="y", stream_options={"include_usage": True})
        lines = [line.removeprefix("data: ") for line in client.post(chat, content=body).text.split("\n\n") if line]
        chunks = [json.loads(line) for line in lines[:-1]]
        deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
        assert [one["delta"].get("content") for one in deltas] == ["", "W", "h", None]
        assert deltas[-1]["finish_reason"] == "stop" and lines[-1] == "[DONE]"
        assert chunks[-1]["usage"]["completion_tokens"] == 3
        for stream in (False, True):
            refused = client.post(chat, content=asking(video(data_url()), stream=stream))
            assert (refused.status_code, refused.json()["error"]["message"]) == (400, "no video")
        assert client.post(chat, content=b"x" * 2**21).status_code == 413
        desk._most_waiting = -2
        full = client.post(chat, content=asking())
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        assert client.get("/health").json() == {"status": "ok", "waiting": 0, "working": 0}
        figures = client.get("/metrics").text
        assert 'mmsp_requests_total{end="done"} 2.0' in figures and 'end="refused"} 4.0' in figures
        assert "mmsp_answer_tokens_total 7.0" in figures and "mmsp_working 0.0" in figures
    desk.stop()
    model.join()


def test_a_launched_server_loses_nothing_under_load(tmp_path, monkeypatch):
    """Two ranks, more streams than places; one client leaves, two are wrong."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.serve_load import load, served

    with served(tmp_path, ranks=2, slots=2, waiting=2) as url:
        report = asyncio.run(load(url, 4, Path(ROOT, "examples", "media", "rabbit.mp4"), 4))
    assert report.faults == []
    assert "4 whole, 1 left, 2 refused; 0 faults" in report.lines()[0]
