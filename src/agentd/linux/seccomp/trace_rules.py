"""What a process may do to another one's memory, registers and descriptors."""

from agentd.linux.seccomp.rule import ASK, ArgumentMatch, Rule, not_zero

# linux/ptrace.h; PTRACE_OLDSETOPTIONS is x86's (asm/ptrace-abi.h), and asks for the same.
_PTRACE_SETOPTIONS, _PTRACE_SEIZE, _PTRACE_OLDSETOPTIONS = 0x4200, 0x4206, 21
_PTRACE_O_TRACEEXIT = 0x40

#: Where the processes that could be reached are others' too.
NO_TRACING = (
    Rule(
        "other processes",
        "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp",
        "they read or change the memory and descriptors of another process of the same user",
    ),
)

#: Where the pid namespace is the sandbox's own. Its agent is not dumpable, and so not reached.
TRACING = (
    Rule(
        "other processes",
        "ptrace",
        "a process that is killed waits for its tracer if that asked to see it exit: two that "
        "trace each other so are never gone, and neither is their sandbox, nor its memory. The "
        "agent lets those do it that the traced descends from: such can be in no circle",
        (
            ArgumentMatch(0, "request", (_PTRACE_SETOPTIONS, _PTRACE_SEIZE, _PTRACE_OLDSETOPTIONS)),
            not_zero(3, "data", _PTRACE_O_TRACEEXIT),
        ),
        ASK,
    ),
)
