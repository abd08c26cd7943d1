"""Runs in the sandbox: a shallow clone over https, with nothing of git that runs or asks.

In: {root, path, temporary, url, ref, depth, ca_pem, max_bytes, max_files, timeout}; ``path`` is
absolute, ``ref`` a branch, a tag, a commit or "", ``timeout`` in seconds. The daemon has checked
``url`` and ``ref``. Out: what ``builtin/git_clone.py`` decodes.

The server and the repository are untrusted. The clone is made under another name and takes its own
when all of it is there.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import socket
import time
from typing import Any

from agentd.capability.inside.common import Failed, answer, open_parent, remove_tree
from agentd.capability.inside.git_failures import failed
from agentd.capability.inside.git_safety import CONFIG, environment
from agentd.capability.inside.processes import run

MAX_REFS = 1 << 20  # bytes of what a server says of its refs
_COMMIT = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Git:
    """Runs git in the current directory."""

    def __init__(self, ask: dict[str, Any], certificates: str) -> None:
        program = shutil.which("git")
        if program is None:
            raise Failed("no_git", "there is no git in the sandbox", "use an image that has it")
        settings = [*CONFIG, *([f"http.sslCAInfo={certificates}"] if certificates else [])]
        self._base = [program, *(part for setting in settings for part in ("-c", setting))]
        self._end = time.monotonic() + ask["timeout"]
        self._env = environment(os.environ)

    def stream(self, take: Any, *arguments: str) -> None:
        code, stderr = run([*self._base, *arguments], self._env, self._end, take)
        if code:
            raise failed(code, stderr)

    def text(self, *arguments: str) -> str:
        found = bytearray()

        def take(data: bytes) -> None:
            found.extend(data)
            if len(found) > MAX_REFS:
                raise Failed("too_large", f"git's answer is over {MAX_REFS} bytes")

        self.stream(take, *arguments)
        return found.decode(errors="replace").strip()


class Tree:
    """Counts what ``git ls-tree -r -l -z`` says, before any of it is written."""

    def __init__(self, max_files: int, max_bytes: int) -> None:
        self.files = self.bytes = self.submodules = self.symlinks = 0
        self._max_files, self._max_bytes = max_files, max_bytes
        self._rest = b""

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\0")
        for line in lines:
            mode, kind, _, size = line.partition(b"\t")[0].split()
            self.submodules += kind == b"commit"
            self.symlinks += mode == b"120000"
            self.files += kind == b"blob"
            self.bytes += int(size) if size.isdigit() else 0
        if self.files + self.submodules > self._max_files or self.bytes > self._max_bytes:
            raise Failed(
                "too_large",
                f"its files are over {self._max_files}, or over {self._max_bytes} bytes",
                "raise max_files or max_bytes",
            )


def work(ask: dict[str, Any]) -> dict[str, Any]:
    if not _has_network():
        raise Failed("no_network", "the sandbox has no network", "create it with one")
    place, name = open_parent(ask["root"], ask["path"])
    try:
        _check_free(place, name, ask["path"])
        os.mkdir(ask["temporary"], 0o700, dir_fd=place)
        try:
            work_place = os.open(ask["temporary"], _DIRECTORY, dir_fd=place)
            os.fchdir(work_place)
            done = _clone(ask)
            os.chdir("/")
            os.rename("repository", name, src_dir_fd=work_place, dst_dir_fd=place)
        finally:
            remove_tree(place, ask["temporary"])
    finally:
        os.close(place)
    return done


def _has_network() -> bool:
    """Return whether there is a way to anywhere; connecting a datagram socket sends nothing."""
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return True
    with contextlib.suppress(OSError), open("/proc/net/route") as routes:
        return len(routes.readlines()) > 1
    return False


def _check_free(place: int, name: str, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.lstat(name, dir_fd=place)
        raise Failed("exists", f"{path} is there already", "name a directory that is not")


def _clone(ask: dict[str, Any]) -> dict[str, Any]:
    # A pack, too, is one file: the kernel stops it.
    with contextlib.suppress(ValueError, OSError):  # a lower one holds already
        resource.setrlimit(resource.RLIMIT_FSIZE, (ask["max_bytes"], ask["max_bytes"]))
    git = Git(ask, _certificates(ask["ca_pem"]))
    ref, known = _resolve(git, ask["url"], ask["ref"])
    form = "sha256" if len(known) == 64 else "sha1"
    git.text("init", "-q", "--template=", f"--object-format={form}", "repository")
    os.chdir("repository")
    branch = ref[len("refs/heads/") :] if ref.startswith("refs/heads/") else ""
    tracked = ["-t", branch] if branch else []
    git.text("remote", "add", "--no-tags", *tracked, "--", "origin", ask["url"])
    _fetch(git, ask, ref, branch)
    commit = git.text("rev-parse", "--verify", "--end-of-options", "FETCH_HEAD^{commit}")
    tree = Tree(ask["max_files"], ask["max_bytes"])
    git.stream(tree.take, "ls-tree", "-r", "-l", "-z", "--full-tree", commit)
    where = ["--detach", commit]
    if branch:
        where = ["-B", branch, "--track", f"refs/remotes/origin/{branch}"]
    git.text("checkout", "-q", "--no-recurse-submodules", *where)
    return {
        "commit": commit,
        "ref": ref,
        "files": tree.files,
        "bytes": tree.bytes,
        "symlinks": tree.symlinks,
        "submodules": tree.submodules,
    }


def _certificates(pem: str) -> str:
    if not pem:
        return ""
    with open("ca.pem", "x") as file:
        file.write(pem)
    return os.path.abspath("ca.pem")


def _resolve(git: Git, url: str, ref: str) -> tuple[str, str]:
    """(its full name, the commit or tag that it is). Raises Failed("no_such_ref")."""
    if _COMMIT.fullmatch(ref):
        return ref, ref
    names = [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    names = names if ref else ["HEAD"]
    found = {}
    for line in git.text("ls-remote", "--symref", "--", url, *names).splitlines():
        value, _, name = line.partition("\t")
        found[f"@{name}" if value.startswith("ref: ") else name] = value
    for name in names:  # a pattern also matches the ends of other names
        if _COMMIT.fullmatch(found.get(name, "")):
            head = found.get("@HEAD", "").partition(" ")[2]
            return (head if name == "HEAD" and _is_branch(head) else name), found[name]
    raise Failed("no_such_ref", f"it has no {ref or 'HEAD'}", "check ref, or whether it is empty")


def _is_branch(name: str) -> bool:
    """The server's word: it becomes an argument."""
    return bool(re.fullmatch(r"refs/heads/[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,200}", name))


def _fetch(git: Git, ask: dict[str, Any], ref: str, branch: str) -> None:
    wanted = ref
    if branch:
        wanted = f"+{ref}:refs/remotes/origin/{branch}"
    elif ref.startswith("refs/tags/"):
        wanted = f"+{ref}:{ref}"
    depth = [f"--depth={ask['depth']}"] if ask["depth"] else []
    flags = ["-q", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance", *depth]
    git.text("fetch", *flags, "--", ask["url"], wanted)


if __name__ == "__main__":
    answer(work)
