"""What a door's author writes for the suite: its requests as methods, its answers as values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

#: That of agentd's own door.
REST = "agentd.testing.doors.rest:Rest"
#: What a driver may say of ``run`` in ``tells``.
TELLS = {
    "stderr": "what the command wrote to stderr, apart from stdout",
    "exit": "its exit code or the signal that ended it, and the cause",
}


class Refusal(Exception):
    """What a driver raises for an answer that refuses: the four fields, as the door told them.

    ``retry_after`` is in seconds, where the answer says when to come again.
    """

    def __init__(
        self,
        code: str,
        message: str,
        cause: str = "",
        remediation: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.cause = cause
        self.remediation = remediation
        self.retry_after = retry_after


class Ended(NamedTuple):
    """How a command ended. ``cause`` is the cause's code, ``remediation`` what to do about it."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None
    signal: int | None = None
    cause: str = ""
    remediation: str = ""


class Hands(Protocol):
    """What the suite does by itself, past the door, with all rights."""

    def put(self, sandbox: str, name: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the workspace; do nothing where there is no such sandbox."""


class Driver:
    """One door, at ``address`` ("HOST:PORT"). Subclass it, and write the methods that the door
    carries: each that is left out is a claim that the door does not make, and is not tested.

    ``key`` is the caller's API key, which the driver sends as the door wants it; None: no
    credential at all. Each method is one request. One that is refused raises Refusal.
    """

    #: The door's name: its entry point's, and in ``[[listen]] serves``.
    door: ClassVar[str] = ""
    #: Of TELLS.
    tells: ClassVar[frozenset[str]] = frozenset()
    #: Whether ``run`` takes a ``timeout``.
    timeouts: ClassVar[bool] = False
    #: Those of run, call, write_file, create that take ``once``, an Idempotency-Key.
    once: ClassVar[frozenset[str]] = frozenset()
    #: Bytes of stdin that ``run`` takes for certain; twice as many it refuses. 0: not tested.
    most_stdin: ClassVar[int] = 0
    #: What becomes of a command whose client hangs up: "ends" or "detaches".
    hanging_up: ClassVar[str] = ""

    def __init__(self, address: str, hands: Hands) -> None:
        self.address = address
        self.hands = hands

    @property
    def claims(self) -> frozenset[str]:
        """All that the door says it does: methods, and what is said beside them."""
        methods = (name for name in METHODS if getattr(type(self), name) is not METHODS[name])
        said = {"timeout": self.timeouts, "most_stdin": self.most_stdin > 0}
        once = (f"once in {name}" for name in self.once)
        return frozenset((*methods, *self.tells, *once, *(name for name in said if said[name])))

    # sandboxes

    def sandboxes(self, key: str | None) -> Sequence[str]:
        """Return the ids of the caller's."""
        raise NotImplementedError

    def create(self, key: str | None, *, once: str = "") -> str:
        """Make one as the door makes them, and return its id."""
        raise NotImplementedError

    def kill(self, key: str | None, sandbox: str) -> None:
        """End it."""
        raise NotImplementedError

    # commands

    def run(
        self,
        key: str | None,
        sandbox: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        once: str = "",
    ) -> Ended:
        """Run a command to its end, in the workspace."""
        raise NotImplementedError

    def run_and_hang_up(
        self, key: str | None, sandbox: str, argv: Sequence[str], when: Callable[[], None]
    ) -> None:
        """Ask as ``run`` does, and cut the connection once ``when`` has returned."""
        raise NotImplementedError

    def start(self, key: str | None, sandbox: str, argv: Sequence[str]) -> str:
        """Start a command whose stdin stays open, and return the id that it has."""
        raise NotImplementedError

    def output(
        self, key: str | None, sandbox: str, process: str, stream: str, cursor: int
    ) -> bytes:
        """Return what the command writes to "stdout" or "stderr", from byte ``cursor`` to its
        end."""
        raise NotImplementedError

    def write(self, key: str | None, sandbox: str, process: str, data: bytes, *, eof: bool) -> None:
        """Give it more of its stdin; with ``eof`` nothing follows."""
        raise NotImplementedError

    def signal(self, key: str | None, sandbox: str, process: str, number: int) -> None:
        """Signal it."""
        raise NotImplementedError

    def result(self, key: str | None, sandbox: str, process: str) -> Ended | None:
        """Return how it ended, without output; None while it runs."""
        raise NotImplementedError

    # files, and what has a name

    def read_file(self, key: str | None, sandbox: str, path: str) -> bytes:
        """Return its bytes. Paths are absolute, inside the sandbox."""
        raise NotImplementedError

    def write_file(
        self, key: str | None, sandbox: str, path: str, data: bytes, *, once: str = ""
    ) -> None:
        """Write it, whole."""
        raise NotImplementedError

    def list_files(self, key: str | None, sandbox: str, path: str) -> Sequence[str]:
        """Return the names in a folder."""
        raise NotImplementedError

    def call(
        self,
        key: str | None,
        capability: str,
        parameters: Mapping[str, Any],
        sandbox: str,
        *,
        once: str = "",
    ) -> Mapping[str, Any]:
        """Call a capability in that sandbox, and return its value."""
        raise NotImplementedError


METHODS: Mapping[str, object] = {
    name: method
    for name, method in vars(Driver).items()
    if callable(method) and not name.startswith("_")
}
