"""Another release's packages by this machine's apt: lists, sources and cache of their own."""

import functools
import subprocess
from pathlib import Path

from tests.vm.debian import Unavailable, cache_dir

from agentd.linux import locks

_KEYRINGS = ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg")
_MIRROR = "http://deb.debian.org/debian"
_UPDATE_SECONDS = 500
_CONFIG = """\
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "{folder}/lists";
Dir::State::Status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
"""


@functools.cache
def apt_config(suite: str) -> str:
    """The value of APT_CONFIG for a suite such as bookworm, its lists fetched.

    Raises Unavailable.
    """
    found = [path for name in _KEYRINGS if (path := Path("/usr/share/keyrings", name)).exists()]
    if not found:
        raise Unavailable("debian-archive-keyring is not installed")
    folder = cache_dir() / f"apt-{suite}"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Another run of the tests fetches them, too, and apt waits for no lock of its lists.
    with locks.held(str(folder / "run.lock")):
        (folder / "sources.list").write_text(
            f"deb [signed-by={found[0]} arch=amd64] {_MIRROR} {suite} main\n"
        )
        (folder / "status").touch()
        config = folder / "apt.conf"
        config.write_text(_CONFIG.format(folder=folder))
        have = any((folder / "lists").glob("*Packages*"))
        try:
            subprocess.run(
                ["apt-get", "-qq", "update"],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "APT_CONFIG": str(config)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_UPDATE_SECONDS,
                check=True,
            )
        except FileNotFoundError:
            raise Unavailable("apt-get is not installed") from None
        except subprocess.SubprocessError as error:
            if not have:  # old lists are better than none
                why = getattr(error, "stderr", None) or str(error)
                raise Unavailable(f"no lists of {suite}: {why.strip()}") from error
    return str(config)
