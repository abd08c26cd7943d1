"""No set-user-ID and set-group-ID bits, where files are the host's."""

from agentd.linux.seccomp.rule import Rule, not_zero

_S_ISUID_ISGID = 0o6000

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
        "as chmod; what open(2) makes with such a bit loses it on the first write",
        (not_zero(2, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "set-id bits",
        "mknod",
        "as chmod, on a new file",
        (not_zero(1, "mode", _S_ISUID_ISGID),),
    ),
    Rule(
        "set-id bits",
        "mknodat",
        "as chmod, on a new file",
        (not_zero(2, "mode", _S_ISUID_ISGID),),
    ),
)
