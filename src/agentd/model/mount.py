"""Host paths that a sandbox may see."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from os.path import abspath, expanduser, normpath

import msgspec
from msgspec.structs import astuple

from agentd.model.errors import AgentdError, InvalidInput, SandboxError
from agentd.model.system import scarce


class MountMode(StrEnum):
    RO = "ro"
    RW = "rw"
    COW = "cow"


class Mount(msgspec.Struct, frozen=True):
    """``source`` on the host appears at ``target`` inside; both absolute.

    That of a ``volume``, its name, is agentd's own; where nobody has looked for it yet, it is no
    path. ``packages`` is the digest of a set of them, whose folder agentd made.
    """

    source: str
    target: str
    mode: MountMode
    volume: str = ""
    packages: str = ""

    @property
    def named(self) -> str:
        """The source as callers, policies and receipts know it."""
        if self.packages:
            return f"packages:{self.packages}"
        return f"volume:{self.volume}" if self.volume else self.source

    @property
    def is_hosts(self) -> bool:
        """Whether it is the host's own, and nothing that agentd keeps for sandboxes."""
        return not (self.volume or self.packages)


WORKSPACE = "/workspace"
MAX_MOUNTS = 256  # of a sandbox, volumes and its workspace among them
MAX_PATH = 4096  # characters, of which PATH_MAX lets no more through
# Bytes: a target is made below another folder first.
_MAX_TARGET = 4000
_MAX_NAME = 255
_MAX_DEPTH = 256
VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A mount over one of these, or in it, would replace a part of the wall.
_RESERVED = (
    "/proc",
    "/sys",
    "/dev",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/.agentd",
)
# Links that every root of ours has, and where they lead.
_LINKS = (("/var/run/", "/run/"), ("/var/lock/", "/run/lock/"))
# As a whole they are the wall's; a mount in them is the sandbox's own affair.
_WHOLE = ("/", "/etc")


def parse_workspace(text: str) -> Mount:
    """``PATH[:ro|rw|cow]``, mounted at /workspace; read-write unless said otherwise."""
    path, mode = _split_mode(text, MountMode.RW, tuple(MountMode))
    return Mount(_host_path(path, text), WORKSPACE, mode)


def parse_mount(text: str) -> Mount:
    """``SRC:DST[:ro|rw]``; read-only unless said otherwise."""
    pair, mode = _split_mode(text, MountMode.RO, (MountMode.RO, MountMode.RW))
    source, colon, target = pair.rpartition(":")
    if ":/" in source and not target.startswith("/"):
        raise unknown_mode(text, target, (MountMode.RO, MountMode.RW))
    if not colon or not source:
        raise InvalidInput(
            f"mount {text!r} has no target", remediation="write it as SRC:DST[:ro|rw]"
        )
    return Mount(_host_path(source, text), check_target(target), mode)


def parse_volume(text: str) -> Mount:
    """``NAME:DST[:ro|rw]``; read-write unless said otherwise."""
    pair, mode = _split_mode(text, MountMode.RW, (MountMode.RO, MountMode.RW))
    name, colon, target = pair.partition(":")
    if not colon:
        raise InvalidInput(
            f"volume {text!r} has no target", remediation="write it as NAME:/data[:ro|rw]"
        )
    if ":" in target:
        raise unknown_mode(text, target.rpartition(":")[2], (MountMode.RO, MountMode.RW))
    # No path: whoever opens it without having looked for the volume opens nothing.
    return Mount(f"volume:{check_volume(name)}", check_target(target), mode, name)


def check_volume(name: str) -> str:
    """Raises InvalidInput for what is no name of a volume."""
    if not isinstance(name, str) or not VOLUME_NAME.fullmatch(name):
        raise InvalidInput(
            f"volume {str(name)[:100]!r} is not a name",
            remediation="use up to 64 letters, digits, dots, dashes and underscores, as my-data; "
            "a folder of the host is a mount",
        )
    return name


def check_target(target: str) -> str:
    # POSIX lets normpath leave two slashes at the start, which to Linux are one.
    if not target.startswith("/") or plain(target) != target or "\0" in target:
        raise InvalidInput(
            f"mount target {target[:100]!r} is not a plain absolute path",
            remediation="write it as /data",
        )
    raw = _encoded(target, "target")
    names = raw.split(b"/")[1:]
    if len(raw) > _MAX_TARGET or len(names) > _MAX_DEPTH or len(max(names, key=len)) > _MAX_NAME:
        raise InvalidInput(
            f"mount target {target[:100]!r}... is too long",
            remediation=f"name one of at most {_MAX_TARGET} bytes and {_MAX_DEPTH} names, "
            f"each of {_MAX_NAME} bytes",
        )
    if is_reserved(target):
        raise InvalidInput(
            f"mount target {target!r} belongs to the wall",
            remediation="choose another, such as /data",
        )
    return target


def plain(path: str) -> str:
    """Return an absolute path as it is written without dots and doubled slashes, wherever."""
    return normpath(f"/{path.lstrip('/')}")


def is_reserved(target: str) -> bool:
    return target in _WHOLE or any(target == r or target.startswith(r + "/") for r in _RESERVED)


def check_apart(mounts: Sequence[Mount], *, image: bool) -> None:
    """Raises InvalidInput where a mount would cover another. Where the links of an ``image`` lead
    is looked at where that is open."""
    places: dict[str, str] = {}
    for target in (mount.target for mount in mounts):
        place = target
        for link, leads in () if image else _LINKS:
            place = leads + place.removeprefix(link) if place.startswith(link) else place
        if place in places:
            what = f"two mounts at {target}"
            if places[place] != target:
                what = f"the mounts {places[place]} and {target} are one place"
            raise InvalidInput(what, remediation="give each its own")
        places[place] = target
    for inner, target in places.items():
        for outer, other in places.items():
            if inner.startswith(f"{outer}/"):
                raise InvalidInput(
                    f"mount {target} lies inside another mount, {other}",
                    remediation="mount it somewhere else, such as /data",
                )


