"""What every machine is told before anything else runs in it: who it is now, and its limits.

A machine that was restored from a snapshot has the same random numbers, clock and identity as
every other from there, until this is done.
"""

import base64
import errno
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence

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
    """The fields of sys.setup; new random ones each time. ``env`` are variables that those of
    ``spec`` replace."""
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
    """Do it over a fresh stream, which is closed then; the controls that hold.

    ``thaw`` lets go on what was frozen for a snapshot. Raises SandboxError: a machine that was
    not set up must not be used.
    """
    guest = Guest(
        lambda: stream, passes_descriptors=False, handshake_timeout=seconds, answer_timeout=seconds
    )
    try:
        answer = guest.call("sys.setup", unix_ns=time.time_ns(), **fields)
        if thaw:
            guest.call("sys.thaw")
    except SandboxError:
        raise
    except OperationFailed as error:
        kind = (
            DeviceMissing
            if error.errno == errno.ENODEV and {"net", "root"} & fields.keys()
            else SandboxError
        )
        raise kind("the machine could not be set up", cause=str(error)) from error
    except AgentdError as error:
        raise SandboxError("the machine could not be set up", cause=str(error)) from error
    finally:
        guest.close()
    controls = answer.get("controls")
    return [str(name) for name in controls] if isinstance(controls, list) else []


def tell(stream: socket.socket, operations: Sequence[str], seconds: float) -> None:
    """Operations of the agent's over a fresh stream, which is closed then. Raises SandboxError."""
    guest = Guest(
        lambda: stream, passes_descriptors=False, handshake_timeout=seconds, answer_timeout=seconds
    )
    try:
        for name in operations:
            fields = {"unix_ns": time.time_ns()} if name == "sys.clock" else {}
            guest.call(name, **fields)
    except SandboxError:
        raise
    except AgentdError as error:
        raise SandboxError(f"the guest refused {operations[0]}", cause=str(error)) from error
    finally:
        guest.close()
