"""Threat: running code on the host through the kernel's own files: core_pattern, release_agent,
sysrq, modprobe, and what else of /proc and /sys can be written.

Controls: the sandbox's root is none of the kernel's users; Landlock gives nobody write access to
/proc; the linux wall has an empty /sys and cannot mount another.
Files are opened for writing and closed again: nothing is ever written.
"""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.linux.cgroup import Hierarchy
from agentd.sandbox.backends.cgroups import own_hierarchy

HOST_FILES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/hostname",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/mtrr",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/kernel/security/apparmor/.load",
)
WRITE = f"""
for path in {HOST_FILES!r}:
    said(path, opens(path, os.O_WRONLY))
"""
SECRETS = (
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/kpageflags",
    "/proc/vmallocinfo",
    "/proc/slabinfo",
    "/proc/timer_list",
)
READ = f"""
for path in {SECRETS!r}:
    said(path, opens(path))
"""
# What is the sandbox's own; the last two are its network administrator's.
OWN = """
for path in ("/proc/self/oom_score_adj", "/proc/self/comm", "/proc/self/coredump_filter",
             "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ping_group_range"):
    said(path, opens(path, os.O_WRONLY))
"""
RELEASE_AGENT = """
import glob
found = glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
said("found", bool(found))
for path in found:
    said(path, opens(path, os.O_WRONLY))
said("new group", tried(os.mkdir, "/sys/fs/cgroup/memory/agentd-test-escape")
     if os.path.isdir("/sys/fs/cgroup/memory") else "ENOENT")
"""
# The way of CVE-2022-0492: a cgroup file system of one's own.
MOUNT = r"""
os.mkdir("/tmp/m")
for name, options in ((b"sysfs", None), (b"cgroup2", None), (b"cgroup", b"memory"),
                      (b"cgroup", b"rdma"), (b"debugfs", None), (b"tracefs", None),
                      (b"securityfs", None), (b"binfmt_misc", None), (b"configfs", None)):
    got = call("mount", b"none\0", b"/tmp/m\0", name + b"\0", 0, options + b"\0" if options else 0)
    said(name.decode() + (options or b"").decode(), got)
    if got == 0:
        for path in ("release_agent", "uevent_helper"):
            said(path, opens(f"/tmp/m/{path}", os.O_WRONLY))
        call("umount2", b"/tmp/m\0", 2)
"""
REFUSED = {"EACCES", "EROFS", "ENOENT", "EPERM"}