def unmountable(mount: Mount, why: str, check: str = "the path") -> InvalidInput:
    """Return the error for a source that cannot be opened: its last part may have been a mode."""
    _, colon, mode = mount.source.rpartition(":")
    meant = ""
    if mode in MountMode._value2member_map_:
        meant = "; a mount has one mode: leave one out"
    elif colon and "/" not in mode:
        meant = f"; {mode!r} is no mode: use ro, rw or cow"
    return InvalidInput(
        f"cannot mount {mount.source}",
        cause=why,
        remediation=f"check {check}, and that you may read it{meant}",
    )


def unopened(mount: Mount, error: OSError, check: str = "the path") -> AgentdError:
    """Return the error for a source that the system did not open: who names it is not to blame for
    what the system is short of."""
    why = error.strerror or str(error)
    if fix := scarce(error):
        return SandboxError(f"cannot mount {mount.source}", cause=why, remediation=fix)
    return unmountable(mount, why, check)


def check_workspace(mount: Mount, *, directory: bool) -> None:
    """Raises InvalidInput where it is the workspace, and no ``directory``."""
    if mount.target == WORKSPACE and not directory:
        raise InvalidInput(
            f"workspace {mount.source!r} is not a directory", remediation="give a directory"
        )


def unknown_mode(text: str, mode: str, known: tuple[MountMode, ...]) -> InvalidInput:
    if mode in known:
        return InvalidInput(f"two modes of the mount {text!r}", remediation="leave one out")
    return InvalidInput(
        f"unknown mode {mode!r} of the mount {text!r}",
        remediation=f"use one of: {', '.join(known)}",
    )


def _split_mode(
    text: str, default: MountMode, allowed: tuple[MountMode, ...]
) -> tuple[str, MountMode]:
    path, colon, suffix = text.rpartition(":")
    if colon and suffix in MountMode._value2member_map_:
        mode = MountMode(suffix)
        if mode not in allowed:
            names = ", ".join(allowed)
            raise InvalidInput(
                f"mount {text!r} cannot be {mode}", remediation=f"use one of: {names}"
            )
        return path, mode
    return text, default


def _host_path(path: str, text: str) -> str:
    if not path or "\0" in path:
        raise InvalidInput(
            f"mount {text!r} names no host path", remediation="write it as PATH[:mode]"
        )
    _encoded(path, "source")
    return plain(abspath(expanduser(path)))


def _encoded(path: str, what: str) -> bytes:
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidInput(
            f"mount {what} {path[:100]!r} is no path", remediation="name it by its own characters"
        ) from None


def asked_mounts(
    workspace: str | os.PathLike[str] | None,
    mounts: Iterable[str | Mount] | None,
    volumes: Iterable[str] | None,
) -> tuple[Mount, ...]:
    """Return what is to be mounted, the workspace first. Raises InvalidInput."""
    # One text would be taken for a list of its letters.
    if isinstance(mounts, str | bytes | Mapping) or not isinstance(mounts, Iterable | None):
        raise InvalidInput(
            "mounts are no list of mounts", remediation='write them as ["SRC:DST[:ro|rw]"]'
        )
    mounts = tuple(mounts or ())
    for mount in mounts:
        if not isinstance(mount, str | Mount):
            raise InvalidInput(
                f"mount {mount!r} is no text and no Mount",
                remediation="write it as SRC:DST[:ro|rw]",
            )
        if isinstance(mount, Mount) and not all(isinstance(of, str) for of in astuple(mount)):
            raise InvalidInput(
                f"{mount!r} has a member that is no text",
                remediation='write it as Mount("/source", "/target", MountMode.RO)',
            )
    volumes = _names(volumes)
    if len(mounts) + len(volumes) + (workspace is not None) > MAX_MOUNTS:
        raise InvalidInput(
            f"more than {MAX_MOUNTS} mounts and volumes are asked for",
            remediation="mount a folder that has several of them",
        )
    found = [] if workspace is None else [parse_workspace(_workspace_path(workspace))]
    found += [mount if isinstance(mount, Mount) else parse_mount(mount) for mount in mounts]
    found += map(parse_volume, volumes)
    for mount in found:
        long = max(mount.source, mount.target, key=len)
        if len(long) > MAX_PATH:
            raise InvalidInput(
                f"the mount of {long[:100]!r}... has a path of over {MAX_PATH} characters",
                remediation="name a shorter one",
            )
    targets = [mount.target for mount in found]
    for target in targets:
        if targets.count(target) > 1:
            raise InvalidInput(
                f"two mounts have the target {target!r}", remediation="give each its own"
            )
    return tuple(found)


def _names(volumes: Iterable[str] | None) -> tuple[str, ...]:
    fix = 'write them as ["NAME:/data[:ro|rw]"]'
    if isinstance(volumes, str | bytes | Mapping) or not isinstance(volumes, Iterable | None):
        raise InvalidInput("volumes are no list of volumes", remediation=fix)
    volumes = tuple(volumes or ())
    if wrong := [volume for volume in volumes if not isinstance(volume, str)]:
        raise InvalidInput(f"volume {wrong[0]!r} is no text", remediation=fix)
    return volumes


def _workspace_path(workspace: str | os.PathLike[str]) -> str:
    path = workspace.__fspath__() if isinstance(workspace, os.PathLike) else workspace
    if not isinstance(path, str):
        raise InvalidInput(
            f"workspace {workspace!r} is no path", remediation="write it as PATH[:ro|rw|cow]"
        )
    return path
