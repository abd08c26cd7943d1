"""Part of git_clone: what git is told, so that it only fetches by https and writes files."""

from __future__ import annotations

from collections.abc import Mapping

_PROXIES = ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "PATH")
# Before what any file says: "-c" has the last word.
CONFIG = (
    "protocol.allow=never",
    "protocol.https.allow=always",
    # What was allowed is the URL that was asked for, not where its server sends us. Also off with
    # it: a dumb server's http-alternates.
    "http.followRedirects=false",
    "http.sslVerify=true",
    "http.delegation=none",
    "http.lowSpeedLimit=100",
    "http.lowSpeedTime=60",
    "transfer.bundleURI=false",
    "fetch.uriProtocols=",
    "credential.helper=",
    "credential.interactive=false",
    "core.askPass=/bin/false",
    "core.sshCommand=/bin/false",
    "core.gitProxy=/bin/false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.bigFileThreshold=16m",  # larger ones are streamed, not held
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "transfer.fsckObjects=true",
    "fetch.fsckObjects=true",
    "fetch.unpackLimit=1",  # one pack, which the limit on a file's size holds for
    "fetch.writeCommitGraph=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
    "init.defaultBranch=main",
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return all that git sees: no settings of anybody's, no home, no way to ask."""
    return {
        **{name: given[name] for name in _PROXIES if name in given},
        "HOME": "/nonexistent",  # no .gitconfig, no .netrc
        "XDG_CONFIG_HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }
