"""pip in a sandbox: what it is asked for, and what its answers and its complaints mean.

Two runs: the first finds which wheels a request is, the second fetches these and unpacks them.
"""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import msgspec

from agentd.daemon.packages.driver import BUILT, MEMORY, UNFETCHED
from agentd.daemon.packages.python import TargetPython
from agentd.model import typed
from agentd.model.errors import AgentdError, InvalidInput, SandboxError, Unavailable
from agentd.model.packages import LockedPackage
from agentd.transport.text import safe_text

#: Inside: where pip is shown, and what it writes.
PIP, REPORT, LOCK, SITE = "/opt/agentd/pip", "/tmp/report.json", "/tmp/lock.txt", "/workspace/site"
MAX_REPORT = 32 << 20  # bytes; the descriptions of all that was found are in it
MAX_LOCKED = 1024  # packages
_MAX_SAID = 400
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(r"[A-Za-z0-9_.+!-]{1,255}\.whl")
_FETCHING = re.compile(r"(?:Downloading|Using cached) (\S+) \((.+)\)")
_STEP = re.compile(r"Progress (\d+) of (\d+)")
_NONE = re.compile(
    r"No matching distribution found for (.+)|Package '([^']+)' requires a different Python"
)
_PLAIN = re.compile(r"[a-z0-9._+!-]{1,128}", re.I)


class _Archive(msgspec.Struct, frozen=True):
    hashes: dict[str, str] = {}


class _Download(msgspec.Struct, frozen=True):
    url: str
    archive_info: _Archive = _Archive()


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    version: str


class _Item(msgspec.Struct, frozen=True):
    download_info: _Download
    metadata: _Metadata
    is_direct: bool = False


class _Report(msgspec.Struct, frozen=True):
    """Of pip's ``--report``, version 1."""

    version: str
    install: list[_Item]


def folder() -> str:
    """Return where pip is beside agentd. Raises Unavailable."""
    found = find_spec("pip")
    if found is None or found.origin is None:
        raise Unavailable(
            "packages cannot be resolved: pip is not where agentd is",
            remediation="install agentd anew, or run python -m ensurepip in its environment",
        )
    return os.path.realpath(os.path.dirname(found.origin))


def resolving(python: TargetPython, index: str, packages: Sequence[str]) -> list[str]:
    """Return the words of the run that writes REPORT."""
    asked = ["--dry-run", "--report", REPORT, "--target", SITE]
    return [*_common(python, index), *asked, "--", *packages]


def unpacking(python: TargetPython, index: str, *, compiled: bool) -> list[str]:
    """Return the words of the run that makes SITE of LOCK, and refuses another digest."""
    asked = ["--no-deps", "--require-hashes", "--requirement", LOCK, "--target", SITE]
    return [*_common(python, index), *asked, *([] if compiled else ["--no-compile"])]


def lock_text(packages: Sequence[LockedPackage]) -> str:
    return "".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in packages)


def _common(python: TargetPython, index: str) -> list[str]:
    words = ["install", "--isolated", "--no-input", "--disable-pip-version-check", "--no-color"]
    words += ["--no-cache-dir", "--no-warn-script-location", "--root-user-action", "ignore"]
    words += ["--progress-bar", "raw", "--retries", "2", "--timeout", "20"]
    words += ["--only-binary", ":all:", "--index-url", index]
    if urlsplit(index).scheme == "http":  # the operator's choice, said once
        words += ["--trusted-host", urlsplit(index).netloc]
    words += ["--implementation", "cp", "--python-version", python.python_full_version]
    words += ["--abi", python.abi]
    for platform in python.platforms:
        words += ["--platform", platform]
    return words


