"""The stages of a Dockerfile, and which of them a target needs."""

from typing import NamedTuple

from agentd.image.oci.building.expand import Lookup, Unexpandable, expand
from agentd.image.oci.building.syntax import Dockerfile, Instructed, split
from agentd.image.oci.values import architecture

SCRATCH = "scratch"


class BuildStage(NamedTuple):
    """``number`` counts from 0; ``base`` is the number of a stage, or the name of an image."""

    number: int
    name: str
    base: int | str
    line: int
    instructions: tuple[Instructed, ...]


class BuildStages(NamedTuple):
    """``args`` are those before the first FROM, with their values."""

    file: Dockerfile
    args: dict[str, str]
    all: tuple[BuildStage, ...]

    def find(self, name: str) -> BuildStage | None:
        """Find a stage by name or number; the last of that name."""
        for stage in reversed(self.all):
            if stage.name and stage.name == name.lower():
                return stage
        return next((stage for stage in self.all if str(stage.number) == name), None)

    def earlier(self, stage: BuildStage, name: str) -> BuildStage | None:
        """Return the stage that a --from means; only one before it counts."""
        other = self.find(name) if name else None
        return other if other is not None and other.number < stage.number else None

    def needed(self, target: BuildStage) -> set[int]:
        """Return the numbers of all that are built for ``target``."""
        found: set[int] = set()
        left = [target]
        while left:
            stage = left.pop()
            if stage.number in found:
                continue
            found.add(stage.number)
            if isinstance(stage.base, int):
                left.append(self.all[stage.base])
            for each in stage.instructions:
                other = self.earlier(stage, each.flags.get("from", ""))
                if other is not None:
                    left.append(other)
        return found


def platform() -> dict[str, str]:
    """Return the arguments that there are without being given, as BuildKit calls them."""
    here = {"PLATFORM": f"linux/{architecture()}", "OS": "linux", "ARCH": architecture()}
    here["VARIANT"] = ""
    return {f"{of}{name}": value for of in ("TARGET", "BUILD") for name, value in here.items()}


def stages_of(file: Dockerfile, given: dict[str, str]) -> BuildStages:
    """Divide a file into stages; ``given`` are the caller's arguments. Raises DockerfileError."""
    args: dict[str, str] = {}
    found: list[BuildStage] = []
    own: list[Instructed] = []
    for instruction in file.instructions:
        if instruction.word == "FROM":
            own = []
            found.append(_stage(file, instruction, found, platform() | args))
        elif found:
            own.append(instruction)
            found[-1] = found[-1]._replace(instructions=tuple(own))
        elif instruction.word == "ARG":
            _global(file, instruction, args, given)
        else:
            raise file.wrong(
                instruction.line,
                f"{instruction.word[:40]} stands before the first FROM",
                "begin with FROM; only ARG may stand before it",
            )
    if not found:
        raise file.wrong(1, "it has no FROM", "begin with FROM scratch, or an image")
    return BuildStages(file, args, tuple(found))


def _stage(
    file: Dockerfile, instruction: Instructed, before: list[BuildStage], args: dict[str, str]
) -> BuildStage:
    line = instruction.line
    words = split(instruction.text, file.escape)
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise file.wrong(line, f"FROM {instruction.text[:200]}", "write FROM IMAGE [AS NAME]")
    _check_platform(file, instruction, args)
    image = expanded(file, line, words[0], args.get)
    name = words[2].lower() if len(words) == 3 else ""
    if not image:
        raise file.wrong(line, f"FROM {words[0]} names nothing", "give the ARG in it a value")
    if name and (name == SCRATCH or not name[0].isalpha()):
        raise file.wrong(line, f"a stage cannot be called {name}", "begin with a letter")
    if any(stage.name == name for stage in before if name):
        raise file.wrong(line, f"there is a stage {name} already", "give each its own name")
    earlier = next((s.number for s in reversed(before) if s.name and s.name == image.lower()), None)
    return BuildStage(len(before), name, image if earlier is None else earlier, line, ())


def _check_platform(file: Dockerfile, instruction: Instructed, args: dict[str, str]) -> None:
    for flag, value in instruction.flags.items():
        told = expanded(file, instruction.line, value, args.get)
        if flag != "platform":
            raise file.wrong(instruction.line, f"FROM --{flag} is not understood", "leave it out")
        if told.split("/")[:2] != platform()["TARGETPLATFORM"].split("/"):
            raise file.wrong(
                instruction.line,
                f"FROM --platform={told} is not this machine's",
                f"leave it out, or build on such a machine: this is {platform()['TARGETPLATFORM']}",
            )


def _global(
    file: Dockerfile, instruction: Instructed, args: dict[str, str], given: dict[str, str]
) -> None:
    for name, default in arguments(file, instruction, (platform() | args).get):
        value = given.get(name, default)
        if value is not None:
            args[name] = value


def arguments(
    file: Dockerfile, instruction: Instructed, lookup: Lookup
) -> list[tuple[str, str | None]]:
    """Return each name of an ARG, and its default. Raises DockerfileError."""
    found = []
    for word in split(instruction.text, file.escape):
        name, equals, default = word.partition("=")
        check_variable(file, instruction, name)
        value = expanded(file, instruction.line, default, lookup) if equals else None
        found.append((name, value))
    return found


def check_variable(file: Dockerfile, instruction: Instructed, name: str) -> None:
    """Check a variable's name. Raises DockerfileError."""
    if not name.isprintable() or not name or not (name[0].isalpha() or name[0] == "_"):
        raise file.wrong(
            instruction.line, f"{instruction.word} {name[:80]!r} is no name", "write NAME=VALUE"
        )


def expanded(file: Dockerfile, line: int, text: str, lookup: Lookup, *, quotes: bool = True) -> str:
    """Expand a text. Raises DockerfileError."""
    try:
        return file.expanded.count(expand(text, lookup, file.escape, quotes=quotes))
    except (Unexpandable, RecursionError) as error:
        raise file.wrong(line, str(error), "mend it, or quote it: '$'") from None
