"""What a caller asks of a sandbox, and of a command in it."""

import re

import msgspec

from agentd.model.configuration import HostConfiguration
from agentd.model.egress import EgressBounds
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import Mount
from agentd.model.packages import LockedPackage
from agentd.model.secret import SecretBinding

DEFAULT_IMAGE = "default"
#: Of a machine image, or of an OCI image, which may be a registry's: "ghcr.io/me/tool:1.2".
IMAGE_NAME = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]{0,127}")

#: Of an OCI runtime.
RUNTIME_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class SandboxSpec(msgspec.Struct, frozen=True):
    """``isolation`` is the least that will do; ``backend`` names one wall and no other."""

    isolation: IsolationLevel = IsolationLevel.NAMESPACE
    backend: str | None = None
    mounts: tuple[Mount, ...] = ()
    net: str = "none"  # "none", "host" or "restricted"
    egress: tuple[str, ...] = ()  # of a restricted network: its rules, as model.egress spells them
    egress_bounds: EgressBounds = EgressBounds()  # what who runs this agentd lets them be
    secrets: tuple[SecretBinding, ...] = ()  # that it uses and never has
    limits: Limits = Limits()
    user: str | None = None  # uid inside, "root" or "sandbox"
    env: dict[str, str] = {}
    hostname: str = "sandbox"
    writable: bool = False  # all of the root, and not some places only
    image: str = DEFAULT_IMAGE  # of OCI, or what a virtual machine boots
    runtime: str | None = None  # which OCI runtime builds it, where a wall has a choice
    # Of the OCI image that ``image`` meant when it was looked up; "" before that, and without one.
    image_digest: str = ""
    # The host's programs behind overlays, where a wall shows them: inotify tells nothing of others.
    private_programs: bool = False
    packages: tuple[str, ...] = ()  # as model.packages spells them
    # The rules of the network that they are fetched by, as far as who asked was granted these.
    index_egress: tuple[str, ...] = ()
    # What those became, which is among ``mounts`` then; none before anybody has looked.
    locked: tuple[LockedPackage, ...] = ()
    template: str = ""  # whose settings it was made with; "" where that is none
    # What is to be read of the host's configuration, where a wall shows its programs.
    configuration: HostConfiguration = HostConfiguration()

    @property
    def network_bounds(self) -> EgressBounds:
        """What holds of a restricted network beside its rules: the limits too."""
        limits = self.limits
        return msgspec.structs.replace(
            self.egress_bounds, net_bytes=limits.net_bytes, net_rate=limits.net_rate
        )


class Pty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: int = 24
    cols: int = 80


class ExecLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one command, held by the kernel (setrlimit(2)); None leaves the sandbox's.

    All but ``processes`` count for each of its processes by itself. They can only tighten.
    """

    cpu: int | None = None  # seconds of CPU time
    processes: int | None = None  # of its user in the sandbox, threads too
    file_size: int | None = None  # bytes of any one file
    open_files: int | None = None  # descriptors
    address_space: int | None = None  # bytes


class ExecRequest(msgspec.Struct, frozen=True):
    """A command to run. ``stdin`` is True for a stream that the caller feeds."""

    argv: tuple[str, ...]
    cwd: str | None = None
    env: dict[str, str] = {}
    stdin: bool = False
    pty: Pty | None = None
    timeout: float | None = None  # seconds
    output_limit: int | None = (
        None  # bytes a stream; None = unbounded, the reader's back-pressure holds
    )
    tag: str | None = None
    limits: ExecLimits | None = None
