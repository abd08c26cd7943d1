"""A template of a daemon's configuration, as it is told to who may ask for it."""

import msgspec


class TemplateView(msgspec.Struct, frozen=True):
    """What it says, None or nothing where it leaves that to the request; of ``env`` the names
    alone. ``limits`` as a sandbox has them: bytes, seconds, cores; ``ready_timeout`` and ``ttl`` in
    seconds. ``standing``: how many stand ready now; without a daemon none does."""

    name: str
    image: str
    isolation: str | None
    backend: str | None
    runtime: str | None
    net: str
    packages: tuple[str, ...]
    user: str | None
    writable: bool
    limits: dict[str, float]
    env: tuple[str, ...]
    start: tuple[str, ...]
    ready: tuple[str, ...]
    ready_timeout: float
    min: int
    max: int
    ttl: float
    standing: int = 0
