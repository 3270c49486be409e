"""The serving job: rank 0 takes requests and says what to do, all ranks do it; a step gives each answer a token.

    rank 0: HTTP thread -> desk -> order --broadcast--> all ranks: drop, begin (decode, prefill), step -> events -> desk

An order is JSON and the bytes of its media, so nothing but rank 0 needs the files. A prompt that cannot be read on one
rank (a broken frame) is refused on all. While a prompt is prefilled, the other answers wait. Without work rank 0 sends
an empty order every second, which keeps ranks from waiting longer than a collective may. Plans with one replica only.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp

from cost_models.errors import InputError
from executor.groups import Axis
from executor.serve.desk import Begun, Desk, Refused, Token, Told
from executor.serve.settings import ServeSettings
from executor.sharding import ContextSharding
from longvila.answering import Answering, Sampler
from longvila.assemble import precision
from longvila.config import LongVilaConfig
from longvila.dataset import Documents, Row, Sample, row_batch
from longvila.generate import open_model
from longvila.job import Job, JobError
from longvila.settings import read_settings
from longvila.sharding import Batch
from longvila.tokens import Turn, Writer

IDLE_S = 1.0


def main(job: Job) -> None:
    """Serve over the plan's ranks until the process is told to end; collective. InputError: several replicas."""
    settings = read_settings(ServeSettings, job.config, "settings")
    sharding = job.sharding
    assert isinstance(sharding, ContextSharding), "served by the ranks of a plan"
    if sharding.data_count > 1:
        raise InputError(f"data={sharding.data_count}: a server is one replica; plan with --fix data=1")
    desk = Desk(slots=settings.slots, waiting=settings.waiting)
    if sharding.rank:
        _loop(_Ranks(settings, job, sharding, *open_model(settings, job)), None)
        return
    from executor.serve.app import serving

    with serving(settings, desk) as ready:
        ranks = _Ranks(settings, job, sharding, *open_model(settings, job))
        ready(ranks.writer.tokenizer)
        _loop(ranks, desk)


def _loop(ranks: _Ranks, desk: Desk | None) -> None:
    """Orders until one says stop; `desk` is rank 0's."""
    while True:
        order, media = {}, []
        if desk is not None:
            begin, drop, stop = desk.next(IDLE_S)
            order = {"drop": drop, "stop": stop, "begin": [
                {"key": ticket.key, "turns": [asdict(turn) for turn in ticket.ask.turns],
                 "media": [[one.kind, len(one.content)] for one in ticket.ask.media],
                 "sampler": asdict(ticket.ask.sampler), "new_tokens": ticket.ask.new_tokens}
                for ticket in begin
            ]}  # fmt: skip
            media = [one.content for ticket in begin for one in ticket.ask.media]
        told, stop = ranks.follow(order, media)
        if stop:
            return
        if desk is not None:
            desk.report(told)


class _Ranks:
    """This rank's part of the server."""

    def __init__(
        self, settings: ServeSettings, job: Job, sharding: ContextSharding,
        model: nn.Module, writer: Writer, config: LongVilaConfig,
    ) -> None:  # fmt: skip
        self._settings, self._job, self._config = settings, job, config
        self._context, self.writer = sharding.groups.context, writer
        self._answering = Answering(model, sharding, writer.stop_id)

    def follow(self, order: dict[str, Any], media: list[bytes]) -> tuple[list[tuple[int, Told]], bool]:
        """Do what rank 0's order says; the events of this step."""
        content = b"".join(media)
        idle = not (order.get("begin") or order.get("drop") or order.get("stop"))
        head = b"" if idle else json.dumps(order).encode()
        head = shared(head, self._context, self._job.device)
        order = json.loads(head) if head else {}
        told: list[tuple[int, Told]] = []
        self._answering.drop(order.get("drop", ()))
        if order.get("begin"):
            told += self._begin(order["begin"], shared(content, self._context, self._job.device))
        if len(self._answering):
            told += [(event.key, Token(token=event.token, end=event.end)) for event in self._answering.step()]
        return told, bool(order.get("stop"))

    def _begin(self, asks: list[dict[str, Any]], content: bytes) -> Iterator[tuple[int, Told]]:
        at = 0
        for ask in asks:
            media = []
            for kind, size in ask["media"]:
                media.append((kind, content[at : at + size]))
                at += size
            fault, batch = "", None
            try:
                batch = self._prompt(ask, media)
            except JobError as error:
                fault = str(error)
            failed = torch.tensor(int(batch is None), device=self._job.device)
            if self._context.reduce(failed, ReduceOp.MAX).item() or batch is None:
                yield ask["key"], Refused(message=fault or "a frame of the media cannot be decoded")
                continue
            self._answering.begin(ask["key"], batch, Sampler(**ask["sampler"]), ask["new_tokens"])
            yield ask["key"], Begun(prompt_tokens=batch.input_ids_L.shape[0])

    def _prompt(self, ask: dict[str, Any], media: list[tuple[str, bytes]]) -> Batch:
        """The prompt with this rank's frames. Clips lie in files while they are decoded."""
        with tempfile.TemporaryDirectory(prefix="served-") as folder:
            files = [(kind, Path(folder, str(number))) for number, (kind, _) in enumerate(media)]
            for (_, file), (_, content) in zip(files, media, strict=True):
                file.write_bytes(content)
            sample = Sample(
                where="request", name=str(ask["key"]), turns=tuple(Turn(**turn) for turn in ask["turns"]),
                images=tuple(file for kind, file in files if kind == "image"),
                videos=tuple(file for kind, file in files if kind == "video"),
            )  # fmt: skip
            try:
                return self._row(sample)
            except JobError as error:
                raise JobError(str(error).removeprefix("request: ").replace(f"{folder}/", "medium ")) from None

    def _row(self, sample: Sample) -> Batch:
        document = Documents(self.writer, self._settings.sampling).make(sample, prompt=True)
        tokens, most = len(document.text.input_ids), self._settings.max_prompt_tokens
        if most is not None and tokens > most:
            raise JobError(f"the prompt has {tokens} tokens with its frames; at most {most}")
        row, dtype = Row(documents=(document,)), precision(self._settings.precision)
        return row_batch(row, self._job.sharding, self._config.image_size, self._job.device, dtype)


def shared(content: bytes, group: Axis, device: torch.device) -> bytes:
    """Collective: the first member's bytes, on every member."""
    size = group.broadcast(torch.tensor(len(content), device=device))
    if not (count := int(size.item())):
        return b""
    buffer: Tensor = torch.empty(count, dtype=torch.uint8, device=device)
    if group.index == 0:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return group.broadcast(buffer).cpu().numpy().tobytes()
