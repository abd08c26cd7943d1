"""A program that a sandbox does not have, and its caller has: below the home, as ~/.cargo/bin."""

import os
import shutil

# Where installers put programs, and the PATH of a service or an editor often does not have.
_USUAL = ("~/.local/bin", "~/.cargo/bin", "~/go/bin", "~/bin", "~/.pyenv/shims")
# What the namespace level shows, and the process level lets be read.
_SHOWN = ("/usr/", "/bin/", "/sbin/", "/lib", "/nix/store/")


def way_to(name: str) -> str:
    """Say how a sandbox gets a program that this process could run; "" where there is no such."""
    usual = [os.path.expanduser(folder) for folder in _USUAL]
    path = os.pathsep.join([os.environ.get("PATH", ""), *usual])
    found = shutil.which(name, path=path)
    if found is None or os.path.abspath(found).startswith(_SHOWN):
        return ""
    found = os.path.abspath(found)
    folder = os.path.dirname(found)
    if os.path.basename(folder) == "bin" and os.path.dirname(folder) != os.path.expanduser("~"):
        folder = os.path.dirname(folder)  # what it needs lies beside its bin
    return (
        f"the host has it as {found}, which the sandbox does not see: --mount {folder}:{folder}, "
        "and call it by that path"
    )
