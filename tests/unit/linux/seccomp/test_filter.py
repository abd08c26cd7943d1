"""The compiled filter, interpreted: every number, both machines, against the rules read plainly."""

import ctypes
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recording import RecordingKernel

from agentd.linux import abi
from agentd.linux.seccomp import PROFILES, build, digest, filter, install, install_and_listen
from agentd.linux.seccomp.rule import ASK, Rule
from agentd.linux.seccomp.tables import MACHINES, numbers

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, ARM = 0x40000003, 0x40000028
KILL, ALLOW, ASKED = 0x80000000, 0x7FFF0000, 0x7FC00000
HIGH = 0xDEAD_BEEF_0000_0000
Args = tuple[int, ...]
CASES = [(m, p, i) for m in MACHINES for p in PROFILES for i in (True, False)]


def fails(code: int) -> int:
    return ASKED if code == ASK else 0x00050000 | code


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def run(code: list[tuple[int, int, int, int]], arch: int, nr: int, args: Args = ()) -> int:
    """What the kernel would: the RET value for one ``struct seccomp_data``."""
    data = struct.pack("<IIQ6Q", nr, arch, 0x7FFF_0000_1000, *args, *(0,) * (6 - len(args)))
    position, accumulator = 0, 0
    while True:
        operation, jt, jf, k = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                position += k
            case 0x15:
                position += jt if accumulator == k else jf
            case 0x35:
                position += jt if accumulator >= k else jf
            case 0x06:
                return k
            case _:
                raise AssertionError(f"operation {operation:#x} at {position - 1}")


def rules_of(profile: str, inet: bool) -> tuple[Rule, ...]:
    return filter.rules(profile, inet=inet)


def plainly(rules: tuple[Rule, ...], name: str, args: Args) -> int:
    """The first rule that names the call and whose matches all hold."""
    for rule in rules:
        if name in rule.calls and all(match.holds(args[match.argument]) for match in rule.when):
            return fails(rule.code)
    return ALLOW


@pytest.mark.parametrize(("machine", "profile", "inet"), CASES)
def test_every_number_gets_what_the_rules_say(machine: str, profile: str, inet: bool) -> None:
    code = decode(build(profile, machine, inet=inet))
    names = {number: name for name, number in numbers(machine).items()}
    rules = rules_of(profile, inet)
    for number in range(1100):
        for args in ((0,) * 6, (1, 2, 3, 4, 5, 6), (2**64 - 1,) * 6):
            wanted = plainly(rules, names[number], args) if number in names else fails(errno.ENOSYS)
            assert run(code, ARCH[machine], number, args) == wanted, (number, args)


def interesting(rules: tuple[Rule, ...]) -> st.SearchStrategy[int]:
    """Values at and around every constant of the rules, with and without a high half."""
    edges = {0, 1, 2, 3, 0xFFFFFFFF}
    for rule in rules:
        for match in rule.when:
            for value in (*match.values, match.mask):
                edges |= {value, value ^ 1, (value + 1) & 0xFFFFFFFF, value | 0x80000}
    near = st.sampled_from(sorted(edges))
    return st.one_of(near, near.map(lambda v: v | HIGH), st.integers(0, 2**64 - 1))


@given(st.data(), st.sampled_from(CASES))
def test_any_arguments_get_what_the_rules_say(
    data: st.DataObject, case: tuple[str, str, bool]
) -> None:
    machine, profile, inet = case
    rules = rules_of(profile, inet)
    table = numbers(machine)
    checked = sorted({n for r in rules if r.when for n in r.calls if n in table})
    name = data.draw(st.sampled_from(checked))
    args = data.draw(st.tuples(*[interesting(rules)] * 6))
    code = decode(build(profile, machine, inet=inet))
    assert run(code, ARCH[machine], table[name], args) == plainly(rules, name, args)


