"""Run by a sandbox's own ``python3 -I``: prints what that is, as one JSON object.

Of the standard library alone, and of old syntax: it runs on whatever Python a sandbox has.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig


def musl_version() -> str:
    """Return the version that musl's loader tells, "" where there is none."""
    folder = "/lib"
    for name in sorted(os.listdir(folder)):
        if name.startswith("ld-musl-"):
            loader = subprocess.run(
                [os.path.join(folder, name)], stderr=subprocess.PIPE, check=False
            )
            for line in loader.stderr.decode("utf-8", "replace").splitlines():
                if line.startswith("Version "):
                    return line[len("Version ") :].strip()
    return ""


def libc() -> "tuple[str, str]":
    """Return the family and the version of the C library."""
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        try:
            name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        except (OSError, ValueError):
            name, version = "", ""
        if name == "glibc":
            return name, version
    return "musl", musl_version()


def full_version(info: "sys._version_info") -> str:
    """Return a version as PEP 508 has it."""
    version = f"{info.major}.{info.minor}.{info.micro}"
    if info.releaselevel != "final":
        version += info.releaselevel[0] + str(info.serial)
    return version


def main() -> None:
    family, version = libc()
    facts = {
        "executable": sys.executable,
        "soabi": sysconfig.get_config_var("SOABI") or "",
        "platform": sysconfig.get_platform(),
        "libc": family,
        "libc_version": version,
        "implementation_name": sys.implementation.name,
        "implementation_version": full_version(sys.implementation.version),
        "python_full_version": platform.python_version(),
        "platform_machine": platform.machine(),
        "path": os.environ.get("PATH", ""),
        "pythonpath": os.environ.get("PYTHONPATH", ""),
    }
    print(json.dumps(facts))


main()
