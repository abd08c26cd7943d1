"""The host's files and secrets."""

from agentd.selftest.attack import Attack, by, refused, said_only
from agentd.selftest.planted import VARIABLE, Planted

# By its path, and by every detour that has ever led out of a container.
_READ = """
import stat
first, second, file = sys.argv[1:4]
marker = (first + second).encode()
def holds(path):
    fd = tried(os.open, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if isinstance(fd, str):
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and marker in os.pread(fd, 1 << 16, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
pids = {"1", "self", str(os.getppid()), sys.argv[4]}
pids |= {p for p in tried(os.listdir, "/proc") if p.isdigit()}
mounts = {line.split()[4] for line in tried(lambda: list(open("/proc/self/mountinfo")))
          if len(line) > 9}
parts = file.strip("/").split("/")
tails = ["/".join(parts[n:]) for n in range(len(parts))]
said("path", holds(file))
said("climb", any(holds(f"{base}/{'../' * 20}{file}") for base in [".", *mounts]))
said("below a mount", any(holds(f"{mount}/{tail}") for mount in mounts for tail in tails))
said("root of a process", any(holds(f"/proc/{pid}/root{file}") for pid in pids))
link = f"link-{os.getpid()}"
os.symlink(file, link)
said("link", holds(link))
os.unlink(link)
"""
_WRITE = """
file = sys.argv[1]
folder = os.path.dirname(file)
said("append", opens(file, os.O_WRONLY | os.O_APPEND))
said("truncate", tried(os.truncate, sys.argv[2], 5))
said("create", opens(f"{folder}/new", os.O_WRONLY | os.O_CREAT))
said("mkdir", tried(os.mkdir, f"{folder}/directory"))
said("symlink", tried(os.symlink, file, f"{folder}/pointed"))
said("rename", tried(os.rename, f"{folder}/new", f"{folder}/moved"))
said("unlink", tried(os.unlink, f"{folder}/moved"))
"""
# Opened and closed again. A program that runs is busy for everybody, which is told before whether
# it is permitted: os.py is none.
_PROGRAMS = """
said("self", opens("/proc/self/exe", os.O_WRONLY))
said("agent", opens(f"/proc/{os.getppid()}/exe", os.O_WRONLY))
said("python", opens(os.path.realpath(sys.executable), os.O_WRONLY))
said("library", opens(os.__file__, os.O_WRONLY))
said("new", tried(os.rmdir, "/usr/bin/agentd-selftest")
     if tried(os.mkdir, "/usr/bin/agentd-selftest") is None else "EACCES")
"""
_ENVIRONMENT = """
marker = "".join(sys.argv[1:3]).encode()
def holds(path):
    got = tried(lambda: open(path, "rb").read(1 << 20))
    return marker in got if isinstance(got, bytes) else False
said("own", any(marker.decode() in value for value in os.environ.values()))
said("variable", sys.argv[3] in os.environ)
said("start", holds("/proc/self/environ"))
said("agent", holds(f"/proc/{os.getppid()}/environ") or holds("/proc/1/environ"))
"""


def _secret(planted: Planted) -> tuple[str, ...]:
    return (*planted.halves(), planted.secret, str(planted.holder))


def _private(planted: Planted) -> tuple[str, ...]:
    return (*planted.halves(), planted.private, str(planted.holder))


ATTACKS = (
    Attack(
        "read a host file that everybody may read",
        _READ,
        by("landlock", "mount_namespace"),
        said_only({"False"}, "found nowhere"),
        _secret,
    ),
    Attack(
        "read a private host file",
        _READ,
        by("landlock user", "mount_namespace"),
        said_only({"False"}, "found nowhere"),
        _private,
    ),
    Attack(
        "write to a host file, or beside it",
        _WRITE,
        by("landlock", "mount_namespace"),
        refused(),
        lambda planted: (planted.secret, f"{planted.folder}/none"),
    ),
    Attack(
        "overwrite the host's programs, by /proc/self/exe too",
        _PROGRAMS,
        by("landlock user", "mount_namespace user_namespace landlock", ""),
        refused("ETXTBSY"),
        otherwise="its programs are the machine's own, and go with it",
    ),
    Attack(
        "read the caller's environment",
        _ENVIRONMENT,
        by("environment", "environment"),
        said_only({"False"}, "found nowhere"),
        lambda planted: (*planted.halves(), VARIABLE),
    ),
)
