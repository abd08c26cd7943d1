"""Which commands there are: by sandbox, those that run, and how many of whose."""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentd.daemon import events
from agentd.model.errors import Full, NotFound
from agentd.model.events import EventKind
from agentd.model.principal import Principal

if TYPE_CHECKING:
    from agentd.daemon.commands.command import Command
    from agentd.daemon.commands.past import Past

# A thread each. A principal may start one more while it has fewer than are left: alone it has half
# of them, and there are always some for the next.
MAX_RUNNING = 2048
MAX_KEPT = 256  # ended commands of one sandbox, in memory


class Register:
    """Thread-safe."""

    def __init__(self, publish: events.Publish = events.nobody) -> None:
        self._publish = publish
        self._lock = threading.Lock()
        self._running: dict[str, Command] = {}
        self._of_principal: Counter[str] = Counter()  # that run
        self._of: dict[str, dict[str, Command | Past]] = {}  # by sandbox

    def room(self, who: Principal) -> None:
        """Raises Full where ``who`` may start no more."""
        with self._lock:
            mine = self._of_principal[who.name]
            if mine >= MAX_RUNNING - len(self._running):
                raise Full(
                    f"{mine} commands of {who.name} run already",
                    cause=f"{len(self._running)} run, and {MAX_RUNNING} are the most",
                    remediation="come back when some have ended",
                )

    def add(self, who: Principal, command: "Command") -> None:
        with self._lock:
            self._of_principal[who.name] += 1
            self._running[command.id] = command
            known = self._of.setdefault(command.listed.live.id, {})
            known[command.id] = command
            if len(known) > MAX_KEPT:
                ended = [c for c in known.values() if c.result is not None]
                for old in ended[: len(known) - MAX_KEPT]:
                    del known[old.id]
        self._tell(command, "started")

    def release(self, who: Principal, command: "Command", *, forget: bool = False) -> None:
        """Note that it runs no more; ``forget``: nor is it listed."""
        with self._lock:
            ran = self._running.pop(command.id, None) is not None
            if ran:
                self._of_principal[who.name] -= 1
                if not self._of_principal[who.name]:
                    del self._of_principal[who.name]
            if forget:
                self._of.get(command.listed.live.id, {}).pop(command.id, None)
        if ran:
            end = command.result
            about = {} if end is None else {"code": str(end.cause.code), "exit_code": end.exit_code}
            self._tell(command, "ended", **about)

    def _tell(self, command: "Command", state: str, **about: object) -> None:
        live = command.listed.live
        tag = {"tag": command.tag} if command.tag is not None else {}
        self._publish(
            EventKind.PROCESS,
            live.record.principal,
            live.id,
            process=command.id,
            state=state,
            **tag,
            **about,
        )

    def add_past(self, sandbox: str, past: "Mapping[str, Past]") -> None:
        """Add those of the daemon before, which come first."""
        with self._lock:
            self._of[sandbox] = {**past, **self._of.get(sandbox, {})}

    def forget(self, sandbox: str) -> None:
        with self._lock:
            self._of.pop(sandbox, None)

    def all(self, sandbox: str) -> "list[Command | Past]":
        """Oldest first."""
        with self._lock:
            return list(self._of.get(sandbox, {}).values())

    def get(self, sandbox: str, id_: str) -> "Command | Past":
        """Find one by its id or its tag, the newest with that. Raises NotFound."""
        with self._lock:
            known = self._of.get(sandbox, {})
            found = known.get(id_)
            if found is None:
                tagged = [c for c in known.values() if c.tag == id_ and c.tag is not None]
                found = tagged[-1] if tagged else None
        if found is None:
            raise NotFound(
                f"sandbox {sandbox} has no process {id_[:64]!r}",
                remediation="agentd inspect lists its commands; an older one may be forgotten",
            )
        return found

    def running(self) -> "list[Command]":
        with self._lock:
            return list(self._running.values())