def locked(report: bytes) -> tuple[LockedPackage, ...]:
    """Return what a report says. Raises InvalidInput for what is needed by its address and for
    too much, SandboxError for what is no report: nothing of it counts."""
    if len(report) > MAX_REPORT:
        raise InvalidInput(
            f"what the packages say of themselves has over {MAX_REPORT >> 20} MiB",
            remediation="ask for fewer, or for other versions",
        )
    try:
        found = typed.decoder(_Report).decode(report)
    except msgspec.MsgspecError as error:
        raise SandboxError("pip wrote no report", cause=str(error)) from None
    if len(found.install) > MAX_LOCKED:
        raise InvalidInput(
            f"what is asked for and needed are {len(found.install)} packages, over {MAX_LOCKED}",
            remediation="ask for fewer, or make an image that has them",
        )
    packages = []
    for item in found.install:
        wheel = unquote(urlsplit(item.download_info.url).path.rpartition("/")[2])
        sha256 = item.download_info.archive_info.hashes.get("sha256", "")
        name, version = item.metadata.name, item.metadata.version
        if item.is_direct:
            raise InvalidInput(
                f"{safe_text(name, 80)} is needed by an address, and not by its name",
                remediation="ask for another version of what needs it",
            )
        plain = _PLAIN.fullmatch(name) and _PLAIN.fullmatch(version)
        if not (plain and _WHEEL.fullmatch(wheel) and _SHA256.fullmatch(sha256)):
            raise SandboxError(
                f"the index has no wheel with a sha256 of {safe_text(name, 80)}",
                remediation="ask for another version, or use an index that gives digests",
            )
        packages.append(LockedPackage(name, version, wheel, sha256))
    return tuple(sorted(packages, key=lambda package: (package.name, package.version)))


def stage_of(line: str) -> tuple[str, float | None] | None:
    """Return what a line of pip's output says of how far it is."""
    if (step := _STEP.fullmatch(line)) is not None and int(step[2]):
        return "", int(step[1]) / int(step[2])
    if (fetching := _FETCHING.search(line)) is not None and fetching[1].endswith(".whl"):
        name = "-".join(safe_text(fetching[1], 120).split("-")[:2])
        return f"fetching {name} ({safe_text(fetching[2], 20)})", None
    if line.startswith("Installing collected"):
        return "unpacking packages", None
    return None


def raise_failure(
    output: str, packages: Sequence[str], python: TargetPython, index: str
) -> NoReturn:
    """Raise what pip's complaint means, and its words: InvalidInput, Unavailable, SandboxError."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    told = [line for line in errors if not line.startswith("Ignored the following")]
    said = safe_text((told or lines or [""])[0 if told else -1], _MAX_SAID)
    raise _failure(lines, errors, said, packages, python, index)


def _failure(
    lines: Sequence[str],
    errors: Sequence[str],
    said: str,
    packages: Sequence[str],
    python: TargetPython,
    index: str,
) -> AgentdError:
    asked = ", ".join(packages)
    if why := _why_unreached(lines):
        return Unavailable(
            f"packages cannot be fetched: the index {urlsplit(index).netloc} does not give them",
            cause=safe_text(why, _MAX_SAID),
            remediation="see to this machine's network, or set packages.index in the configuration "
            "to an index that it reaches",
        )
    if any("No space left on device" in line for line in lines):
        return InvalidInput(
            f"the packages {asked} are larger than there is room for",
            remediation="ask for fewer, raise packages.size, or make an image that has them",
        )
    if any(line.startswith("MemoryError") for line in lines):
        return InvalidInput(
            f"to find the packages {asked} takes over {MEMORY >> 20} MiB of memory",
            remediation="ask for other versions, or see to what the index says of them",
        )
    if built := [line for line in errors if line.endswith(BUILT)]:
        return InvalidInput(
            f"the packages {asked} need one that is no wheel",
            cause=safe_text(built[0], _MAX_SAID),
            remediation="ask for another version of what needs it",
        )
    none = [found[1] or found[2] for line in errors if (found := _NONE.match(line)) is not None]
    if none:
        name = safe_text(none[0], 200)
        return InvalidInput(
            f"there is no wheel of {name} for {python.told}",
            cause=said,
            remediation="check its name and version; where it has no wheel for this Python, "
            "install it in the sandbox, or use an image with another Python",
        )
    if any("conflicting dependencies" in line or "ResolutionImpossible" in line for line in errors):
        return InvalidInput(
            f"the packages {asked} cannot be had together",
            cause=said,
            remediation="loosen the bounds of their versions",
        )
    return SandboxError(
        f"the packages {asked} cannot be resolved",
        cause=said,
        remediation="ask for other versions; agentd run --net pypi -- pip download shows more",
    )


def _why_unreached(lines: Sequence[str]) -> str:
    """Why a page or a file was not had; "" where all were, or are not there."""
    for line in lines:
        unfetched = line.startswith(UNFETCHED) and " 404 " not in line and ": 404" not in line
        if unfetched or (line.startswith("ERROR: ") and " Server Error" in line):
            why = line.removeprefix(UNFETCHED).removeprefix("ERROR: ")
            return why.removeprefix("connection error: ")
    return ""
