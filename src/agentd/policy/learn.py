"""Writes the smallest bundle that allows what was seen: of each call its shape, no more.

A shape is a capability with the folder of its path, the origin of its url, its port, and what
sandbox, network and mounts it had. Words of commands and contents of files are no part of it.
"""

import errno
import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentd.model.decision import Asked
from agentd.model.errors import InvalidInput, OperationFailed
from agentd.model.isolation import IsolationLevel
from agentd.policy.cases import tests
from agentd.policy.source import MANIFEST, BundleManifest, read, shipped

MAX_SHAPES = 500
_ORIGIN = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]{1,5})?)(?:[/?][!-~]*)?")
_FOLDERS = ("fs.list.v1", "fs.search.v1")  # their paths are folders already
_COMMON = ("base.rego", "scopes.rego", "learned.rego")


class Shape(msgspec.Struct, frozen=True):
    """``asked`` is the parameters port, net, mounts, workspace and isolation; folder and origin are
    "" where the call had no path or url."""

    folder: str
    origin: str
    net: Any
    egress: Any
    mounts: Any
    asked: Any
    host: Any = None  # of a connection that is asked about


def learn(seen: Sequence[Asked], out: str) -> Path:
    """Writes the bundle into the new or empty folder ``out``, with its tests.

    Raises InvalidInput where there is nothing to learn, or too much; OperationFailed.
    """
    if not seen:
        raise InvalidInput(
            "there is nothing to learn from",
            cause="no call was seen",
            remediation="let the command make some. Those that a daemon answers are seen where it "
            "is learned from: agentd policy learn --out DIR -- agentd serve, and end it",
        )
    shapes: dict[str, dict[bytes, tuple[Shape, Asked]]] = {}
    for asked in seen:
        shape = _shape(asked)
        known = shapes.setdefault(str(asked.capability["name"]), {})
        known.setdefault(msgspec.json.encode(shape), (shape, asked))
    if sum(map(len, shapes.values())) > MAX_SHAPES:
        raise InvalidInput(
            f"more than {MAX_SHAPES} different calls", remediation="learn from fewer"
        )
    first = {name: list(known.values()) for name, known in shapes.items()}
    learned = {name: [shape for shape, _ in calls] for name, calls in first.items()}
    data = {"policy": _policy(seen, learned), "learned": learned}
    cases = [asked for calls in first.values() for _, asked in calls]
    return _write(out, data, tests(cases))


def check_out(out: str) -> None:
    """Raises InvalidInput, OperationFailed where ``learn`` could not write into that folder, which
    is not made yet."""
    folder = Path(out).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        if os.listdir(there) and there == folder:
            raise _not_empty(out)
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritten(out, error) from error


def _shape(asked: Asked) -> Shape:
    given = asked.parameters
    return Shape(
        folder=_folder(str(asked.capability["name"]), given.get("path")),
        origin=_origin(given.get("url")),
        net=asked.sandbox.get("net"),
        egress=given.get("egress", asked.sandbox.get("egress", [])),
        mounts=asked.sandbox.get("mounts", []),
        asked=[given.get(key) for key in ("port", "net", "mounts", "workspace", "isolation")],
        host=given.get("host"),
    )


def _folder(name: str, path: object) -> str:
    """Return the folder that the file is in; a file of the root folder stands for itself."""
    if path is None:
        return ""
    if not isinstance(path, str) or ".." in path.split("/"):
        raise InvalidInput(
            f"a path like {path!r} cannot be learned", remediation="use one without .."
        )
    full = posixpath.normpath(re.sub("/+", "/", posixpath.join("/workspace", path)))
    parent = posixpath.dirname(full)
    return full if name in _FOLDERS or parent == "/" else parent


def _origin(url: object) -> str:
    """Return the origin of a plain http(s) url; any other is learned as a whole."""
    if url is None:
        return ""
    plain = _ORIGIN.fullmatch(str(url))
    return plain[1] if plain else str(url)


def _policy(seen: Sequence[Asked], learned: dict[str, list[Shape]]) -> dict[str, object]:
    levels = [IsolationLevel.parse(a.sandbox["level"]) for a in seen if a.sandbox.get("level")]
    connected = any(
        asked.capability.get("needs", {}).get("network") is not False
        or asked.sandbox.get("net") not in (None, "", "none")
        or asked.parameters.get("net") not in (None, "none")
        for asked in seen
    )
    calls = msgspec.json.decode((shipped("common") / "calls.json").read_bytes())["calls"]
    return {
        "others": "run" if set(learned) - set(calls) else None,
        "network": "any" if connected else "none",
        "level": min(levels).label if levels else None,
        "limits": {},
    }


def _write(out: str, data: object, cases: str) -> Path:
    folder = Path(out)
    manifest = BundleManifest(
        name=folder.name or "learned",
        description="what was seen",
        modules=tuple(f"agentd:{name}" for name in _COMMON),
        data=("agentd:calls.json", "data.json"),
        tests=("agentd:calls_test.rego",),
    )
    text = {
        MANIFEST: _json(manifest),
        "data.json": _json(data),
        "learned_test.rego": cases.encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.listdir(folder):
            raise _not_empty(out)
        for name, content in text.items():
            (folder / name).write_bytes(content)
            os.chmod(folder / name, 0o644)
    except OSError as error:
        raise _unwritten(out, error) from error
    read(folder)
    return folder


def _not_empty(out: str) -> InvalidInput:
    return InvalidInput(f"{out} is not empty", remediation="name a new folder")


def _unwritten(out: str, error: OSError) -> OperationFailed:
    return OperationFailed(
        f"cannot write {out}",
        errno=error.errno or 0,
        cause=error.strerror or str(error),
        remediation="name a new folder where you can write",
    )


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
