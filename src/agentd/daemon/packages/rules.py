"""Where packages come from and how many are kept: what the configuration says of it."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from agentd.model.egress import EgressBounds
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from agentd.daemon.config.schema import Config

_PYPI = "pypi.org"


class PackageRules(msgspec.Struct, frozen=True):
    """``egress`` are the rules of the network that packages are fetched by, within ``bounds``;
    ``keep`` is in seconds, ``size`` in bytes; ``isolation`` is the least of any sandbox here."""

    index: str
    egress: tuple[str, ...]
    bounds: EgressBounds
    keep: float
    size: int
    isolation: IsolationLevel


def of(config: "Config") -> PackageRules:
    said = config.packages
    return PackageRules(
        index=str(said.index),
        egress=tuple(map(str, said.net)) or _of_index(str(said.index)),
        bounds=config.egress.bounds(),
        keep=float(said.keep),
        size=int(said.size),
        isolation=max(IsolationLevel.NAMESPACE, config.sandbox.level),
    )


def _of_index(index: str) -> tuple[str, ...]:
    parts = urlsplit(index)
    if parts.hostname == _PYPI:
        return ("pypi",)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return (f"{host}:{port}",)
