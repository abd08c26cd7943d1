"""What a snapshot says of itself."""

import msgspec

from agentd.model.spec import SandboxSpec

FORMAT = 1
MAX_FORKS = 64  # each is as large as the original: a slip of the pen must not fill the machine


class StateFile(msgspec.Struct, frozen=True):
    """``path`` is relative to the snapshot's state; ``digest`` is that of ``sandbox.sparse``."""

    path: str
    size: int
    digest: str


class SnapshotManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``fidelity`` is what was kept: "memory" is processes and files, "files" is files alone."""

    format: int = FORMAT
    id: str
    fidelity: str
    backend: str
    level: str
    spec: SandboxSpec
    created: str = ""  # ISO 8601, UTC
    agentd: str = ""  # the version that wrote it
    files: tuple[StateFile, ...] = ()
