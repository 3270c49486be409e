"""What a server may be told: where it listens, how much it takes at a time, and how it answers.

Read from the job's file and `key=value` by the strict reader; a value outside its range is refused with its legal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from executor.serve.requests import Limits
from longvila.generate import ModelSettings
from longvila.job import require


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ModelSettings):
    """What `--set` and the config file may say of a server."""

    listen: str = "127.0.0.1:8000"
    name: str = "longvila"  # of the model, for clients
    slots: int = 4  # answers at work at a time
    waiting: int = 16  # requests that wait for a slot; more are told to come again (429)
    max_new_tokens: int = 512
    max_prompt_tokens: int | None = None  # longer prompts are refused; None: the plan's context
    max_request_bytes: int = 64 * 2**20
    temperature: float = 0.0  # where a request names none
    media: str | None = None  # folder of which requests may name files
    urls: tuple[str, ...] = ()  # beginnings of URLs that may be fetched

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("slots", "max_new_tokens", "max_request_bytes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.waiting >= 0, "waiting", self.waiting, "at least 0")
        host, _, port = self.listen.rpartition(":")
        require(bool(host) and port.isdigit() and int(port) < 65536, "listen", self.listen, "HOST:PORT")
        require(self.media is None or Path(self.media).is_dir(), "media", self.media, "a folder")
        for url in self.urls:
            require(url.startswith(("http://", "https://")) and url.count("/") > 2, "urls", url, "like https://host/…")

    @property
    def limits(self) -> Limits:
        return Limits(
            new_tokens=self.max_new_tokens, media_bytes=self.max_request_bytes, urls=self.urls,
            media_folder=None if self.media is None else Path(self.media), temperature=self.temperature,
        )  # fmt: skip
