"""Which apt images are built by: this machine's own on Debian, else one that has Debian's archive.

FOLDER/.apt/   lists, sources and configuration of that one: nothing of this machine's apt is
               changed, and nothing of it used but how it reaches archives (proxies and the like)
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator

from agentd.image import distribution, store
from agentd.linux import locks, programs
from agentd.linux.replacing import replacing
from agentd.model.errors import InvalidInput, Unavailable

#: The archive of a site's own, which is used on Debian as well then.
MIRROR = "AGENTD_DEBIAN_MIRROR"
_ARCHIVE, _SECURITY = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
_SUITE = "trixie"
# Nothing that could end a line of sources.list(5), or begin an option.
_URL = re.compile(r"(https?://|file:/)[^\s\[\]\x00-\x20\x7f]{1,500}")
# Debian's package debian-archive-keyring, and others' of it.
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
)
_KEYRING_FIX = (
    "install debian-archive-keyring (Ubuntu, Arch) or debian-keyring (Fedora), by whose keys "
    "Debian's archive is checked"
)
_OWN_LISTS = "/var/lib/apt/lists"
_FRESH_SECONDS = 24 * 3600.0
_FOLDERS = ("etc", "state/lists/partial", "cache/archives/partial")
_SECONDS = 20.0


def is_private() -> bool:
    return bool(os.environ.get(MIRROR)) or not distribution.is_debian()


def archive() -> str:
    """Return its address. Raises InvalidInput."""
    url = os.environ.get(MIRROR) or _ARCHIVE
    if not _URL.fullmatch(url):
        raise InvalidInput(
            f"{MIRROR}={url[:200]!r} is no address of an archive",
            remediation=f"give one as {_ARCHIVE}",
        )
    return url.rstrip("/")


def lists() -> str:
    """Return the folder of what apt knows."""
    return os.path.join(_folder(), "state/lists") if is_private() else _OWN_LISTS


def variables() -> dict[str, str]:
    """Return what apt's programs are started with; its files are made if need be. Raises
    Unavailable, InvalidInput."""
    if not is_private():
        return {}
    folder = _folder()
    try:
        for name in _FOLDERS:
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        _write(os.path.join(folder, "status"), "")
        _write(os.path.join(folder, "etc/sources.list"), _sources())
        path = os.path.join(folder, "apt.conf")
        _write(path, _configuration(folder))
    except OSError as error:
        raise Unavailable(
            f"apt's files cannot be made in {folder}",
            cause=error.strerror or "",
            remediation="set XDG_CACHE_HOME to a folder that you can write to",
        ) from error
    return {"APT_CONFIG": path}


@contextlib.contextmanager
def updating() -> Iterator[bool]:
    """Yield True to the only one who is to look up now what the archive has: once a day."""
    if not is_private():
        yield False
        return
    variables()
    with locks.held(os.path.join(_folder(), "lock")):
        stamp = os.path.join(_folder(), "updated")
        wanted = not _is_fresh(stamp)
        yield wanted
        if wanted:
            _write(stamp, archive())
            os.utime(stamp)


def fix() -> str:
    """Say what helps where apt fails."""
    if is_private():
        return f"see that {archive()} can be reached, or set {MIRROR} to a mirror"
    return "run apt-get update as root, and check /etc/apt/sources.list"


def _folder() -> str:
    return os.path.join(store.default_folder(), ".apt")


def _is_fresh(stamp: str) -> bool:
    try:
        with open(stamp, encoding="utf-8") as file:
            same = file.read() == archive()
        return same and 0 <= time.time() - os.stat(stamp).st_mtime < _FRESH_SECONDS
    except OSError:
        return False


def _sources() -> str:
    """Raises Unavailable."""
    url = archive()
    keyring = next((path for path in _KEYRINGS if os.path.exists(path)), None)
    if keyring is None:
        raise Unavailable("Debian's archive keys are not installed", remediation=_KEYRING_FIX)
    line = f"deb [arch=amd64 signed-by={keyring}]"
    found = [f"{line} {url} {suite} main" for suite in (_SUITE, f"{_SUITE}-updates")]
    if url == _ARCHIVE:  # a mirror need not have it
        found.append(f"{line} {_SECURITY} {_SUITE}-security main")
    return "\n".join([*found, ""])


def _configuration(folder: str) -> str:
    """In apt.conf(5)'s words. What the machine's apt says of the way to archives comes first."""
    own = {
        "Dir": folder,
        "Dir::State": "state",
        "Dir::State::status": os.path.join(folder, "status"),
        "Dir::Cache": "cache",
        "Dir::Etc": "etc",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::trustedparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
    }
    return "".join([*_reaching(), *(f'{name} "{value}";\n' for name, value in own.items())])


def _reaching() -> list[str]:
    """Lines of the machine's own configuration: proxies, certificates, time limits."""
    with contextlib.suppress(OSError):
        dumped = programs.ask(["apt-config", "dump", "Acquire"], _SECONDS).out
        lines = dumped.splitlines(keepends=True)
        return [line for line in lines if re.match(r"Acquire::(https?|ftp)::", line)]
    return []


def _write(path: str, text: str) -> None:
    """Whole, and only where it is another: others may read it now."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        if file.read() == text:
            return
    with replacing(path, 0o644) as file:
        file.write(text.encode())