@given(st.sampled_from(MACHINES), st.integers(472, 2**32 - 1))
def test_a_number_past_the_table_is_never_allowed(machine: str, number: int) -> None:
    got = run(decode(build("sandbox", machine)), ARCH[machine], number)
    x32 = machine == "x86_64" and 0x40000000 <= number < 0x80000000
    assert got == (KILL if x32 else fails(errno.ENOSYS))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_another_architecture_is_killed(machine: str, profile: str) -> None:
    code = decode(build(profile, machine))
    others = {I386, ARM, 0, 0xFFFFFFFF, *ARCH.values()} - {ARCH[machine]}
    for arch in others:
        for number in (*range(600), 0x40000000, 0xFFFFFFFF):
            assert run(code, arch, number) == KILL


def test_x32_is_killed_and_its_neighbours_are_not() -> None:
    code = decode(build("sandbox", "x86_64"))
    edge = {0x3FFFFFFF: fails(38), 0x40000000: KILL, 0x7FFFFFFF: KILL, 0x80000000: fails(38)}
    for number, wanted in edge.items():
        assert run(code, ARCH["x86_64"], number) == wanted
    assert run(code, ARCH["x86_64"], 0xFFFFFFFF) == fails(38)


def test_without_kills_what_is_foreign_is_an_error() -> None:
    """A tracer answers it first: an errno of one filter comes after the trap of another."""
    for machine in MACHINES:
        killing, code = (decode(build("share", machine, kills=kills)) for kills in (True, False))
        for arch in {I386, ARM, *ARCH.values()} - {ARCH[machine]}:
            assert run(code, arch, 1) == fails(errno.ENOSYS)
        for number in (0x40000000, 0x7FFFFFFF):
            assert run(code, ARCH[machine], number) == fails(errno.ENOSYS)
        for number in range(600):
            for args in ((0, 0o4755), (0, 0, 0o2755), (0, 0o755, 0o755)):
                wanted = run(killing, ARCH[machine], number, (*args, 0, 0, 0, 0)[:6])
                assert run(code, ARCH[machine], number, (*args, 0, 0, 0, 0)[:6]) == wanted


