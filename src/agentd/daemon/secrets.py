"""Secrets that principals have set: a file of the daemon's own, for its user alone.

It is written whole and put in place by a rename, so that there is always the one from before a
change or the one from after it.
"""

import os
import stat
import threading
import time
from collections.abc import Callable

import msgspec

from agentd.linux import paths
from agentd.linux.replacing import replacing
from agentd.model import typed
from agentd.model.errors import Full, NotFound, QuotaExceeded, SandboxError
from agentd.model.kept_secret import SecretView
from agentd.model.secret import SecretValue, check_secret_name, check_value
from agentd.model.system import os_errors_as
from agentd.model.units import readable_size

MAX_SECRETS = 128  # of one principal
MAX_BYTES = 256 << 10  # of the values of one principal
MAX_FILE = 64 << 20  # of all, as they are written
Record = Callable[[], object]


class KeptSecret(msgspec.Struct, frozen=True):
    """``created`` and ``changed`` are seconds since 1970."""

    principal: str
    name: str
    value: SecretValue
    created: float
    changed: float


class _SecretFile(msgspec.Struct, frozen=True):
    version: int
    secrets: list[KeptSecret]


class SecretStore:
    """Keeps them. Thread-safe. Nobody is told of another's: neither a value nor that it is there.

    ``record`` is called once nothing but the disk can refuse a change; where it raises, none is
    made."""

    def __init__(self, path: str) -> None:
        """Raises SandboxError for a file that others could have read or written, or that is none
        of this version."""
        self._path = path
        self._lock = threading.Lock()
        self._kept = {(each.principal, each.name): each for each in _read(path)}

    def set(
        self, principal: str, name: str, value: str, record: Record = lambda: None
    ) -> SecretView:
        """Keep it in place of one that was there; it is on disk when this returns. Raises
        InvalidInput, QuotaExceeded, Full, SandboxError."""
        checked = check_value(check_secret_name(name), value)
        now = time.time()
        with self._lock:
            before = self._kept.get((principal, name))
            self._check_room(principal, name, checked)
            created = now if before is None else before.created
            kept = KeptSecret(principal, name, checked, created, now)
            self._write({**self._kept, (principal, name): kept}, record)
        return _view(kept)

    def all(self, principal: str) -> list[SecretView]:
        """List those of a principal, by name."""
        with self._lock:
            own = [each for each in self._kept.values() if each.principal == principal]
        return [_view(each) for each in sorted(own, key=lambda each: each.name)]

    def value(self, principal: str, name: str) -> SecretValue:
        """Return its value. Raises NotFound, also for another's."""
        with self._lock:
            try:
                return self._found(principal, name).value
            except NotFound as error:
                error.remediation += (
                    f"; agentd secret set {name[:64]} keeps one; or take one from here: "
                    f"{name[:64]}=env:{name[:64]}@..."
                )
                raise

    def remove(self, principal: str, name: str, record: Record = lambda: None) -> None:
        """Forget it; sandboxes that have it keep it. Raises NotFound, SandboxError."""
        with self._lock:
            self._found(principal, name)
            rest = {key: k for key, k in self._kept.items() if key != (principal, name)}
            self._write(rest, record)

    def _found(self, principal: str, name: str) -> KeptSecret:
        kept = self._kept.get((principal, name))
        if kept is None:
            raise NotFound(
                f"there is no secret {name[:64]!r}", remediation="agentd secret ls lists yours"
            )
        return kept

    def _check_room(self, principal: str, name: str, value: SecretValue) -> None:
        others = [k for k in self._kept.values() if k.principal == principal and k.name != name]
        if len(others) >= MAX_SECRETS:
            raise QuotaExceeded(
                f"{principal} has {MAX_SECRETS} secrets already", remediation="remove some"
            )
        if sum(len(each.value.text) for each in others) + len(value.text) > MAX_BYTES:
            raise QuotaExceeded(
                f"the secrets of {principal} take {MAX_BYTES} bytes already",
                remediation="remove some",
            )

    def _write(self, kept: dict[tuple[str, str], KeptSecret], record: Record) -> None:
        data = msgspec.json.encode(_SecretFile(1, list(kept.values())))
        if len(data) > MAX_FILE:
            raise Full(
                f"the secrets of all callers take {readable_size(MAX_FILE)}, which is the most",
                remediation="remove some",
            )
        with os_errors_as(SandboxError, "cannot write the daemon's secrets", "make room for them"):
            with replacing(self._path, 0o600, alone=True, synced=True) as file:
                file.write(data)
                file.flush()
                record()
            self._kept = kept
            paths.sync(os.path.dirname(self._path))


def _read(path: str) -> list[KeptSecret]:
    fix = "move it away, and set its secrets anew"
    with os_errors_as(SandboxError, f"cannot read {path}", fix):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        with open(fd, "rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(MAX_FILE)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SandboxError(
            f"{path} is not this user's alone", remediation=f"chmod 600 {path}, or {fix}"
        )
    try:
        kept = typed.decoder(_SecretFile).decode(data)
    except msgspec.MsgspecError:
        kept = _SecretFile(0, [])
    if kept.version != 1:
        raise SandboxError(f"{path} is no file of secrets that is known", remediation=fix)
    return kept.secrets


def _view(kept: KeptSecret) -> SecretView:
    return SecretView(kept.name, kept.principal, kept.created, kept.changed)
