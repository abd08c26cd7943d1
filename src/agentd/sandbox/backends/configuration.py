"""Which trees of the host's /etc and /var/lib a sandbox sees: found by a rule, kept in a cache.

What a program needs of them a package put there, owned by root and readable by everybody. Not so
what holds secrets, or tells of the host: services' configuration, and files of the machine's owner.
See docs/adr/0025-configuration-by-a-rule.md. Standard library only: each start waits for it.
"""

import contextlib
import fnmatch
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from agentd._version import __version__
from agentd.guest.zygote.root import ETC_TREES
from agentd.image import cache
from agentd.linux.replacing import replacing
from agentd.model.configuration import ROOTS, HostConfiguration

MAX_TREES = 64
_MAX_ENTRIES = 4096
_MAX_DEPTH = 3
_DPKG = "/var/lib/dpkg"
_CACHE = "configuration.json"
# What package managers know of what is installed, as /usr shows it, too.
_DATABASES = (_DPKG, "/var/lib/rpm", "/var/lib/pacman/local")
# Where packages are not told by dpkg, and what their scripts make.
_KNOWN = (
    *(
        f"/etc/{name}"
        for name in (
            *("ImageMagick-*", "OpenCL", "R", "X11/app-defaults", "chromium", "chromium.d"),
            *("clang", "fonts", "ghostscript", "glvnd", "groff", "gtk-[234]*", "java*", "jvm*"),
            *("libreoffice", "maven*", "openmpi", "perl", "php*", "python3*", "rubygems"),
            *("sgml", "texlive", "texmf", "vim", "vulkan", "xml"),
        )
    ),
    *(
        f"/var/lib/{name}"
        for name in (
            *("aspell", "dictionaries-common", "fonts", "ghostscript", "ispell", "mecab"),
            *("octave", "php*", "sgml-base", "tex-common", "texmf", "xml-core"),
        )
    ),
)
# What the rule would find on some machine, and what tells of the host or may hold a password.
_NEVER = frozenset(
    f"/etc/{name}"
    for name in (
        *("NetworkManager", "apache2", "apt", "audit", "cloud", "cni", "containers", "default"),
        *("docker", "environment.d", "grub.d", "initramfs-tools", "kernel", "krb5.conf.d"),
        *(
            *("kubernetes", "ldap", "letsencrypt", "lighttpd", "logcheck", "logrotate.d"),
            *("modprobe.d", "mysql"),
        ),
        *("netplan", "network", "nginx", "opt", "pam.d", "postgresql-common", "profile.d"),
        *("rancher", "security", "selinux", "skel", "ssh", "ssl/private", "sudoers.d"),
        *("sysctl.d", "systemd", "udev", "update-motd.d", "wireguard"),
    )
)
# A package that has one of these brings a service, whose configuration is its own.
_SERVICE = re.compile(
    rb"^(?:(?:/usr)?/lib/systemd/system/|/etc/(?:init\.d|pam\.d|cron\.[a-z]+)/"
    rb"|/usr/share/dbus-1/system-services/).",
    re.MULTILINE,
)
_CONFIGURATION = re.compile(rb"^/(?:etc|var/lib)/.+$", re.MULTILINE)


class PackagePaths(NamedTuple):
    """Paths that packages list: of those without a service, and of those with one."""

    programs: frozenset[str]
    services: frozenset[str]


def trees(wanted: HostConfiguration) -> tuple[str, ...]:
    """Directories that are shown, none of them in another; at most ``MAX_TREES``, and ``show``."""
    found = list(ETC_TREES)
    if wanted.which == "packages":
        found += _cached(wanted)
    found = [path for path in found if not (wanted.hides(path) or wanted.hides_in(path))]
    found = _outermost(found)[:MAX_TREES]
    return tuple(_outermost([*found, *wanted.show]))


def choose(
    wanted: HostConfiguration, listed: PackagePaths, root: str = "", owner: int = 0
) -> list[str]:
    """Apply the rule to all that there is below ``root``; ``owner`` is whose files must be."""
    rule = _Rule(wanted, listed, root, owner)
    found = [path for top in ROOTS for path in rule.below(top.rstrip("/"), 1)]
    return [*found, *(path for path in _DATABASES if os.path.isdir(root + path))]


