"""What a sandbox may use."""

import msgspec

from agentd.model.units import readable_size

MIB = 1 << 20
_BYTES = ("memory", "disk", "output", "net_bytes", "net_rate")


class Limits(msgspec.Struct, frozen=True):
    """Bounds of a whole sandbox; None takes the default below.

    A limit that was asked for and cannot be enforced refuses the request; a default that cannot
    be enforced is reported as such.
    """

    memory: int | None = None  # bytes, all processes and tmpfs together
    cpus: float | None = None  # cores
    pids: int | None = None  # processes and threads
    disk: int | None = None  # bytes written outside mounts
    open_files: int | None = None  # descriptors a process
    output: int | None = None  # bytes of stdout and of stderr, each, of one command
    timeout: float | None = None  # seconds of wall time, of one command
    net_bytes: int | None = None  # over a network of rules, all connections, both ways
    net_rate: int | None = None  # of these a second


DEFAULTS = Limits(
    memory=1024 * MIB,
    cpus=None,
    pids=512,
    disk=512 * MIB,  # or half of the memory, if that is less: what is on it is memory too
    open_files=4096,
    output=64 * MIB,
    timeout=None,
)


def said(name: str, value: float | None) -> str:
    """Return a limit's value for a person: ``2 GiB`` of memory, ``60 s`` of time, ``4096``
    files."""
    if value is None:
        return "no bound"
    if name in _BYTES:
        return readable_size(value)
    return f"{value:g} s" if name == "timeout" else f"{value:g}"
