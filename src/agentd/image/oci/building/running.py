"""What a RUN needs of whoever has sandboxes: rooms above give it to the build."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from agentd.image.oci.building.layer import LayerWriter
from agentd.image.oci.values import OciImage

SCRIPT = "/dev/shm/heredoc"


class RunStep(NamedTuple):
    """``image`` says who runs it, where, and in which environment; ``root`` is the path of its
    unpacked root. ``env`` are the arguments that it sees, beside that. ``script`` is what a heredoc
    says that names its interpreter: it is at SCRIPT, which is in no layer."""

    image: OciImage
    root: str
    argv: tuple[str, ...]
    env: dict[str, str]
    script: str = ""


class RunEnd(NamedTuple):
    """``exit_code`` is None where it did not end by itself; ``told`` says how it ended then."""

    exit_code: int | None
    told: str = ""


Output = Callable[[str, bytes], None]


class Runner(Protocol):
    def run(self, step: RunStep, layer: LayerWriter, output: Output) -> RunEnd:
        """Run a command in a sandbox of ``root``; where it succeeds, what it changed goes into
        ``layer``. ``output`` gets its streams' names and bytes. Raises AgentdError."""