def test_nothing_of_the_kernel_is_written(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(WRITE)
    assert set(answers.values()) <= REFUSED
    assert answers["/proc/sys/kernel/core_pattern"] == "EACCES"
    assert answers["/proc/sysrq-trigger"] in {"EACCES", "ENOENT"}


def test_root_inside_writes_nothing_by_itself(sandbox: Callable[..., Any]) -> None:
    """All other controls gone: the files belong to the machine's root, who is nobody inside."""
    off = {"landlock", "seccomp", "capabilities"}
    answers = sandbox("linux", without=off, user="root").attack(WRITE)
    assert set(answers.values()) <= REFUSED
    assert answers["/proc/sys/kernel/core_pattern"] == "EACCES"


@pytest.mark.root
def test_landlock_alone_stops_the_machines_root(sandbox: Callable[..., Any]) -> None:
    off = {"identity", "capabilities", "seccomp"}
    answers = sandbox("landlock", without=off).attack(WRITE + READ)
    assert set(answers.values()) <= {"EACCES", "ENOENT"}


@pytest.mark.root
def test_off_core_pattern_is_opened(sandbox: Callable[..., Any]) -> None:
    off = {"identity", "capabilities", "seccomp", "landlock"}
    answers = sandbox("landlock", without=off).attack(WRITE)
    assert answers["/proc/sys/kernel/core_pattern"] == "opened"
    assert answers["/proc/sys/vm/overcommit_memory"] == "opened"


TELLTALES = (
    "/proc/bootconfig",
    "/proc/cmdline",
    "/proc/interrupts",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/softirqs",
    "/proc/swaps",
    "/proc/timer_list",
    "/proc/acpi",
    "/proc/asound",
    "/proc/irq",
    "/proc/scsi",
)
TELL = f"""
def tells(path):
    if os.path.isdir(path):
        return os.listdir(path)
    with open(path, "rb") as file:
        return file.read()
for path in {TELLTALES!r}:
    said(path, tried(tells, path))
for key in ("MemTotal", "processor", "cpu "):
    said(key, any(line.startswith(key) for name in ("meminfo", "cpuinfo", "stat")
                  for line in open(f"/proc/{{name}}")))
"""
# A key in the session's keyring, as password managers have them there; what is built then.
KEYED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
number, add = {"x86_64": (250, 248), "aarch64": (219, 217)}[os.uname().machine]
libc.syscall(number, 1, b"agentd-test")  # KEYCTL_JOIN_SESSION_KEYRING
secret = b"agentd-test:password", b"x"
if libc.syscall(add, b"user", secret[0], secret[1], 1, -3) < 0:
    sys.exit("no key could be added")
from agentd.client import build
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.transport.guest import Guest
backend = LinuxBackend(without=frozenset(sys.argv[1:]))
if not backend.probe().usable:
    sys.exit("no namespace wall")
wall = backend.launch(backend.plan(build.sandbox_spec(backend="linux")))
guest = Guest(wall.open_stream, passes_descriptors=True)
end, out, err, _ = guest.run(ExecRequest(("cat", "/proc/keys"), cwd="/", timeout=120.0))
sys.stdout.buffer.write(out + err)
guest.close()
wall.kill()
backend.close()
"""


def test_proc_tells_nothing_of_the_machine(sandbox: Callable[..., Any], walled: str) -> None:
    for spec in ({}, {"user": "root"}) if walled != "landlock" else ({},):
        answers = sandbox(walled, **spec).attack(TELL)
        facts = {name: answers.pop(name) for name in ("MemTotal", "processor", "cpu ")}
        assert set(facts.values()) == {"True"}  # what programs need is there
        assert set(answers.values()) <= {"b''", "[]"} | REFUSED


def test_off_proc_tells_of_the_machine(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", without={"proc"}).attack(TELL)
    assert answers["/proc/cmdline"] == repr(Path("/proc/cmdline").read_bytes())
    assert "CPU0" in answers["/proc/interrupts"]
    assert "/proc/keys" in answers


@pytest.mark.parametrize("without", [[], ["proc"]], ids=["whole", "no proc"])
def test_the_callers_keys_are_not_listed(as_user: Any, without: list[str]) -> None:
    ran = as_user.python("-c", KEYED, *without)
    if ran.stderr.startswith(b"no "):
        pytest.skip(ran.stderr.decode())
    assert ran.returncode == 0, ran.stderr
    assert (b"agentd-test:password" in ran.stdout) is bool(without)


def test_the_groups_name_is_not_shown(sandbox: Callable[..., Any]) -> None:
    """It is made of agentd's pid and start time."""
    script = """
said("groups", {line.rstrip().split(":", 2)[2] for line in open("/proc/self/cgroup")})
said("agent's", {line.rstrip().split(":", 2)[2] for line in open("/proc/1/cgroup")})
"""
    answers = sandbox("linux", memory="64M").attack(script)
    assert answers == {"groups": "{'/'}", "agent's": "{'/'}"}
    answers = sandbox("linux", without={"cgroup_namespace"}).attack(script)
    if isinstance(own_hierarchy(), Hierarchy):
        assert "sbx-" in answers["groups"]


def test_kernel_memory_is_not_read(sandbox: Callable[..., Any], enclosed: str) -> None:
    assert set(sandbox(enclosed).attack(READ).values()) <= REFUSED


def test_landlock_closes_the_sandboxs_own_proc(sandbox: Callable[..., Any]) -> None:
    """Even what root inside may write by the kernel's own rules."""
    off = {"capabilities", "seccomp"}
    answers = sandbox("linux", without=off, user="root").attack(OWN)
    assert set(answers.values()) == {"EACCES"}
    answers = sandbox("linux", without=off | {"landlock"}, user="root").attack(OWN)
    assert set(answers.values()) == {"opened"}


CORE = """
import resource
said("core", resource.getrlimit(resource.RLIMIT_CORE))
def raised():
    try:
        return resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096))
    except ValueError:
        return "refused"
said("raise", tried(raised))
"""


def test_a_crash_starts_no_handler_of_the_hosts(sandbox: Callable[..., Any], walled: str) -> None:
    """Of a limit of 0 a core_pattern that is a pipe takes no notice, of 1 it does."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core files are limited to 0 here already, for good")
    assert sandbox(walled).attack(CORE) == {"core": "(1, 1)", "raise": "refused"}


def test_off_a_crash_has_the_callers_limit(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled, without={"rlimits"}).attack(CORE)["core"] != "(1, 1)"


def test_no_release_agent(sandbox: Callable[..., Any], enclosed: str) -> None:
    answers = sandbox(enclosed).attack(RELEASE_AGENT)
    assert answers["found"] == "False"
    assert answers["new group"] in REFUSED


@pytest.mark.root
@pytest.mark.skipif(
    not list(Path("/sys/fs/cgroup").glob("*/release_agent")), reason="no cgroup v1 is mounted"
)
def test_off_a_release_agent_is_opened(sandbox: Callable[..., Any]) -> None:
    off = {"identity", "capabilities", "seccomp", "landlock"}
    script = RELEASE_AGENT[: RELEASE_AGENT.index('said("new group"')]
    answers = sandbox("landlock", without=off).attack(script)
    assert answers.pop("found") == "True"
    assert "opened" in answers.values()


def test_sys_has_the_processors_and_the_own_group_alone(sandbox: Callable[..., Any]) -> None:
    script = """
said("sys", sorted(os.listdir("/sys")))
said("fs", os.listdir("/sys/fs"))
said("devices", [os.listdir("/sys/devices"), os.listdir("/sys/devices/system")])
groups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
said("groups", sorted(set(groups) - {"memory", "cpu", "cpuacct", "cpuset", "pids"}))
pids = set()
for folder, _, names in os.walk("/sys/fs/cgroup"):
    if "cgroup.procs" in names:
        pids |= set(open(folder + "/cgroup.procs").read().split())
said("strangers", sorted(pid for pid in pids if not os.path.exists("/proc/" + pid)))
for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/devices/system/cpu/cpu0"):
    said("made in " + path, made(path))
"""
    answers = sandbox("linux").attack(MADE + script)
    assert answers.pop("sys") == "['devices', 'fs']"
    assert answers.pop("fs") == "['cgroup']"
    assert answers.pop("devices") == "[['system'], ['cpu']]"
    assert answers.pop("groups") == answers.pop("strangers") == "[]"
    assert set(answers.values()) == {"no"}


MADE = """
def made(path):
    try:
        os.mkdir(path + "/agentd-test")
        return "yes"
    except OSError:
        return "no"

"""


@pytest.mark.parametrize("control", ["seccomp", "landlock", "capabilities"])
def test_no_file_system_of_the_kernels_is_mounted(
    sandbox: Callable[..., Any], control: str
) -> None:
    off = {"seccomp", "landlock", "capabilities"} - {control}
    answers = sandbox("linux", without=off, user="root").attack(MOUNT)
    assert set(answers.values()) == {"EPERM"}


def test_off_none_of_them_has_a_release_agent(sandbox: Callable[..., Any]) -> None:
    """A cgroup namespace of its own may mount its part of the tree, which has no release_agent."""
    off = {"seccomp", "landlock", "capabilities"}
    answers = sandbox("linux", without=off, user="root").attack(MOUNT)
    assert answers["cgroup2"] == "0"
    assert answers["sysfs"] == "EPERM"  # an old one must be fully visible, and there is none
    assert "opened" not in answers.values()
