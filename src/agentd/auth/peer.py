"""Who is at the other end of a unix socket, as the kernel tells (unix(7), SO_PEERCRED)."""

import os
import select
import socket
import struct
from collections.abc import Iterable, Mapping

import msgspec

from agentd.model.credential import Credential
from agentd.model.errors import Forbidden
from agentd.model.principal import Principal

_UCRED = struct.Struct("iii")  # pid, uid, gid; -1 reads as no such user
_SO_PEERPIDFD = 77  # Linux 6.5, include/uapi/asm-generic/socket.h
# Users of another user namespace that have no number in ours all read as this one.
_OVERFLOW_UID = 65534
ANY = "*"


class Peer(msgspec.Struct, frozen=True):
    uid: int
    pid: int
    foreign: bool  # in another user or pid namespace than ours


class PeerRule(msgspec.Struct, frozen=True):
    """``principal`` is the name to take; without it, ``uid:N``."""

    scopes: frozenset[str]
    principal: str | None = None


class PeerProvider:
    def __init__(self, rules: Mapping[int | str, PeerRule], *, containers: bool = False) -> None:
        """``rules`` by uid; "*" is for those that no other names.

        ``containers`` also lets in processes of other namespaces. Sandboxes are such, and maybe
        with our uid: a socket that is mounted into one would be a way out of it.
        """
        self._rules = dict(rules)
        self._containers = containers

    def authenticate(self, credential: Credential) -> Principal | None:
        uid = credential.peer_uid
        if uid is None:
            return None
        if credential.foreign and not self._containers:
            raise Forbidden(
                f"process {credential.peer_pid} is in a container or a sandbox",
                remediation="use an API key there, or set containers = true in [auth]",
            )
        rule = self._rules.get(uid)
        if rule is None and 0 <= uid != _OVERFLOW_UID:
            rule = self._rules.get(ANY)
        if rule is None:
            raise Forbidden(
                f"uid {uid} is not let in",
                remediation=f"use an API key, or add [[auth.peers]] with uid = {uid}",
            )
        return Principal(rule.principal or f"uid:{uid}", rule.scopes, "peer", f"uid:{uid}")


def peer_of(connection: socket.socket) -> Peer:
    """Once for each accepted connection. Raises OSError where it is no unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return Peer(uid, pid, _is_foreign(connection, pid))


def _is_foreign(connection: socket.socket, pid: int) -> bool:
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        # Before Linux 6.5, or the process is gone: then /proc has nothing of it either.
        return _other_namespace(pid)
    try:
        foreign = _other_namespace(pid)
        # The number may have gone to another process meanwhile, unless ours is still there.
        return foreign or _has_ended(pidfd)
    finally:
        os.close(pidfd)


def _other_namespace(pid: int) -> bool:
    """Return whether its user or pid namespace is not ours; true where it cannot be found, too."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            pids = next((line for line in status if line.startswith("NSpid:")), "")
    except OSError:
        return True
    # proc_pid_status(5): one number for each pid namespace from ours inwards. Anyone may read it.
    if len(pids.split()) != 2:
        return True
    try:
        theirs, ours = os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user")
    except PermissionError:
        return False  # another user's (ptrace(2), access mode checks), in our own pid namespace
    except OSError:
        return True
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def rules_of(pairs: Iterable[tuple[int | str, PeerRule]]) -> dict[int | str, PeerRule]:
    """The first rule for a uid holds."""
    rules: dict[int | str, PeerRule] = {}
    for uid, rule in pairs:
        rules.setdefault(uid, rule)
    return rules
