"""Users and groups of a root that can be written to, and how programs ask for them (PAM).

Package managers and what they install name the system's accounts: these are the host's, names and
numbers alone, without passwords, members of groups, or anybody who logs in. Standard library only.
"""

from collections.abc import Iterator, Sequence

from agentd.guest.zygote.root import ETC_MADE
from agentd.guest.zygote.var import BEHIND

#: Where the zygote keeps the files until a layer is made of them.
PLACE = f"{BEHIND}/root"
# login.defs(5): below are accounts of the system; 65534 is nobody.
_FIRST_LOGIN = 1000
_MOST_BYTES = 1 << 20
_PAM = """\
auth     sufficient pam_rootok.so
auth     required   pam_unix.so
account  required   pam_unix.so
password required   pam_unix.so
session  required   pam_permit.so
"""
_KINDS = ("auth", "account", "password", "session")


def files(hidden: Sequence[str] = (), *, one_id: bool = False, host: str = "") -> dict[str, bytes]:
    """Contents by path, below ``PLACE``; of the host's two files, below ``host``, what can be read
    and is not ``hidden``. With ``one_id`` nobody can become another."""
    users = _merged("/etc/passwd", 7, hidden, host)
    groups = _merged("/etc/group", 4, hidden, host)
    found = {
        "/etc/passwd": [":".join(_plain(user)) for user in users],
        "/etc/group": [f"{name}:x:{gid}:" for name, _, gid, *_ in groups],
        "/etc/shadow": [f"{name}:*:20000:0:99999:7:::" for name, *_ in users],
        "/etc/gshadow": [f"{name}:*::" for name, *_ in groups],
        "/etc/pam.d/other": _PAM.splitlines(),
        "/etc/apt/apt.conf.d/50sandbox": ['APT::Sandbox::User "root";'] if one_id else [],
        "/etc/apt/preferences.d/README": [],
    }
    for kind in _KINDS:
        found[f"/etc/pam.d/common-{kind}"] = [x for x in _PAM.splitlines() if x.startswith(kind)]
    found["/etc/pam.d/common-session-noninteractive"] = found["/etc/pam.d/common-session"]
    return {
        PLACE + path: "".join(f"{x}\n" for x in lines).encode() for path, lines in found.items()
    }


def _merged(path: str, fields: int, hidden: Sequence[str], host: str) -> list[list[str]]:
    """Ours, and the host's of other names and numbers."""
    found = [line.split(":") for line in ETC_MADE[path].splitlines()]
    names, numbers = {line[0] for line in found}, {line[2] for line in found}
    for line in _system(host + path, fields) if path not in hidden else ():
        if line[0] not in names and line[2] not in numbers:
            found.append(line)
            names.add(line[0])
            numbers.add(line[2])
    return found


def _system(path: str, fields: int) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split(":")
        if len(words) == fields and words[2].isdecimal() and 0 < int(words[2]) < _FIRST_LOGIN:
            yield words


def _plain(user: list[str]) -> list[str]:
    name, _, uid, gid, _, home, shell = user
    return [name, "x", uid, gid, name, home, shell]
