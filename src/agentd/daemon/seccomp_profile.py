"""The system call filter of a level's sandboxes, for people and programs to read."""

import msgspec

from agentd.linux import abi, seccomp
from agentd.linux.seccomp.disassembler import disassemble
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel

_AUDIT = {"x86_64": "AUDIT_ARCH_X86_64", "aarch64": "AUDIT_ARCH_AARCH64"}
LEVELS = (IsolationLevel.PROCESS, IsolationLevel.NAMESPACE)


class Denied(msgspec.Struct, frozen=True):
    """Calls that fail with ``errno`` when their arguments are as ``when`` says (empty: always)."""

    group: str
    calls: tuple[str, ...]
    when: str
    errno: str
    why: str


class Profile(msgspec.Struct, frozen=True):
    """``digest`` names it in enforcement reports, after ``name``."""

    name: str
    level: str
    net: str  # "none" or "host"
    rw: bool  # for sandboxes with a folder of the host's mounted read-write
    digest: str
    machine: str  # uname -m
    instructions: int
    architecture: str
    unknown: str  # what a number gets that the table does not have
    otherwise: str
    rules: tuple[Denied, ...]
    capability: str | None = None

    @property
    def label(self) -> str:
        """Name it as enforcement reports do."""
        return f"profile {self.name} {self.digest}"


def profile(
    capability: str | None = None,
    level: IsolationLevel | None = None,
    net: str | None = None,
    *,
    rw: bool = False,
) -> Profile:
    """Return the profile of the sandboxes that agentd, run by this user, makes at that level;
    ``rw``: of those that a folder of the host's is mounted into read-write.

    A capability's own needs say what ``level`` and ``net`` leave out; without either it is a
    namespace without a network. Raises NotFound for a capability that nobody has, InvalidInput
    where there is no filter, Unavailable for a capability that is broken.
    """
    least, network = _needs(capability)
    chosen = _checked(least if level is None else level, capability)
    wanted = net or ("host" if network else "none")
    name, inet = _filter(chosen, wanted, rw=rw)
    return Profile(
        name=name,
        level=chosen.label,
        net=wanted,
        rw=rw,
        digest=seccomp.digest(seccomp.build(name, inet=inet)),
        machine=abi.MACHINE,
        instructions=len(seccomp.build(name, inet=inet)) // 8,
        architecture=_architecture(),
        unknown="ENOSYS",
        otherwise="allowed",
        rules=tuple(
            Denied(row.group, row.calls, row.when, row.answer, row.why)
            for row in seccomp.explain(name, inet=inet)
        ),
        capability=capability,
    )


def assembly(of: Profile) -> list[str]:
    """Return its compiled program, one line an instruction."""
    name, inet = _filter(IsolationLevel.parse(of.level), of.net, rw=of.rw)
    return [str(line) for line in disassemble(seccomp.build(name, inet=inet), of.machine)]


def _needs(name: str | None) -> tuple[IsolationLevel, bool]:
    if name is None:
        return IsolationLevel.NAMESPACE, False
    from agentd.capability.registry import Registry

    needs = Registry().get(name).about.needs
    if not needs.sandbox:
        raise InvalidInput(
            f"capability {name} runs in no sandbox, and so under no filter",
            remediation="the daemon itself does it, within its own bounds",
        )
    return needs.level, needs.network


def _checked(level: IsolationLevel, capability: str | None) -> IsolationLevel:
    if level in LEVELS:
        return level
    who = f"capability {capability} needs" if capability else "there is no filter of agentd's at"
    raise InvalidInput(
        f"{who} level {level.label}",
        cause="commands there meet another kernel, or no wall",
        remediation=f"ask for --level {' or '.join(known.label for known in LEVELS)}",
    )


def _filter(level: IsolationLevel, net: str, *, rw: bool) -> tuple[str, bool]:
    """The profile's name, and whether it lets internet sockets be made."""
    if level is IsolationLevel.NAMESPACE:
        return seccomp.of_namespaces(net, rw=rw), True  # no network is a namespace without one
    from agentd.sandbox.backends.process import profile_name

    return profile_name(), net == "host"


def _architecture() -> str:
    also = " and any x32 number" if abi.MACHINE == "x86_64" else ""
    return f"any but {_AUDIT[abi.MACHINE]}{also}: the process is killed (SIGSYS)"
