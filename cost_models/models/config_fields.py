"""Strict reading of single fields of a `config.json`: a wrong value names file, key and legal values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cost_models.errors import InputError


@dataclass(frozen=True)
class Fields:
    """One object of a config: `where` names it in errors, `defaults` are what its class has for keys left out."""

    config: Mapping[str, object]
    where: str
    defaults: Mapping[str, object]

    def get(self, key: str) -> object:
        return self.config.get(key, self.defaults.get(key))

    def number(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; null and a missing key are the class's default, then `default`, then an error."""
        value = self.config.get(key)
        if value is None and key not in self.config:
            value = self.defaults.get(key)
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{self.where}: {key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{self.where}: {key}={value!r} must be a whole number of at least {least}")
        return value

    def yes(self, key: str) -> bool:
        value = self.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {key}={value!r}; legal: true, false")
        return value

    def real(self, key: str) -> float | None:
        """A number above 0, or None."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{self.where}: {key}={value!r} must be a number above 0, or null")
        return float(value)
