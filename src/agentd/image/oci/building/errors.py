"""What can be wrong with a build."""

from agentd.image.model import ImageError
from agentd.model.errors import InvalidInput


class DockerfileError(InvalidInput):
    """A line of a Dockerfile that cannot be built; the message begins with its file and line."""

    code = "dockerfile_invalid"


class BuildFailed(ImageError):
    """A RUN did not succeed. ``exit_code`` is None where a signal or a limit ended it."""

    code = "build_failed"
    infrastructure = False

    def __init__(
        self, message: str, *, line: int, instruction: str, exit_code: int | None, cause: str = ""
    ) -> None:
        super().__init__(message, cause=cause, remediation="what it printed is above")
        self.line, self.instruction, self.exit_code = line, instruction, exit_code
