"""The noun of ``model.service`` that has most methods."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from agentd.model.api import ChangeView, EntryView


class Files(Protocol):
    """The files of a sandbox. Each method raises NotFound, Conflict and OperationFailed, whose
    ``errno`` says why."""

    def read(
        self, sandbox: str, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        """Read a file from ``offset`` on, in pieces."""

    def write(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        """Write a file, the whole of it or nothing; return its size. ``parents``: make the
        folders above it."""

    def list(self, sandbox: str, path: str) -> tuple[EntryView, ...]:
        """List what is in a folder."""

    def stat(self, sandbox: str, path: str) -> EntryView:
        """Return what a path is."""

    def mkdir(self, sandbox: str, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        """Make a folder; with ``parents`` those above it too, and it may be there."""

    def move(self, sandbox: str, path: str, to: str) -> None:
        """Give a file or folder another path."""

    def remove(self, sandbox: str, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty folder; ``recursive``: with all that is in it."""

    def watch(
        self, sandbox: str, path: str, *, recursive: bool = False, wake: int = -1
    ) -> Iterator[ChangeView]:
        """Tell changes as they happen, until the descriptor ``wake`` is readable."""

    def read_tar(self, sandbox: str, path: str) -> Iterator[bytes]:
        """Read a file or folder as a tar, whose names begin with the last part of ``path``."""

    def write_tar(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        """Unpack a tar in the folder ``path``. ``whole``: its one tree becomes ``path``, or nothing
        does; ``replace``: in the place of what is there."""
