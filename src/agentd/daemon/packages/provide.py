"""From the packages that a sandbox asks for to a folder that is mounted in it."""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from hashlib import sha256

import msgspec

from agentd.daemon.packages import python as pythons
from agentd.daemon.packages import resolve
from agentd.daemon.packages.python import TargetPython
from agentd.daemon.packages.rules import PackageRules
from agentd.model.errors import NotFound, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.mount import Mount, MountMode
from agentd.model.packages import PLACE, is_exact, with_packages
from agentd.model.spec import SandboxSpec
from agentd.sandbox import progress
from agentd.sandbox.backends.image_root import resolved
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager
from agentd.sandbox.packages import PackageStore

_TRIES = 3  # where what was just made is removed by another before it is taken
EXACT_SECONDS = 30 * 86400.0


@contextlib.contextmanager
def provided(manager: Manager, spec: SandboxSpec, rules: PackageRules) -> Iterator[SandboxSpec]:
    """Yield the spec with its packages among the mounts, which last as long as the block.

    Raises Refused for a wall that takes none, InvalidInput for what the index does not have,
    Unavailable where that is not reached, and what making a sandbox raises.
    """
    spec = resolved(spec)
    backend = manager.wall_of(msgspec.structs.replace(spec, packages=()))
    where = _place(backend.name, backend.level, takes=getattr(backend, "volumes", False))
    store = PackageStore()
    python = pythons.of(manager, spec, backend.name, store)
    for _ in range(_TRIES):
        digest = _found(manager, spec.packages, python, rules, store)
        with contextlib.suppress(NotFound):
            lease = store.lease(digest)
            break
    else:
        raise NotFound(
            "the packages are removed as soon as they are there", remediation="raise packages.size"
        )
    with contextlib.closing(lease):
        about = store.about(digest)
        target = where or _own_path(lease.path)
        mount = Mount(lease.path, target, MountMode.RO, packages=digest)
        own = {"PYTHONPATH": python.pythonpath, "PATH": python.path}
        yield msgspec.structs.replace(
            spec,
            mounts=(*spec.mounts, mount),
            locked=about.packages,
            env=with_packages(spec.env, own, target),
        )


def created(manager: Manager, spec: SandboxSpec, rules: PackageRules) -> SandboxHandle:
    """Make a sandbox that has its packages. Raises as ``provided`` and ``Manager.create``."""
    with provided(manager, spec, rules) as whole:
        return manager.create(whole)


def _place(name: str, level: IsolationLevel, *, takes: bool) -> str:
    """Where they are inside, "" for their own path. Raises Refused."""
    if takes:
        return PLACE
    if level <= IsolationLevel.PROCESS:
        return ""
    raise Refused(
        f"backend {name} takes no packages, as it mounts nothing",
        remediation="ask for another wall, or make an image that has them",
    )


def _own_path(path: str) -> str:
    """Raises Refused where commands may not go there: those of root are nobody."""
    closed = path
    while os.geteuid() == 0 and closed != "/":
        closed = os.path.dirname(closed)
        if not os.stat(closed).st_mode & stat.S_IXOTH:
            raise Refused(
                f"packages at the process level are at their own path, and {closed} is closed "
                "to its commands",
                remediation=f"chmod o+x {closed}, or ask for --isolation namespace",
            )
    return path


def _found(
    manager: Manager,
    packages: Sequence[str],
    python: TargetPython,
    rules: PackageRules,
    store: PackageStore,
) -> str:
    """Return the set of a request: the one that it lately was, or what the index says now."""
    key = _key(packages, python, rules)
    # Where each version is said little can have changed: what those need themselves.
    seconds = EXACT_SECONDS if all(map(is_exact, packages)) else rules.keep
    digest = store.recall(key, seconds)
    if digest is not None:
        return digest

    def wait() -> None:
        progress.report("waiting for another process to fetch the packages")

    with store.turn(key, wait):
        digest = store.recall(key, seconds)
        if digest is not None:
            return digest
        with resolve.opened(manager, python, rules, packages) as resolver:
            found = resolver.lock()
            digest = store.add(
                python.tag, found, lambda path: resolver.unpack(found, path), rules.size
            )
        store.remember(key, digest)
    return digest


def _key(packages: Sequence[str], python: TargetPython, rules: PackageRules) -> str:
    # What needs what is judged by the markers, which a sandbox's Python may lie about.
    text = msgspec.json.encode([packages, python.tag, python.markers(), rules.index, rules.egress])
    return sha256(text).hexdigest()
