"""What is wrong with a bundle."""

import msgspec

from agentd.model.errors import InvalidInput


class BundleProblem(msgspec.Struct, frozen=True):
    """``line`` is 0 where it is about no line of the file; ``file`` "" where about no file."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return where + self.message


class BundleError(InvalidInput):
    """The bundle cannot be used; ``problems`` says all that was found."""

    code = "policy_bundle"

    def __init__(self, where: str, problems: list[BundleProblem]) -> None:
        super().__init__(
            f"the policy bundle {where} cannot be used",
            cause="; ".join(map(str, problems)),
            remediation="agentd policy check says what to fix",
        )
        self.problems = problems