# The rules read back as behaviour, so that an edit of the data cannot silently open a door.
_P, _E = "process", errno.EPERM
EXPECT: list[tuple[str, str, Args, int]] = [
    ("sandbox", "clone", (0x003D0F00,), 0),  # threads
    ("sandbox", "clone", (0x01200011,), 0),  # fork
    ("sandbox", "clone", (0x10000011,), _E),
    ("sandbox", "clone", (0x00020011 | HIGH,), _E),
    ("sandbox", "clone3", (0,), errno.ENOSYS),
    ("sandbox", "socket", (1, 1, 0), 0),
    ("sandbox", "socketpair", (1, 2, 0), 0),  # its network namespace and root keep it inside
    (_P, "socketpair", (1, 2 | 0x80800, 0), _E),
    (_P, "socketpair", (1 | HIGH, 2 | HIGH, 0), _E),
    (_P, "socketpair", (1, 1 | 0x80000, 0), 0),
    (_P, "socketpair", (1, 5, 0), 0),
    ("sandbox", "ioctl", (3, 0xC0406618 | HIGH), _E),
    ("sandbox", "ioctl", (3, 0xC0506617), _E),
    ("sandbox", "ioctl", (3, 0xC0406619), _E),
    ("sandbox", "socket", (2, 1 | 0x80800, 6), 0),
    ("sandbox", "socket", (10, 2, 17), 0),
    ("sandbox", "socket", (16, 3, 9), errno.EPROTONOSUPPORT),
    ("sandbox", "socket", (17, 3, 0), errno.EAFNOSUPPORT),
    ("sandbox", "socket", (38, 5, 0), errno.EAFNOSUPPORT),
    ("sandbox", "socket", (40, 1, 0), errno.EAFNOSUPPORT),
    ("sandbox", "socket", (0, 1, 0), errno.EAFNOSUPPORT),
    ("sandbox", "socket", (2, 3 | 0x80000, 1), _E),
    ("sandbox", "socket", (2, 10, 0), _E),
    ("sandbox", "socket", (2, 5, 0), errno.ESOCKTNOSUPPORT),
    ("sandbox", "socket", (1, 5, 0), 0),
    ("sandbox", "socket", (2, 1, 262), errno.EPROTONOSUPPORT),
    ("sandbox", "socketpair", (1, 1, 0), 0),
    ("sandbox", "socketpair", (16, 1, 0), errno.EAFNOSUPPORT),
    ("sandbox", "ioctl", (0, 0x5413), 0),
    ("sandbox", "ioctl", (0, 0x5412), _E),
    ("sandbox", "ioctl", (0, 0x5412 | 1 << 32), _E),
    ("sandbox", "ioctl", (0, 0x541C | HIGH), _E),
    ("sandbox", "ioctl", (0, 0x5423), _E),
    ("sandbox", "ioctl", (0, 0x40086602), 0),
    ("process-same-uid", "ioctl", (0, 0x40086602), _E),
    ("process-same-uid", "ioctl", (0, 0x5412), _E),
    ("sandbox", "mknodat", (0, 0, 0o020666, 0), _E),
    ("sandbox", "mknodat", (0, 0, 0o060666 | 1 << 20, 0), _E),
    ("sandbox", "mknodat", (0, 0, 0o010666, 0), 0),
    ("sandbox", "mknodat", (0, 0, 0o140666, 0), 0),
    ("sandbox", "mknodat", (0, 0o020666, 0o100666, 0), 0),
    ("sandbox", "personality", (0,), 0),
    ("sandbox", "personality", (0xFFFFFFFF,), 0),
    ("sandbox", "personality", (0x20000,), 0),
    ("sandbox", "personality", (0x0040000,), _E),
    ("sandbox", "prctl", (35, 8), _E),
    ("sandbox", "prctl", (4, 0), 0),
    ("sandbox", "seccomp", (1, 0), 0),
    ("sandbox", "seccomp", (1, 9), _E),
    # of PID 1, whatever the upper half says: the kernel takes an int
    *[("sandbox", name, args, code) for name in (
        "prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr",
    ) for args, code in (((0,), 0), ((2,), 0), ((1 << 32,), 0), ((1,), _E), ((1 | HIGH,), _E))],
    ("sandbox", "setpriority", (0, 0), 0),
    ("sandbox", "setpriority", (0, 2), 0),
    ("sandbox", "setpriority", (1, 0), 0),
    ("sandbox", "setpriority", (0, 1 | HIGH), _E),
    ("sandbox", "setpriority", (1, 1), _E),
    ("sandbox", "setpriority", (2 | HIGH, 0), _E),
    ("sandbox", "setpriority", (2, 1000), _E),
    ("sandbox", "getpriority", (0, 1), 0),
    ("sandbox", "ioprio_set", (1, 0), 0),
    ("sandbox", "ioprio_set", (1, 2), 0),
    ("sandbox", "ioprio_set", (2, 0), 0),
    ("sandbox", "ioprio_set", (1, 1 | HIGH), _E),
    ("sandbox", "ioprio_set", (2, 1), _E),
    ("sandbox", "ioprio_set", (3 | HIGH, 0), _E),
    ("sandbox", "fcntl", (3, 1024, 1), _E),
    ("sandbox", "fcntl", (3, 1024 | HIGH, 1), _E),
    ("sandbox", "fcntl", (3, 1026 | 1 << 32, 1), _E),
    ("sandbox", "fcntl", (3, 1040, 1), _E),
    *[("sandbox", "fcntl", (3, cmd, 2**64 - 1), 0) for cmd in (
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1025, 1030, 1032, 1033, 1034, 36, 37, 38,
    )],
    ("sandbox", "fcntl", (3, 1031, 4096), 0),
    ("sandbox", "fcntl", (3, 1031, 65536), 0),
    ("sandbox", "fcntl", (3, 1031, 65537), _E),
    ("sandbox", "fcntl", (3, 1031 | HIGH, 1 << 20), _E),
    ("sandbox", "fcntl", (3, 1031, 2**32 - 1), _E),
    *[("sandbox", "setsockopt", (3, 1 | HIGH, option | HIGH), _E) for option in (26, 50, 51, 52)],
    *[("sandbox", "setsockopt", (3, 1, option), 0) for option in (2, 7, 8, 9, 15, 27, 44, 68)],
    ("sandbox", "setsockopt", (3, 6, 31 | HIGH), _E),
    ("sandbox", "setsockopt", (3, 17, 100), _E),
    ("sandbox", "setsockopt", (3, 136, 100), _E),
    *[("sandbox", "setsockopt", args, 0) for args in (
        (3, 6, 1), (3, 6, 26), (3, 17, 31), (3, 0, 31), (3, 41, 26), (3, 17, 1), (3, 17, 103),
    )],
    ("sandbox", "inotify_add_watch", (3, 0, 0x20), 0),  # IN_OPEN: file watchers need it
    ("sandbox", "sendto", (3, 0, 1, 1), 0),  # MSG_OOB: ftplib needs it
    ("sandbox", "memfd_secret", (0,), _E),
    ("sandbox", "io_setup", (8,), errno.ENOSYS),
    ("sandbox", "mmap", (0, 1 << 21, 3, 0x40022 | HIGH), errno.ENOMEM),
    *[("sandbox", "mmap", (0, 1 << 21, 3, flags | HIGH), 0) for flags in (0x22, 0x4022, 0x20022)],
    ("sandbox", "memfd_create", (0, 5), errno.ENOMEM),
    ("sandbox", "memfd_create", (0, 3), 0),
    ("sandbox", "shmget", (0, 1, 0o5600), errno.ENOSYS),
    ("sandbox", "shmget", (0, 1, 0o1600), 0),
    ("sandbox", "getsid", (5,), 0),
    (_P, "getsid", (0,), 0),
    (_P, "getsid", (5,), _E),
    (_P, "getpgid", (5,), 0),  # os.killpg(os.getpgid(child.pid), ...)
    (_P, "pidfd_open", (5,), 0),  # asyncio waits for its children by it
    ("sandbox", "ioctl", (3, 0xC040FF0B), 0),
    *[(_P, "ioctl", (3, size << 16 | 0xC000FF0B | HIGH), errno.ENOTTY) for size in (0, 64, 80)],
    (_P, "setxattr", (0,), errno.EOPNOTSUPP),
    (_P, "getxattr", (0,), 0),
    (_P, "utimensat", (0,), 0),
    (_P, "prlimit64", (1,), _E),
    (_P, "prlimit64", (HIGH,), 0),
    (_P, "setpriority", (0, 0), 0),
    (_P, "setpriority", (0, 1), _E),
    (_P, "setpriority", (2, 0), _E),
    (_P, "ioprio_set", (1, 0), 0),
    (_P, "ioprio_set", (3, 0), _E),
    (_P, "sched_setaffinity", (0,), 0),
    (_P, "sched_setaffinity", (1,), _E),
    (_P, "shmget", (0,), errno.ENOSYS),
    (_P, "setpgid", (1, 1), 0),
    (_P, "fchmodat", (0,), 0),
    ("process-same-uid", "fchmodat", (0,), _E),
    ("process-same-uid", "utimensat", (0,), _E),
    *[("process-same-uid", name, (0,), 0) for name in (
        "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
        "map_shadow_stack", "cachestat", "vmsplice", "execve", "pidfd_open", "mbind",
    )],
    *[(profile, "openat2", (0,), errno.ENOSYS) for profile in ("sandbox-rw", "share", _P)],
    ("sandbox", "openat2", (0,), 0),
    *[("sandbox-rw", "openat", (0, 0, makes, 0o6755), _E) for makes in (0o100, 0o20200000)],
    *[("sandbox-rw", "openat", (0, 0, flags, mode), 0) for flags, mode in (
        (0o101, 0o1777), (0o100, 0), (0o200000, 0o6000), (0, 0o6000),
    )],
    ("sandbox", "openat", (0, 0, 0o100, 0o6755), 0),
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("profile", "name", "args", "code"), EXPECT)
def test_the_promise(machine: str, profile: str, name: str, args: Args, code: int) -> None:
    wanted = fails(code) if code else ALLOW
    assert run(decode(build(profile, machine)), ARCH[machine], numbers(machine)[name], args) == (
        wanted
    )


