"""What makes the kernel hold memory that no control group counts."""

import errno

from agentd.linux.seccomp.rule import Rule, greater

# An access list has 4 bytes and 8 for each entry: 1 KiB is 127 entries, and 2 KiB of memory. What
# does not fit in the 32 bits that a filter sees the kernel refuses.
_ATTRIBUTE_BYTES = 1024

#: Where files may lie in memory, as on the scratch tmpfs.
UNCOUNTED = (
    Rule(
        "uncounted memory",
        "setxattr lsetxattr fsetxattr",
        "access lists of files in memory are counted nowhere, and a folder hands on a copy of its "
        "own to all that is made in it: of 64 KiB each they would be more memory than machines "
        "have. ENOSPC as on a file system with little room for attributes",
        (greater(3, "size", _ATTRIBUTE_BYTES),),
        errno.ENOSPC,
    ),
    Rule(
        "uncounted memory",
        "setxattrat",
        "as setxattr, with a size that a filter cannot see; the C library takes setxattr then",
        (),
        errno.ENOSYS,
    ),
)
