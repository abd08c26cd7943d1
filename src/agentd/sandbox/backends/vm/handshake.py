"""What every machine is told before anything else runs in it: who it is now, and its limits.

A machine that was restored from a snapshot has the same random numbers, clock and identity as
every other from there, until this is done.
"""

import base64
import contextlib
import errno
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

from agentd.model.errors import AgentdError, OperationFailed, SandboxError
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.users import parse_user
from agentd.transport.guest import Guest

_ENTROPY_BYTES = 256


class DeviceMissing(SandboxError):
    """The guest has not found a device yet: its network card, or a disk."""


def settings(
    spec: SandboxSpec,
    limits: Limits,
    net: dict[str, object] | None,
    env: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Returns the fields of sys.setup; new random ones each time. ``env`` are variables that those
    of ``spec`` replace."""
    fields: dict[str, object] = {
        "entropy": base64.b64encode(os.urandom(_ENTROPY_BYTES)).decode(),
        "hostname": spec.hostname,
        "machine_id": os.urandom(16).hex(),
        "boot_id": str(uuid.UUID(bytes=os.urandom(16), version=4)),
        "user": parse_user(spec.user),
        "env": {**(env or {}), **spec.env},
        "limits": {
            name: getattr(limits, name)
            for name in ("memory", "pids", "disk", "open_files")
            if getattr(limits, name) is not None
        },
    }
    if limits.cpus is not None:
        fields["cpus"] = limits.cpus
    if net is not None:
        fields["net"] = net
    return fields


def set_up(
    stream: socket.socket, fields: dict[str, object], seconds: float, *, thaw: bool = False
) -> list[str]:
    """Sets a machine up over a fresh stream, which is closed then; returns the controls that hold.

    ``thaw`` lets go on what was frozen for a snapshot. Raises SandboxError: a machine that was
    not set up must not be used; DeviceMissing for one that may yet find what it was told of.
    """
    with _guest(stream, seconds, "the machine could not be set up") as guest:
        try:
            answer = guest.call("sys.setup", unix_ns=time.time_ns(), **fields)
        except OperationFailed as error:
            if error.errno != errno.ENODEV or not {"net", "root"} & fields.keys():
                raise
            raise DeviceMissing("the machine could not be set up", cause=str(error)) from error
        if thaw:
            guest.call("sys.thaw")
    controls = answer.get("controls")
    return [str(name) for name in controls] if isinstance(controls, list) else []


def tell(stream: socket.socket, operations: Sequence[str], seconds: float) -> None:
    """Has the agent do operations over a fresh stream, which is closed then. Raises
    SandboxError."""
    with _guest(stream, seconds, f"the guest refused {operations[0]}") as guest:
        for name in operations:
            fields = {"unix_ns": time.time_ns()} if name == "sys.clock" else {}
            guest.call(name, **fields)


@contextlib.contextmanager
def _guest(stream: socket.socket, seconds: float, failed: str) -> Iterator[Guest]:
    """Yields the agent at a stream, which is closed then. Has errors of it say what failed."""
    guest = Guest(
        lambda: stream, passes_descriptors=False, handshake_timeout=seconds, answer_timeout=seconds
    )
    try:
        yield guest
    except SandboxError:
        raise
    except AgentdError as error:
        raise SandboxError(failed, cause=str(error)) from error
    finally:
        guest.close()
