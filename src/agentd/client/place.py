"""Where a sandbox of the SDK is: at a daemon that is named or found, or in this process."""

import os
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from agentd.client import arguments
from agentd.client.http import address
from agentd.model.errors import AgentdError, InvalidInput

if TYPE_CHECKING:
    from agentd.client.forward import Forwards
    from agentd.client.ports import Service, SnapshotLike


def find(
    url: str | None,
    api_key: str | None,
    snapshot: "SnapshotLike | str | os.PathLike[str] | None",
    embedded: bool,
) -> "tuple[address.Address | None, bool]":
    """Return the daemon to ask, or None for this process; and whether it was named. A ``snapshot``
    that a daemon keeps names that one.

    Raises InvalidInput.
    """
    keeper = getattr(snapshot, "address", None)
    if isinstance(keeper, address.Address) and url is None and api_key is None and not embedded:
        return keeper, False
    named = address.given(url, api_key)
    if embedded and url is not None:
        raise InvalidInput("embedded and url exclude each other", remediation="give one of them")
    if named is not None and not embedded:
        return named, True
    found = None if embedded or kept_here(snapshot) else address.running(None, api_key)
    if found is None and api_key is not None:
        raise InvalidInput(
            "api_key is for the sandboxes of a daemon", remediation="leave it out, or give url="
        )
    return found, False


def service(where: "address.Address | None") -> "Service":
    """Return that daemon's service, or this process's."""
    if where is None:
        from agentd.client import embedded
        from agentd.client.embedded_service import EmbeddedService

        return EmbeddedService(embedded.shared())
    from agentd.client.http.service import shared

    return shared(where)


def kept_here(snapshot: "SnapshotLike | str | os.PathLike[str] | None") -> bool:
    """Return whether it is at a path; a daemon's ``Snapshot`` has none."""
    return snapshot is not None and getattr(snapshot, "path", "") is not None


def state(
    snapshot: "SnapshotLike | str | os.PathLike[str] | None", *, of_daemon: bool
) -> str | None:
    """Return a snapshot's name where it is kept: at a daemon its id, here its path. May raise."""
    if snapshot == "":  # as a path it would be the folder that one stands in
        raise InvalidInput(
            "snapshot '' names nothing", remediation="give an id, a path or a Snapshot"
        )
    if snapshot is None or isinstance(snapshot, str):
        return snapshot
    if not isinstance(snapshot, os.PathLike) and not hasattr(snapshot, "path"):
        raise arguments.wrong("snapshot", snapshot, "an id, a path or a Snapshot")
    path = snapshot if isinstance(snapshot, os.PathLike) else snapshot.path
    if of_daemon and path is not None:
        raise InvalidInput(
            "a snapshot of this process is not the daemon's",
            remediation="take one of a sandbox of the daemon",
        )
    if not of_daemon and path is None:
        raise InvalidInput(
            "a daemon's snapshot cannot be restored in this process",
            remediation="give url= of the daemon that keeps it",
        )
    return os.fspath(path) if path is not None else snapshot.id  # type: ignore[union-attr]


def forget(held: "Service", id_: str, forwards: "Forwards", lasting: bool, owner: int) -> None:
    """Let go of it: it goes on where it outlives this process, and is ended where not."""
    forwards.close()
    # A forked copy: the sandbox belongs to the original.
    if not lasting and os.getpid() == owner:
        with suppress(AgentdError):
            held.sandboxes.kill(id_)
        warnings.warn(
            f"sandbox {id_} was never closed (use it in a with statement)",
            ResourceWarning,
            stacklevel=3,
        )
    held.close()
