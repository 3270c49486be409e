"""Load a running `executor serve` with OpenAI's client: many streams, some that leave, some that are wrong.

    executor serve plan.json --set checkpoint=runs/example --listen 127.0.0.1:8000
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --streams 16 --video examples/media/rabbit.mp4

Every stream asks about the video and must bring, piece by piece, the text that a plain request brings. One stream is
left after its first piece, one request is no JSON, one has a video that is none. Prints the time to the first piece,
the pieces a second, and what was lost; exit code 1 if anything was, or if the server still has work at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

QUESTIONS = ("What does the rabbit do?", "What happens?", "Describe the video.")


@dataclass(frozen=True, kw_only=True)
class Heard:
    text: str
    first_s: float
    pieces: int


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


async def load(url: str, streams: int, video: Path | None, tokens: int) -> list[str]:
    """Faults; empty if nothing was lost."""
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
    figures = (await client.with_options(max_retries=0)._client.get(f"{url}/metrics")).text
    until_s = time.monotonic() + 10
    while not all(f"{name} 0.0" in figures for name in ("mmsp_waiting", "mmsp_working")) and time.monotonic() < until_s:
        await asyncio.sleep(0.1)
        figures = (await client._client.get(f"{url}/metrics")).text
    faults += [] if "mmsp_working 0.0" in figures and "mmsp_waiting 0.0" in figures else ["the server still has work"]
    faults += (
        [] if 'mmsp_requests_total{end="cancelled"} 1.0' in figures else ["the stream that was left is not counted"]
    )
    firsts = [one.first_s for one in heard]
    pieces = sum(one.pieces for one in heard)
    print(f"{streams} streams in {took_s:.2f} s; first piece {statistics.median(firsts):.2f} s (at most "
          f"{max(firsts):.2f}); {pieces / took_s:.0f} pieces a second; lost: {len(faults)}")  # fmt: skip
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    faults = asyncio.run(load(given.url, given.streams, given.video, given.tokens))
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
