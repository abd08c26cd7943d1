"""Has a backend build a sandbox's wall; whatever is in its way is an error of ours."""

import contextlib

from agentd.model.errors import OperationFailed, SandboxError
from agentd.model.system import scarce
from agentd.sandbox.abilities import FORK, incapable
from agentd.sandbox.backends import others
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.ports import Backend, Restores, Wall
from agentd.sandbox.volume_lease import holder

#: Places of a sandbox's own, which cover what an image has there.
_OWN = ("/workspace", "/tmp", "/home/sandbox", "/dev/shm")


def launch(handle: SandboxHandle) -> Wall:
    """Raises SandboxError, and what else the backend's ``launch`` or ``restore`` raises."""
    backend, plan = handle.choice
    told = holder.set(handle.id)
    try:
        if handle.source is None:
            return others.launch(backend, plan)
        return others.restore(backend, restorer(backend, "restore"), plan, handle.source)
    except OSError as error:  # the machine is short of something, which a backend has passed on
        raise SandboxError(others.UNBUILT, cause=str(error), remediation=scarce(error)) from error
    finally:
        holder.reset(told)


def begin(handle: SandboxHandle) -> None:
    """Make the directory where an image has commands begin, where that is in a place that covers
    the image: the wall makes those in the image's root. Raises BackendLost, GuestError."""
    path = getattr(handle.wall, "workdir", None)  # which not every wall has
    guest = handle._guest  # taken once: who ends the sandbox meanwhile takes it away
    if not isinstance(path, str) or guest is None:
        return
    # Whether it is in a mount its name does not say: links of the image's may lead to that.
    if handle.spec.mounts or any(path.startswith(f"{place}/") for place in _OWN):
        with contextlib.suppress(OperationFailed):  # whoever runs a command there is told
            guest.files.mkdir(path, parents=True)


def restorer(backend: Backend, what: str) -> Restores:
    """Raises Unsupported where it builds nothing from a snapshot."""
    restores = FORK.of(backend)
    if restores is None:
        raise incapable(backend.name, FORK, what)
    return restores
