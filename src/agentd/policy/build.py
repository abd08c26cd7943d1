"""From a bundle's files to what the engine loads, kept by digest."""

import contextlib
import functools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from agentd.model import typed
from agentd.model.errors import InvalidInput
from agentd.policy import lint
from agentd.policy.errors import BundleError, BundleProblem
from agentd.policy.frames import Build, Compiled
from agentd.policy.process import WorkerLost, WorkerProcess, WorkerSlow
from agentd.policy.reads import Reads
from agentd.policy.source import BundleSource
from agentd.policy.workplace import workplace

# The decision, and the sets of texts that explain it.
ENTRYPOINTS = ("agentd/decision", "agentd/deny", "agentd/approve", "agentd/grant")
_FORMAT = 3  # of what is kept beside the engine's file
MOST = 64  # compiled bundles in a cache; each has some 30 KB


class Built(msgspec.Struct, frozen=True):
    digest: str  # of the source
    path: str
    reads: Reads


class Cache:
    """A folder of compiled bundles. Nobody else may write it: who can, makes the policy.

    Without ``folder`` it is one of its own, which ``close`` removes. Raises InvalidInput for a
    folder that is not its user's alone.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._own = contextlib.ExitStack()
        self._folder = _private(folder) if folder else self._own.enter_context(workplace())

    def close(self) -> None:
        self._own.close()

    def get(self, source: BundleSource) -> Built | None:
        path = self._path(source)
        try:
            if not (_is_ours(path) and _is_ours(f"{path}.json")):
                return None
            about = Path(f"{path}.json").read_bytes()
            os.utime(path)  # it is in use
            return Built(source.digest, path, typed.decoder(Compiled).decode(about).reads)
        except (OSError, msgspec.MsgspecError):
            return None

    def put(self, source: BundleSource) -> Built:
        """Compiles it, in a process of its own. Raises BundleError, AgentdError."""
        path = self._path(source)
        with workplace(self._folder) as folder:
            new = os.path.join(folder, "new")
            done = compiled(source, new)
            Path(folder, "about").write_bytes(msgspec.json.encode(done))
            os.chmod(os.path.join(folder, "about"), 0o600)
            os.replace(os.path.join(folder, "about"), f"{path}.json")
            os.replace(new, path)
        with contextlib.suppress(OSError):  # the next may
            self._trim()
        return Built(source.digest, path, done.reads)

    def _trim(self) -> None:
        """Remove all but those that were used last. Raises OSError."""
        with os.scandir(self._folder) as found:
            files = [each for each in found if each.is_file() and not each.name.endswith(".json")]
            files.sort(key=lambda each: each.stat().st_mtime_ns, reverse=True)
        for old in files[MOST:]:
            for path in (old.path, f"{old.path}.json"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _path(self, source: BundleSource) -> str:
        name = source.digest.removeprefix("sha256:")
        return os.path.join(self._folder, f"{name}-{_FORMAT}-{_engine()}")


@contextlib.contextmanager
def worker() -> Iterator[WorkerProcess]:
    """Lend a worker that nobody else has, until the end of the block."""
    process = WorkerProcess()
    try:
        yield process
    finally:
        process.close()


def compiled(
    source: BundleSource,
    path: str,
    more: Mapping[str, str] | None = None,
    entrypoints: Sequence[str] = ENTRYPOINTS,
) -> Compiled:
    """Writes to ``path``; ``more`` are modules besides its own.

    Raises BundleError; AgentdError where no process can be started, or it hung.
    """
    modules = {**source.modules, **(more or {})}
    problems = lint.modules(modules)
    if not problems:
        build = Build(path, modules, source.data.decode(), list(entrypoints))
        try:
            with worker() as process:
                about = f"the compile of the policy bundle {source.where}"
                answer = process.work(b"b", msgspec.json.encode(build), about)
        except WorkerSlow:
            raise  # the bundle may be all right
        except WorkerLost as error:
            ended = BundleProblem("", 0, f"the engine's compiler broke off: {error.cause}")
            raise BundleError(source.where, [ended]) from error
        done = typed.decoder(Compiled).decode(answer)
        problems = done.problems + lint.builtins(done.builtins)
        if not problems:
            return done
    raise BundleError(source.where, problems)


def _private(folder: str) -> str:
    os.makedirs(folder, 0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or not _belongs(status):
        raise InvalidInput(
            f"{folder} cannot keep policies",
            cause="it is not a folder that this user alone may write",
            remediation=f"chown it to uid {os.geteuid()} and chmod 700 it, or name another",
        )
    return folder


def _is_ours(path: str) -> bool:
    status = os.lstat(path)
    return stat.S_ISREG(status.st_mode) and _belongs(status)


def _belongs(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


@functools.cache
def _engine() -> str:
    from importlib.metadata import version

    return version("regopy")