class _Rule:
    def __init__(
        self, wanted: HostConfiguration, listed: PackagePaths, root: str, owner: int
    ) -> None:
        self._wanted = wanted
        self._programs = listed.programs
        self._services = frozenset(_above(listed.services))
        self._root = root
        self._owner = owner

    def below(self, folder: str, depth: int) -> Iterator[str]:
        """Yield the trees in ``folder``: a directory as a whole, or what will do of it."""
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(self._root + folder), key=lambda found: found.name):
                path = f"{folder}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False) or path in _NEVER:
                    continue
                if self._wanted.hides(path) or path in _DATABASES:
                    continue
                if self._is_public(path):
                    yield path
                elif depth < _MAX_DEPTH:
                    yield from self.below(path, depth + 1)

    def _is_public(self, path: str) -> bool:
        known = any(fnmatch.fnmatch(path, name) for name in _KNOWN)
        known = known or any(fnmatch.fnmatch(path, f"{name}/*") for name in _KNOWN)
        if not (known or path in self._programs) or path in self._services:
            return False
        if self._wanted.hides_in(path) or any(never.startswith(path + "/") for never in _NEVER):
            return False
        left = _MAX_ENTRIES
        try:
            for folder, folders, files in os.walk(self._root + path, onerror=_refuse):
                left -= len(folders) + len(files)
                if left < 0 or not self._is_readable(folder, *folders, *files):
                    return False
        except OSError:
            return False
        return left < _MAX_ENTRIES  # an empty one tells nothing

    def _is_readable(self, folder: str, *names: str) -> bool:
        """Return whether all are the owner's, and everybody may read them."""
        for name in ("", *names):
            status = os.lstat(os.path.join(folder, name))
            mode = status.st_mode
            wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
            plain = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
            if status.st_uid != self._owner or not (plain or stat.S_ISLNK(mode)):
                return False
            if plain and mode & wanted != wanted:
                return False
        return True


def listed_by_dpkg(database: str = _DPKG) -> PackagePaths:
    """Nothing where there is no dpkg."""
    programs: set[bytes] = set()
    services: set[bytes] = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{database}/info"):
            if not name.endswith(".list"):
                continue
            with open(f"{database}/info/{name}", "rb") as file:
                text = file.read()
            found = _CONFIGURATION.findall(text)
            if found:
                (services if _SERVICE.search(text) else programs).update(found)
    return PackagePaths(
        frozenset(os.fsdecode(path) for path in programs),
        frozenset(os.fsdecode(path) for path in services),
    )


def _refuse(error: OSError) -> None:
    raise error


def _above(paths: frozenset[str]) -> Iterator[str]:
    """Yield each directory in which one of the paths lies."""
    for path in paths:
        parts = path.split("/")
        for end in range(2, len(parts)):
            yield "/".join(parts[:end])


def _outermost(paths: list[str]) -> list[str]:
    """Each once, without what lies in another; in order."""
    kept: list[str] = []
    for path in sorted(paths):
        if not (kept and (path == kept[-1] or path.startswith(kept[-1] + "/"))):
            kept.append(path)
    return kept


def _cached(wanted: HostConfiguration) -> list[str]:
    """Look again where a package came or went, or a directory of /etc or /var/lib."""
    key = [__version__, list(wanted.hide), *map(_changed, (f"{_DPKG}/status", *ROOTS))]
    path = _cache_file()
    if path is not None:
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            kept = json.load(file)
            if isinstance(kept, dict) and kept.get("key") == key:
                return [str(tree) for tree in kept["trees"]]
    found = choose(wanted, listed_by_dpkg())
    if path is not None:
        with contextlib.suppress(OSError):
            _write(path, json.dumps({"key": key, "trees": found}))
    return found


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _cache_file() -> str | None:
    """None where the cache is not a place of our own."""
    folder = cache.own_folder()
    return None if folder is None else os.path.join(folder, _CACHE)


def _write(path: str, text: str) -> None:
    with replacing(path, 0o644) as file:
        file.write(text.encode())
