"""No set-user-ID and set-group-ID bits, where files are the host's."""

import errno

from agentd.linux.seccomp.rule import Rule, not_zero

_S_ISUID_ISGID = 0o6000
_CREATES = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE: otherwise open(2) looks at no mode
_ON_A_NEW_FILE = (
    "as chmod, on a new file: what writes to it without privilege takes the bit away, root's "
    "writing does not"
)

SET_ID = (
    Rule(
        "set-id bits",
        "chmod fchmod",
        "a mounted folder's files belong to its owner on the host: a set-id program there "
        "would hand out that user to everyone on the host",
        (not_zero(1, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "set-id bits",
        "fchmodat fchmodat2",
        "as chmod, by the name in a folder",
        (not_zero(2, "mode", _S_ISUID_ISGID),),
    ),
    Rule("set-id bits", "mknod", "as chmod, on a new file", (not_zero(1, "mode", _S_ISUID_ISGID),)),
    Rule(
        "set-id bits", "mknodat", "as chmod, on a new file", (not_zero(2, "mode", _S_ISUID_ISGID),)
    ),
    Rule("set-id bits", "creat", _ON_A_NEW_FILE, (not_zero(1, "mode", _S_ISUID_ISGID),)),
    Rule(
        "set-id bits",
        "open",
        _ON_A_NEW_FILE,
        (not_zero(1, "flags", _CREATES), not_zero(2, "mode", _S_ISUID_ISGID)),
    ),
    Rule(
        "set-id bits",
        "openat",
        _ON_A_NEW_FILE,
        (not_zero(2, "flags", _CREATES), not_zero(3, "mode", _S_ISUID_ISGID)),
    ),
    Rule(
        "set-id bits",
        "openat2",
        "as openat, with a mode that a filter cannot see; programs take openat then",
        (),
        errno.ENOSYS,
    ),
)
