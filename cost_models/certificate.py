"""How wrong prices were on rows that were not fitted: `certificate.json`, read strictly.

    error     ln(measured / predicted), as quantiles over the rows of a domain (every source counts alike), in log units
    spread    robust standard deviation of the same about its median
    normal    quantiles of error / sigma, where sigma is what `bands.py` expects of the row's own price
    pairs     layouts of the same work: how often the one priced faster was slower, by how far apart they were priced

`python -m validation.certify` writes it. The file states the digests of the code and of the measurements that it was
made of, and of itself, so an edited one is refused. A domain without rows is `stated`: a wider band, and why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cost_models import strict
from cost_models.errors import InputError

PATH = Path(__file__).with_name("certificate.json")
PROBABILITIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99)
"""Of every tuple of quantiles."""
MEND = "run `make certificate`"
Count = Annotated[int, Meta(ge=0)]
Least = Annotated[float, Meta(ge=0, le=10)]  # log units: a factor of 22,000
Quantiles = tuple[Annotated[float, Meta(ge=-20, le=20)], ...]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Errors of one kind of prediction."""

    rows: Count
    sources: tuple[str, ...]
    quantiles: Quantiles  # of ln(measured / predicted), at PROBABILITIES
    spread: Least
    normal: Quantiles = ()  # of steps alone
    stated: str = ""  # why this is not measured

    def __post_init__(self) -> None:
        for name in ("quantiles", "normal"):
            values = getattr(self, name)
            there = values or name == "quantiles"
            if there and (len(values) != len(PROBABILITIES) or list(values) != sorted(values)):
                raise InputError(f"{name} must be {len(PROBABILITIES)} rising numbers")

    @property
    def bias(self) -> float:
        return self.quantiles[PROBABILITIES.index(0.5)]


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Pairs that were priced so far apart: `least` <= |ln(price / price)| < the next one's."""

    least: Least
    pairs: Count
    wrong: Count
    loss: Least  # median over the wrong pairs: how much longer the one priced faster took
    worst_loss: Least


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How often the order of two layouts was wrong, by how far apart their prices were."""

    sources: tuple[str, ...]
    residual: Least  # what one layout has beyond the errors that both share, in log units
    normal: tuple[float, ...]  # of the difference's error over what is expected of it
    apart: tuple[Apart, ...]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """How wrong prices are on rows that were not fitted, by domain; `load` and `certificate` check its digest."""

    version: Literal[1]
    code: str  # digest of cost_models, without this file's
    data: str  # digest of the measurements
    domains: Mapping[str, Domain]
    residual: Least  # what a step has beyond the errors of its parts, in log units
    pairs: Pairs
    digest: str  # of all of the above

    def __post_init__(self) -> None:
        for name, domain in self.domains.items():
            if name.startswith("step") and not domain.normal:
                raise InputError(
                    f"domains[{name!r}].normal is missing: {len(PROBABILITIES)} quantiles of error / sigma"
                )

    def domain(self, name: str) -> Domain:
        if name not in self.domains:
            raise InputError(f"certificate: no domain {name!r}; {strict.nearest(name, self.domains)}")
        return self.domains[name]


def load(path: Path) -> Certificate:
    """A certificate that someone gives. InputError: it was edited, or is of other code."""
    found = _read(path)
    if found.code != code_digest():
        raise InputError(f"certificate {str(path)!r} is of other code than this release's prices; {MEND}")
    return found


@cache
def certificate() -> Certificate:
    """This release's, read once; that it is of this code is what `tests/validation/test_certify.py` holds."""
    return _read(PATH)


def _read(path: Path) -> Certificate:
    data = strict.read_json(path, "certificate")
    found = strict.read(Certificate, data, str(path))
    stated = data.pop("digest")
    if stated != digest_of(data):
        raise InputError(f"certificate {str(path)!r} does not have the digest that it states: it was edited; {MEND}")
    return found


def digest_of(data: Mapping[str, object]) -> str:
    """Of a certificate without its own digest."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """Of everything in this package that a price may depend on: code, curves, presets, frameworks."""
    root = PATH.parent
    kinds = (".py", ".npz", ".json", ".yaml")
    return files_digest(root, (path for path in root.rglob("*") if path.suffix in kinds and path != PATH))


def files_digest(root: Path, paths: Iterable[Path]) -> str:
    """Of the names below `root` and the bytes of files."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()
