"""A bundle as it lies on disk: a folder with manifest.json, modules, data and tests.

manifest.json   {"name", "description", "modules": [...], "data": [...]}
*.rego          each named in the manifest; "agentd:base.rego" is one that agentd ships
data.json       likewise; objects whose members are joined under ``data``
*_test.rego     read for tests alone
"""

import hashlib
import os
import stat
from pathlib import Path

import msgspec

from agentd.model import typed
from agentd.policy.errors import BundleError, BundleProblem

SHIPPED = ("permissive", "strict", "paranoid")
MAX_FILES = 64
MAX_FILE = 256 << 10
MAX_TOTAL = 2 << 20
MANIFEST = "manifest.json"
_NO_MANIFEST = (
    'there is none: write {"name": "mine", "modules": ["mine.rego"]}, with the files\' names'
)
_COMMON = "agentd:"
_BUNDLES = Path(__file__).resolve().parent / "bundles"
_TEST = "_test.rego"


class BundleManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    modules: tuple[str, ...]
    data: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()  # those that agentd ships; one's own are found
    description: str = ""


class BundleSource(msgspec.Struct, frozen=True):
    """``modules`` and ``tests`` are name -> text, ``data`` one JSON object; ``digest`` is
    "sha256:..." over the name and content of every file, those that agentd ships included."""

    where: str
    manifest: BundleManifest
    modules: dict[str, str]
    tests: dict[str, str]
    data: bytes
    digest: str


def read(where: str | Path) -> BundleSource:
    """Read the bundle in a folder, or the shipped one of that name. Raises BundleError."""
    folder = locate(where)
    found = _folder(folder)
    problems: list[BundleProblem] = []
    if MANIFEST not in found:
        raise BundleError(str(where), [BundleProblem(MANIFEST, 0, _NO_MANIFEST)])
    manifest = _manifest(str(where), found[MANIFEST])
    named = [*manifest.modules, *manifest.data, *manifest.tests]
    problems += [
        BundleProblem(MANIFEST, 0, f"{n} is named twice")
        for n in sorted(set(named))
        if named.count(n) > 1
    ]
    used = {n: _content(n, found, problems) for n in named}
    tests = {n: _text(n, c, problems) for n, c in found.items() if n.endswith(_TEST)}
    tests.update({n: _text(n, used[n], problems) for n in manifest.tests})
    # A module that denies and is not named would be gone in silence.
    problems += [
        BundleProblem(n, 0, f"{MANIFEST} does not name it")
        for n in found
        if n not in used and n not in tests and n != MANIFEST
    ]
    modules = {n: _text(n, used[n], problems) for n in manifest.modules}
    data = _data({n: used[n] for n in manifest.data}, problems)
    if problems:
        raise BundleError(str(where), problems)
    return BundleSource(str(where), manifest, modules, tests, data, _digest({**found, **used}))


def locate(where: str | Path) -> Path:
    """Return the folder of a bundle: a path, or the name of a shipped one."""
    return shipped(str(where)) if str(where) in SHIPPED else Path(where)


def shipped(name: str) -> Path:
    return _BUNDLES / name


def _folder(folder: Path) -> dict[str, bytes]:
    try:
        names = sorted(n for n in os.listdir(folder) if not n.startswith("."))
        names = [n for n in names if n.endswith((".rego", ".json"))]
        if len(names) > MAX_FILES:
            raise BundleError(str(folder), [BundleProblem("", 0, f"more than {MAX_FILES} files")])
        found = {n: _bytes(folder, n) for n in names}
    except OSError as error:
        fix = f"give the path of a folder, or one of {', '.join(SHIPPED)}"
        what = f"cannot read {error.filename}: {error.strerror}: {fix}"
        raise BundleError(str(folder), [BundleProblem("", 0, what)]) from error
    if sum(map(len, found.values())) > MAX_TOTAL:
        raise BundleError(str(folder), [BundleProblem("", 0, f"more than {MAX_TOTAL >> 20} MiB")])
    return found


def _bytes(folder: Path, name: str) -> bytes:
    """Links may point within the folder, as those of mounted volumes do, and not out of it."""
    real = os.path.join(folder, name)
    if os.path.islink(real):
        real = os.path.realpath(real)
        if not real.startswith(os.path.realpath(folder) + os.sep):
            raise BundleError(str(folder), [BundleProblem(name, 0, "is a link out of the folder")])
    fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(str(folder), [BundleProblem(name, 0, "is not a regular file")])
        if status.st_mode & stat.S_IWOTH:
            what = f"anybody may write it: chmod o-w {folder / name}"
            raise BundleError(str(folder), [BundleProblem(name, 0, what)])
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise BundleError(str(folder), [BundleProblem(name, 0, f"more than {MAX_FILE >> 10} KiB")])
    return content


def _manifest(where: str, content: bytes) -> BundleManifest:
    try:
        return typed.decoder(BundleManifest).decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(where, [BundleProblem(MANIFEST, 0, str(error))]) from error


def _content(name: str, found: dict[str, bytes], problems: list[BundleProblem]) -> bytes:
    common = shipped("common")
    short = name.removeprefix(_COMMON)
    if name.startswith(_COMMON) and short in os.listdir(common):
        return _bytes(common, short)
    if name not in found:
        problems.append(BundleProblem(MANIFEST, 0, f"it names {name}, which is not there"))
    return found.get(name, b"{}" if name.endswith(".json") else b"")


def _text(name: str, content: bytes, problems: list[BundleProblem]) -> str:
    try:
        text = content.decode()
        if "\0" in text:
            raise ValueError("a NUL character")
    except ValueError as error:
        problems.append(BundleProblem(name, 0, str(error)))
        return ""
    return text


def _data(documents: dict[str, bytes], problems: list[BundleProblem]) -> bytes:
    """Written anew: the engine compares characters and their escapes as different texts."""
    joined: dict[str, object] = {}
    for name, content in documents.items():
        try:
            members = msgspec.json.decode(content, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problems.append(BundleProblem(name, 0, str(error)))
            continue
        # The engine would let data stand in for the rules of that name.
        problems += [
            BundleProblem(name, 0, f"data.{key} is {why}")
            for key in members
            for why in (
                *(["the policy's own"] if key == "agentd" else []),
                *(["in another file, too"] if key in joined else []),
            )
        ]
        joined.update(members)
    return msgspec.json.encode(joined)


def _digest(contents: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(contents):
        for part in (name.encode(), contents[name]):
            total.update(len(part).to_bytes(8, "big"))
            total.update(part)
    return f"sha256:{total.hexdigest()}"