def test_mknod_looks_at_its_own_argument() -> None:
    code = decode(build("sandbox", "x86_64"))
    assert run(code, ARCH["x86_64"], 133, (0, 0o020666, 0)) == fails(errno.EPERM)
    assert run(code, ARCH["x86_64"], 133, (0, 0o010666, 0o020666)) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_without_inet_a_process_has_no_sockets_but_pairs(machine: str) -> None:
    code = decode(build("process", machine, inet=False))
    pair = numbers(machine)["socketpair"]
    assert run(code, ARCH[machine], pair, (1, 1, 0)) == ALLOW
    number = numbers(machine)["socket"]
    assert run(code, ARCH[machine], number, (1, 1, 0)) == fails(errno.EPERM)
    for family in (2, 10):
        for kind, protocol in ((1, 0), (1, 6), (2, 17)):
            got = run(code, ARCH[machine], number, (family, kind, protocol))
            assert got == fails(errno.EPERM)


def test_an_unconditional_rule_behind_a_checked_one_still_denies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (ioctl,) = (r for r in PROFILES["sandbox"] if r.calls == ("ioctl",) and r.group == "terminal")
    always = Rule("test", "ioctl", "nothing may pass a later rule without a condition")
    monkeypatch.setitem(PROFILES, "two", (ioctl, always))
    code = decode(build.__wrapped__("two", "x86_64"))
    assert run(code, ARCH["x86_64"], 16, (0, 0)) == fails(errno.EPERM)
    assert run(code, ARCH["x86_64"], 0) == ALLOW


@pytest.mark.parametrize(("machine", "profile", "inet"), CASES)
def test_small_and_shallow(machine: str, profile: str, inet: bool) -> None:
    code = decode(build(profile, machine, inet=inet))
    assert len(code) < 448
    deepest = [0] * (len(code) + 1)
    for position in range(len(code) - 1, -1, -1):
        operation, jt, jf, k = code[position]
        steps = {0x06: (), 0x05: (k,), 0x15: (jt, jf), 0x35: (jt, jf)}.get(operation, (0,))
        deepest[position] = 1 + max((deepest[position + 1 + s] for s in steps), default=0)
    assert deepest[0] < 48


def test_built_once_and_named_by_content() -> None:
    assert build("sandbox", "x86_64") is build("sandbox", "x86_64")
    names = {digest(build(p, m, inet=i)) for m, p, i in CASES}
    assert len(names) == len({(m, rules_of(p, i)) for m, p, i in CASES})
    assert digest(b"") == "e3b0c44298fc1c14"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(LookupError, match=r"'nosuch'.*sandbox"):
        build("nosuch")
    with pytest.raises(LookupError, match="mips"):
        build("sandbox", "mips")


def test_install_makes_one_call_with_the_program() -> None:
    kernel = RecordingKernel()
    program = build("sandbox")
    install(program, kernel)
    ((name, (operation, flags, pointer)),) = kernel.calls
    assert (name, operation, flags) == ("seccomp", 1, 1)
    header = pointer._obj  # type: ignore[attr-defined]
    assert header.length == len(program) // 8
    (address,) = struct.unpack_from("Q", bytes(header), 8)
    assert ctypes.string_at(address, 8 * header.length) == program


def test_a_listener_comes_with_the_filter_where_none_is_around_it() -> None:
    kernel = RecordingKernel({"seccomp": [9]})
    assert install_and_listen(build("sandbox"), kernel) == 9
    assert [args[:2] for _, args in kernel.calls] == [(1, 8)]
    kernel = RecordingKernel({"seccomp": [OSError(errno.EBUSY, ""), 0]})
    assert install_and_listen(build("sandbox"), kernel) == -1
    assert [args[:2] for _, args in kernel.calls] == [(1, 8), (1, 1)]
    with pytest.raises(PermissionError):
        install_and_listen(build("sandbox"), RecordingKernel({"seccomp": [PermissionError(1, "")]}))


def test_a_thread_that_cannot_follow_is_an_error() -> None:
    with pytest.raises(OSError, match="thread 77") as caught:
        install(build("sandbox"), RecordingKernel({"seccomp": [77]}))
    assert caught.value.errno == errno.EBUSY


def test_abi_names_the_seccomp_call() -> None:
    assert abi.SYS.seccomp == numbers(abi.MACHINE)["seccomp"]
