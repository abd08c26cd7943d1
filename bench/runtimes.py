"""What OCI runtimes and gVisor cost as walls of agentd's, each beside the runtime by itself."""

import itertools
from contextlib import ExitStack

import peers
from cases import CHUNK, Contender, Work, interleave, oci_exec, oci_run, sandbox_class
from peers import TRUE, Oci
from stats import Case, Target

#: Runtime, and how a sandbox of agentd's that it builds is asked for.
WALLS: dict[str, dict[str, str]] = {
    "runc": {"backend": "oci", "runtime": "runc"},
    "crun": {"backend": "oci", "runtime": "crun"},
    "runsc": {"backend": "gvisor"},
}
_NAMES = {"runc": "agentd runc", "crun": "agentd crun", "runsc": "agentd gvisor"}
_MIB = 256
# In large pieces: what writes them shall not be what is measured.
_OUT = ("/usr/bin/dd", "if=/dev/zero", "bs=1M", f"count={_MIB}", "status=none")
_MOST = {"runc": 1.5, "crun": 2.2, "runsc": 1.5}
_LEAST_FASTER = {"runc": 20, "crun": 6, "runsc": 2.5}
_LEAST_BYTES = {"runc": 1500, "crun": 1500, "runsc": 1000}


def runtimes(rounds: int) -> list[Case]:
    return [_first(max(1, rounds // 5)), _warm(max(1, rounds // 10)), _stdout(min(rounds, 7))]


def _first(rounds: int) -> Case:
    case = Case("oci-first", "a container, its first command, its end", "ms")
    case.note = (
        "agentd: Sandbox.create, run of /bin/true, close; the container was started ahead, in the "
        "pause of a second that follows each row, but for those with (none ahead). The others: "
        "one run of the runtime, whose only command is /bin/true; crun with a start of nsenter"
    )
    contenders: dict[str, Contender] = {}
    for name, options in WALLS.items():
        contenders[name] = oci_run(name)
        contenders[_NAMES[name]] = _agentd_first(options)
        contenders[f"{_NAMES[name]} (none ahead)"] = _agentd_first(options, ahead=False)
    interleave(case, contenders, rounds, 240, pause=1.0)
    case.targets = [
        Target(f"{_NAMES[name]} at most {most}x {name}", case.ratio(_NAMES[name], name), most)
        for name, most in _MOST.items()
    ]
    return case


def _agentd_first(options: dict[str, str], *, ahead: bool = True) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        create = sandbox_class().create
        stack.enter_context(create(embedded=True, **options))  # keeps the launcher
        disks = itertools.count(64 << 20, 4096)

        def work() -> None:
            # A disk that nobody asked for before: of that kind none is started ahead.
            kind = {} if ahead else {"disk": str(next(disks))}
            with create(embedded=True, **options, **kind) as box:
                assert box.run([TRUE]).exit_code == 0

        return work

    return prepare


def _warm(rounds: int) -> Case:
    case = Case("oci-warm", "/bin/true in a container that is there", "ms")
    case.note = "in turns of ten commands each, as a session has them"
    contenders: dict[str, Contender] = {}
    for name, options in WALLS.items():
        contenders[f"{name} exec"] = oci_exec(name)
        contenders[_NAMES[name]] = _agentd_warm(options)
    interleave(case, contenders, rounds, 60, turn=10)
    case.targets = [
        Target(
            f"{name} exec at least {least}x slower than {_NAMES[name]}",
            case.ratio(f"{name} exec", _NAMES[name]),
            least,
            at_least=True,
        )
        for name, least in _LEAST_FASTER.items()
    ]
    return case


def _agentd_warm(options: dict[str, str]) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        box = stack.enter_context(sandbox_class().create(embedded=True, **options))

        def work() -> None:
            assert box.run([TRUE]).exit_code == 0

        return work

    return prepare


def _stdout(rounds: int) -> Case:
    case = Case("oci-stdout", f"{_MIB} MiB of stdout out of a container", "MB/s")
    case.note = "in pieces of 1 MiB; agentd's containers are there, the others' start is in it"
    contenders: dict[str, Contender] = {
        "plain pipe": lambda _: lambda: peers.drain(list(_OUT), CHUNK, _MIB << 20)
    }
    for name, options in WALLS.items():
        contenders[name] = _piped(name)
        contenders[_NAMES[name]] = _agentd_stdout(options)
    interleave(case, contenders, rounds, 90)
    for row in case.rows:
        row.samples = [(_MIB << 20) / 1e3 / ms for ms in row.samples]
    case.targets = [
        Target(f"{_NAMES[name]} at least {least} MB/s", case.median(_NAMES[name]), least, True)
        for name, least in _LEAST_BYTES.items()
    ]
    return case


def _piped(name: str) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        runtime: Oci = stack.enter_context(peers.oci(name))
        bundle = runtime.bundle(*_OUT)
        return lambda: peers.drain(runtime.run(bundle), CHUNK, _MIB << 20)

    return prepare


def _agentd_stdout(options: dict[str, str]) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        box = stack.enter_context(sandbox_class().create(embedded=True, **options))

        def work() -> None:
            with box.stream(list(_OUT)) as process:
                total = sum(len(chunk.data) for chunk in process)
            assert total == _MIB << 20, total

        return work

    return prepare
