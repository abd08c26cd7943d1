"""seccomp-BPF filters: rules as data, compiled to classic BPF. seccomp(2), Linux 4.14 or newer."""

from agentd.linux.filtering import install, install_and_listen
from agentd.linux.seccomp.filter import RuleRow, build, digest, explain
from agentd.linux.seccomp.rules import PROFILES, of_namespaces

__all__ = [
    "PROFILES",
    "RuleRow",
    "build",
    "digest",
    "explain",
    "install",
    "install_and_listen",
    "of_namespaces",
]
