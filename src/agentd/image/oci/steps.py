"""What steps of builds became, by the digest of all that they depend on: the cache of builds.

FOLDER/steps/KEY.json   a layer, or that there was nothing to keep (``BuiltStep``)

A record keeps its layer's blob in the store. All go with ``prune``; beyond ``MOST`` the oldest.
"""

import contextlib
import os

import msgspec

from agentd.image.model import Corrupt
from agentd.image.oci.values import decode, encode
from agentd.linux.replacing import replacing

FOLDER = "steps"
MOST = 2000
FORMAT = 2
_SUFFIX = ".json"


class BuiltStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``digest`` is that of its layer, which is not compressed; empty where it changed nothing.
    ``created`` is in seconds since 1970."""

    format: int
    digest: str
    size: int
    created: int


class BuiltSteps:
    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(folder, FOLDER)

    def get(self, key: str) -> BuiltStep | None:
        """Find one; None where there is none, or none that can be read."""
        try:
            with open(os.path.join(self.folder, key + _SUFFIX), "rb") as file:
                found = decode(file.read(1 << 16), BuiltStep, "record of a step")
        except (OSError, Corrupt):
            return None
        return found if found.format == FORMAT else None

    def put(self, records: dict[str, BuiltStep]) -> None:
        """Keep these, by the key of each step, under the store's lock. Raises OSError."""
        if not records:
            return
        os.makedirs(self.folder, 0o700, exist_ok=True)
        for key, step in records.items():
            path = os.path.join(self.folder, key + _SUFFIX)
            with replacing(path, 0o600, alone=True) as file:
                file.write(encode(step))
        names = [name for name in os.listdir(self.folder) if name.endswith(_SUFFIX)]
        if len(names) > MOST:
            paths = [os.path.join(self.folder, name) for name in names]
            for path in sorted(paths, key=os.path.getmtime)[: len(paths) - MOST]:
                os.unlink(path)

    def blobs(self) -> set[str]:
        """Return the hex digits of all that they keep."""
        found = set()
        for name in self._names():
            step = self.get(name.removesuffix(_SUFFIX))
            if step is not None and step.digest:
                found.add(step.digest.removeprefix("sha256:"))
        return found

    def clear(self) -> None:
        """Forget all; under the store's lock."""
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []
