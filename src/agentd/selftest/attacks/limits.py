"""Bombs, each bounded by itself: what gets through takes little more than the limit, and ends."""

from typing import Any

from agentd.model.limits import MIB, Limits
from agentd.model.result import CauseCode
from agentd.selftest.attack import Attack, AttackOutcome, Judge, Judged, by, shown, unfinished
from agentd.selftest.report import Verdict

PIDS = 32
MEMORY = 64 * MIB
DISK = 16 * MIB
OPEN_FILES = 256
OUTPUT = 1 << 16
CPUS = 0.1
_SPINNING = 2
# A quota is for each tenth of a second, and may be used in the first and the last as a whole.
_MOST_CPUS = 0.16
_STEP = 0.0001  # seconds: more of them at once is what others ran
_OVER = 1.2  # times the limit, at most
# The children end by themselves, and are ended by their parent before that.
_FORK = f"""
import time
made = []
try:
    for _ in range({4 * PIDS}):
        pid = os.fork()
        if pid == 0:
            time.sleep(5)
            os._exit(0)
        made.append(pid)
except OSError as error:
    said("refused", errno.errorcode[error.errno])
said("took", len(made))
for pid in made:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
_MEMORY = f"""
keep = []
for _ in range({int(MEMORY * _OVER) // MIB}):
    keep.append(bytearray(b"x") * {MIB})
said("took", len(keep) * {MIB})
"""
_DISK = f"""
took = 0
places = [p for p in ("/workspace", "/tmp", "/dev/shm") if os.access(p, os.W_OK)]
for place in places:
    try:
        with open(f"{{place}}/big", "wb", buffering=0) as file:
            while took < {int(DISK * _OVER)}:
                took += file.write(b"x" * {MIB})
    except OSError as error:
        said("refused", errno.errorcode[error.errno])
said("took", took)
for place in places:
    tried(os.unlink, f"{{place}}/big")
"""
_INODES = f"""
folder = f"/tmp/many-{{os.getpid()}}"
os.mkdir(folder)
made = 0
try:
    for made in range({int(DISK // 4096 * _OVER)}):
        os.mkdir(f"{{folder}}/{{made}}")
except OSError as error:
    said("refused", errno.errorcode[error.errno])
said("took", made)
"""
_DESCRIPTORS = f"""
import resource
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, ({4 * OPEN_FILES}, {4 * OPEN_FILES}))
except (ValueError, OSError):
    pass
kept = []
try:
    for _ in range({2 * OPEN_FILES}):
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    said("refused", errno.errorcode[error.errno])
said("took", len(kept))
"""
# What a process ran is told by the clock, of which it misses what it did not run: kernels in user
# space and machines may count its time as they like. Others interrupt it for parts of a
# millisecond, on a machine that is busy at every turn; a step of its own takes some microseconds.
_SPIN = f"""
import time
def spin(until):
    ran, last = 0.0, time.monotonic()
    while last < until:
        now = time.monotonic()
        ran += now - last if now - last < {_STEP} else 0
        last = now
    return ran
began = time.monotonic()
read, write = os.pipe()
for _ in range({_SPINNING}):
    if os.fork() == 0:
        os.write(write, struct.pack("=d", spin(began + 2)))
        os._exit(0)
for _ in range({_SPINNING}):
    os.wait()
took = sum(struct.unpack("={_SPINNING}d", os.read(read, {8 * _SPINNING})))
said("took", took / (time.monotonic() - began))
"""
_FLOOD = f"""
for _ in range({(8 << 20) // 65536}):
    os.write(1, b"x" * 65536)
    os.write(2, b"y" * 65536)
"""


def _at_most(limit: int, *errors: str) -> Judge:
    def judge(seen: AttackOutcome) -> Judged:
        early = unfinished(seen)
        if early is not None:
            return early
        took = int(seen.said["took"])
        if took > limit or seen.said.get("refused") not in errors:
            return Verdict.THROUGH, f"took {took} where {limit} was the limit"
        return Verdict.STOPPED, f"{seen.said['refused']} after {took} of {limit}"

    return judge


def _judge_memory(seen: AttackOutcome) -> Judged:
    if "took" in seen.said:
        return Verdict.THROUGH, f"took {seen.said['took']} bytes where {MEMORY} was the limit"
    if seen.result.cause.code is CauseCode.OOM:
        return Verdict.STOPPED, "ended for it, with the cause oom"
    return unfinished(seen) or (Verdict.UNDECIDED, shown(seen.said))


def _judge_processors(seen: AttackOutcome) -> Judged:
    early = unfinished(seen)
    if early is not None:
        return early
    took = float(seen.said["took"])
    if took > _MOST_CPUS:
        return Verdict.THROUGH, f"ran on {took:.2f} processors where {CPUS} was the limit"
    return Verdict.STOPPED, f"ran on {took:.2f} processors of {CPUS}"


def _judge_flood(seen: AttackOutcome) -> Judged:
    end = seen.result
    size = max(len(end.stdout), len(end.stderr))
    if end.cause.code is CauseCode.OUTPUT_LIMIT and size <= OUTPUT:
        return Verdict.STOPPED, f"ended after {size} bytes of {OUTPUT}"
    if size > OUTPUT:
        return Verdict.THROUGH, f"{size} bytes were taken where {OUTPUT} was the limit"
    return Verdict.UNDECIDED, end.cause.message


def _bomb(name: str, code: str, control: str, judge: Judge, **options: Any) -> Attack:
    """One that the same control stops behind every wall."""
    return Attack(name, code, by(control, control, control), judge, **options)


ATTACKS = (
    _bomb(
        "fork without end",
        _FORK,
        "pids",
        _at_most(PIDS, "EAGAIN"),
        limits=Limits(pids=PIDS),
        fresh=True,
    ),
    _bomb(
        "take all memory",
        _MEMORY,
        "memory",
        _judge_memory,
        limits=Limits(memory=MEMORY),
        fresh=True,
    ),
    _bomb("fill the disk", _DISK, "disk", _at_most(DISK, "ENOSPC"), limits=Limits(disk=DISK)),
    _bomb(
        "fill the disk with empty directories",
        _INODES,
        "disk",
        _at_most(DISK // 4096, "ENOSPC"),
        limits=Limits(disk=DISK),
        thorough=True,
        fresh=True,
    ),
    _bomb(
        "open files without end",
        _DESCRIPTORS,
        "open_files",
        _at_most(OPEN_FILES, "EMFILE"),
        limits=Limits(open_files=OPEN_FILES),
    ),
    _bomb(
        "run on more processors",
        _SPIN,
        "cpus",
        _judge_processors,
        limits=Limits(cpus=CPUS),
        thorough=True,
        fresh=True,
    ),
    _bomb("flood the caller with output", _FLOOD, "output", _judge_flood, output_limit=OUTPUT),
)
