"""Load `executor serve` with OpenAI's client: many streams at once, one that leaves, two that are wrong; nothing lost.

    python -m benchmarks.serve_load [--streams 16] [--tokens 64]         a server of 2 CPU ranks, tiny model, made here
    python -m benchmarks.serve_load --url http://127.0.0.1:8000          one that runs already

Every stream asks about the video and must bring, piece by piece, the text that a plain request brings; more streams
than the server takes at a time wait and ask again, as the client does by itself (429). One stream is left after its
first piece, one request is no object, one has a video that is none. Prints how many answers were whole, left and
refused, pieces and answers a second, and the time to the first piece, from a stream's first request on, median and
95th percentile. Exit code 1 if anything was lost, or if the server still has work at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

QUESTIONS = ("What does the rabbit do?", "What happens?", "Describe the video.")
CLIP = Path(__file__).parents[1] / "examples" / "media" / "rabbit.mp4"


@dataclass(frozen=True, kw_only=True)
class Heard:
    text: str
    first_s: float
    pieces: int


@dataclass(frozen=True, kw_only=True)
class Report:
    faults: list[str]  # empty if nothing was lost
    heard: list[Heard]
    took_s: float

    def lines(self) -> list[str]:
        firsts, pieces = sorted(one.first_s for one in self.heard), sum(one.pieces for one in self.heard)
        late = firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))]
        return [
            f"streams      {len(self.heard)} whole, 1 left, 2 refused; {len(self.faults)} faults",
            f"throughput   {pieces / self.took_s:.1f} pieces/s, {len(self.heard) / self.took_s:.2f} answers/s",
            f"first piece  median {statistics.median(firsts):.2f} s, 95% within {late:.2f} s, last {firsts[-1]:.2f} s",
            *self.faults,
        ]


def asked(video: Path | None, question: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if video is not None:
        url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
        parts.insert(0, {"type": "video_url", "video_url": {"url": url}})
    return [{"role": "user", "content": parts}]


async def stream(client: Any, model: str, messages: Any, tokens: int, leave_after: int | None = None) -> Heard:
    began_s, first_s, texts = time.monotonic(), 0.0, []
    answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, stream=True)
    async for chunk in answer:
        if chunk.choices and chunk.choices[0].delta.content:
            first_s = first_s or time.monotonic() - began_s
            texts.append(chunk.choices[0].delta.content)
        if leave_after is not None and len(texts) >= leave_after:
            await answer.close()
            break
    return Heard(text="".join(texts), first_s=first_s, pieces=len(texts))


async def refused(call: Any) -> str:
    """The status and message of a request that must be refused."""
    try:
        await call
    except openai.APIStatusError as error:
        return f"{error.status_code}: {error.body}" if 400 <= error.status_code < 500 else ""
    return ""


async def load(url: str, streams: int, video: Path, tokens: int) -> Report:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=50, timeout=600)
    model = (await client.models.list()).data[0].id
    wanted = {}
    for question in QUESTIONS:
        answer = await client.chat.completions.create(model=model, messages=asked(video, question), max_tokens=tokens)  # type: ignore[arg-type]
        wanted[question] = answer.choices[0].message.content
    names = [QUESTIONS[number % len(QUESTIONS)] for number in range(streams)]
    began_s = time.monotonic()
    broken = asked(None, "?")
    broken[0]["content"].append({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}})
    *heard, left, no_json, no_video = await asyncio.gather(
        *(stream(client, model, asked(video, question), tokens) for question in names),
        stream(client, model, asked(video, QUESTIONS[0]), tokens, leave_after=1),
        refused(client.post("/chat/completions", cast_to=object, body=["no object"])),
        refused(client.chat.completions.create(model=model, messages=broken)),
    )
    took_s = time.monotonic() - began_s
    faults = [f"stream {n} lost text: {one.text!r}, wanted {wanted[q]!r}"
              for n, (one, q) in enumerate(zip(heard, names, strict=True)) if one.text != wanted[q]]  # fmt: skip
    faults += [] if left.pieces == 1 else [f"the stream that was left had {left.pieces} pieces"]
    faults += [] if no_json.startswith("400") else [f"a body that is no request: {no_json or 'not refused'}"]
    faults += [] if no_video.startswith("400") else [f"a video that is none: {no_video or 'not refused'}"]
    return Report(faults=faults + await left_over(client, url), heard=heard, took_s=took_s)


async def left_over(client: Any, url: str) -> list[str]:
    """What the server's own figures say once all clients are gone."""
    idle, until_s = ("mmsp_waiting 0.0", "mmsp_working 0.0"), time.monotonic() + 10
    while True:
        figures = (await client._client.get(f"{url}/metrics")).text
        if all(one in figures for one in idle) or time.monotonic() > until_s:
            break
        await asyncio.sleep(0.1)
    faults = [] if all(one in figures for one in idle) else ["the server still has work"]
    counted = 'mmsp_requests_total{end="cancelled"}' in figures
    return faults if counted else [*faults, "the stream that was left is not counted"]


@contextmanager
def served(folder: Path, ranks: int, **settings: object) -> Iterator[str]:
    """The URL of a server of the tiny model, of one training step, on CPU ranks; it must end as one that is stopped."""
    from cost_models import Cluster, Model, Workload
    from cost_models.workload import Precision
    from longvila import train
    from longvila.job import Job
    from planner.planning import plan

    turns = [{"from": "human", "value": "say"}, {"from": "gpt", "value": "this"}]
    (folder / "rows.jsonl").write_text(json.dumps({"id": "0", "conversations": turns}))
    train.main(Job(config={"data": [str(folder / "rows.jsonl")], "run": str(folder / "run"), "steps": 1}))
    fp32 = Precision(param="fp32")
    workload = Workload(Model.load("longvila-tiny"), context_tokens=256, global_batch=1, precision=fp32)
    plan(Cluster.load("local", gpus=ranks), workload, fixed={"ulysses": ranks}).save(folder / "plan.json")
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"checkpoint": str(folder / "run"), "frames": 2, **settings}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    command = [str(Path(sys.executable).parent / "executor"), "serve", "plan.json", *sets, "--listen", listen]
    with (folder / "server.txt").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            while "listening" not in (folder / "server.txt").read_text(encoding="utf-8"):
                if server.poll() is not None:
                    raise SystemExit((folder / "server.txt").read_text(encoding="utf-8"))
                time.sleep(0.05)
            yield f"http://{listen}"
        finally:
            server.send_signal(signal.SIGTERM)
            if server.wait(30) != 130:
                raise SystemExit(f"the server ended badly: {(folder / 'server.txt').read_text(encoding='utf-8')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a running server; default: one is made, of the tiny model")
    parser.add_argument("--ranks", type=int, default=2, help="of a server that is made here")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--video", type=Path, default=CLIP)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    given = parser.parse_args()
    if given.url:
        report = asyncio.run(load(given.url, given.streams, given.video, given.tokens))
    else:
        with tempfile.TemporaryDirectory(prefix="serve-load-") as folder, served(Path(folder), given.ranks) as url:
            report = asyncio.run(load(url, given.streams, given.video, given.tokens))
    print("\n".join(report.lines()))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
