"""What an attack is: a script, what must stop it behind which wall, and how its end is read."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.result import Result
from agentd.selftest.planted import Planted
from agentd.selftest.report import Verdict
from agentd.transport.text import safe_text

#: Held by agentd itself and not by a control that a wall can lack: no report has a line for them.
UNREPORTED = frozenset({"environment", "descriptors", "output", "monitor", "isolation"})
#: What the kernel says to one who may not, or to whom the thing does not exist.
REFUSALS = frozenset({"EPERM", "EACCES", "ENOENT", "ENOSYS", "ESRCH", "EROFS", "EXDEV"})
#: The script's last word: one without it has not come to its end, and proves nothing.
END = "end"
ABSENT = "absent"  # the attack cannot be made on this machine; its value says why
_MOST_SHOWN = 4


@dataclass(frozen=True)
class AttackOutcome:
    """The outcome of an attack: what it said, how it ended, what arrived at the host."""

    said: Mapping[str, str]
    result: Result
    planted: Planted


Judged = tuple[Verdict, str]
Judge = Callable[[AttackOutcome], Judged]


def by(
    process: str = "",
    namespace: str = "",
    microvm: str = "virtual_machine",
    *,
    userspace_kernel: bool = True,
) -> dict[IsolationLevel, tuple[str, ...]]:
    """``stopped_by`` from names separated by spaces; a level without any is left out.

    ``none`` stops nothing: to run the attacks there shows that they are real. A kernel in user
    space promises what both its neighbours do: what is reached behind it is neither the host's
    files, processes and sockets, nor the host's kernel. ``userspace_kernel`` False: it does not
    promise that.
    """
    both = namespace and userspace_kernel
    between = microvm.replace("virtual_machine", "userspace_kernel") if both else ""
    levels = {
        IsolationLevel.PROCESS: process,
        IsolationLevel.NAMESPACE: namespace,
        IsolationLevel.USERSPACE_KERNEL: between,
        IsolationLevel.MICROVM: microvm,
    }
    found = {level: tuple(names.split()) for level, names in levels.items() if names}
    if process:
        found[IsolationLevel.NONE] = ("isolation",)
    return found


def refused(*also: str) -> Judge:
    """Stopped when all that the script said is a refusal, or one of ``also``."""
    return said_only(REFUSALS | set(also))


def said_only(fine: Collection[str], words: str = "") -> Judge:
    """Stopped when every answer is one of ``fine``; ``words`` say that, instead of the answers."""

    def judge(seen: AttackOutcome) -> Judged:
        if (early := unfinished(seen)) is not None:
            return early
        answers = {name: value for name, value in seen.said.items() if name != END}
        reached = {name: value for name, value in answers.items() if value not in fine}
        if reached:
            return Verdict.THROUGH, shown(reached)
        return Verdict.STOPPED, words or shown(answers)

    return judge


def arrived(*names: str) -> Judge:
    """Stopped when nothing came to those listeners of the host, whatever the script said."""

    def judge(seen: AttackOutcome) -> Judged:
        here = sorted(seen.planted.arrived() & set(names))
        if here:
            return Verdict.THROUGH, f"it arrived at the host: {', '.join(here)}"
        return unfinished(seen) or (Verdict.STOPPED, shown(seen.said))

    return judge


def unfinished(seen: AttackOutcome) -> Judged | None:
    """Return the verdict on a script that was cut short or had nothing to attack."""
    if ABSENT in seen.said:
        return Verdict.NOT_APPLICABLE, safe_text(seen.said[ABSENT])
    if END not in seen.said:
        words = seen.result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return Verdict.UNDECIDED, safe_text(f"{seen.result.cause.message}; {words}".strip("; "))
    return None


def shown(answers: Mapping[str, str]) -> str:
    """Return the answers in a few words: ``mount EPERM, pivot_root EPERM and 3 more``."""
    words = [f"{name} {value}" for name, value in answers.items() if name != END]
    if len({value for name, value in answers.items() if name != END}) == 1 and len(words) > 1:
        return safe_text(next(iter(answers.values())))
    more = len(words) - _MOST_SHOWN
    text = ", ".join(words[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return safe_text(text)


ALL_REFUSED = refused()


@dataclass(frozen=True)
class Attack:
    """``stopped_by`` has the controls that a level promises, each of which alone stops it.

    ``script`` is Python for the sandbox's own python3, run after ``prelude.PRELUDE``; ``args`` are
    its ``sys.argv[1:]``. Where a level promises nothing, and the wall itself says of none of
    ``controls`` that it holds, the attack is not run: ``otherwise`` says why. ``told`` are controls
    that no level promises, since a container around us may refuse them, as the wall then says.
    """

    name: str
    script: str
    stopped_by: Mapping[IsolationLevel, tuple[str, ...]]
    judge: Judge = ALL_REFUSED
    args: Callable[[Planted], tuple[str, ...]] = lambda _: ()
    told: tuple[str, ...] = ()
    otherwise: str = ""
    absent: Callable[[Planted], str] = lambda _: ""  # why this machine cannot show it, or ""
    thorough: bool = False  # left out of the quick set
    root: bool = False  # run as uid 0 inside, where the wall can give that
    terminal: bool = False
    programs: bool = False  # needs the planted set-uid program shown inside
    shared: bool = False  # its workspace is the planted folder, mounted read-write
    fresh: bool = False  # spends its sandbox
    rules: bool = False  # in a network of rules, which have one service of the host's alone
    after: Callable[[Planted], Judged] | None = None  # judges once its sandbox is gone
    limits: Limits = field(default_factory=Limits)
    output_limit: int = 1 << 20

    @property
    def controls(self) -> tuple[str, ...]:
        """List all that stop it at any level, for a wall with one that its level does not promise.
        ``none`` has none: what stops an attack there is no wall's."""
        of_walls = (names for level, names in self.stopped_by.items() if level)
        return tuple(dict.fromkeys(name for names in (*of_walls, self.told) for name in names))


#: Of a system call that seccomp refuses; behind a virtual machine it is that machine's own.
FILTERED = by("seccomp", "seccomp", "")
