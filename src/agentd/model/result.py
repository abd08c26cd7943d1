"""What came of a request."""

import msgspec

from agentd.model.cause import Cause, CauseCode
from agentd.model.enforcement import Control


class NetworkUsage(msgspec.Struct, frozen=True):
    """What a sandbox has done of a restricted network, up to the command's end: connections and
    names that were ``allowed`` and ``denied``, connections that somebody was ``asked`` about, bytes
    ``sent`` and ``received`` by what has ended, and how many connections went to which host.
    ``cassette`` is "record" where these were recorded, and "replay" where a cassette answered and
    nobody was dialled."""

    allowed: int = 0
    denied: int = 0
    asked: int = 0
    sent: int = 0
    received: int = 0
    hosts: dict[str, int] = {}
    cassette: str = ""


class Usage(msgspec.Struct, frozen=True):
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    peak_memory_bytes: int = 0
    network: NetworkUsage | msgspec.UnsetType = msgspec.UNSET  # of one that rules restrict


class Timing(msgspec.Struct, frozen=True):
    setup_ms: float = 0.0
    exec_ms: float = 0.0
    total_ms: float = 0.0


class SandboxInfo(msgspec.Struct, frozen=True):
    id: str
    backend: str
    level: str


class Exit(msgspec.Struct, frozen=True):
    """How one command ended. ``exit_code`` is None where a signal ended it or it never ran."""

    exit_code: int | None
    signal: int | None
    cause: Cause
    usage: Usage = Usage()

    @property
    def ok(self) -> bool:
        return self.cause.code is CauseCode.EXITED and self.exit_code == 0


class Result(msgspec.Struct, frozen=True):
    """The whole answer to a request; ``stdout`` and ``stderr`` hold what was captured, as bytes."""

    request_id: str
    status: str  # "ok" exit code 0, "failed" it ran and did not succeed, "error" it never ran
    exit_code: int | None
    signal: int | None
    cause: Cause
    stdout: bytes
    stderr: bytes
    truncated: bool
    usage: Usage
    timing: Timing
    sandbox: SandboxInfo
    enforcement: dict[str, Control]
    changes: tuple[str, ...] = ()
    receipt: str = ""  # its id, where the daemon issues receipts

    @property
    def ok(self) -> bool:
        """Whether it ran and its exit code is 0."""
        return self.status == "ok"

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout.decode(errors="replace")

    @property
    def stderr_text(self) -> str:
        """Standard error as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr.decode(errors="replace")
