"""Part of git_clone: what git says when it fails -> a code, and a fix."""

from __future__ import annotations

import re
import signal

from agentd.capability.inside.common import Failed

# The lines that are the transport's: other ones name files of the repository.
_CURL = r"(?:unable to access|RPC failed)[^\n]*"
# Looked for in this order, in what git says in the C locale.
_FAILURES = (
    (r"transport '.*' not allowed", "not_allowed", "only https is"),
    (r"returned error: 30[0-9]", "redirected", "give the URL that the server redirects to"),
    (
        "returned error: 40[13]|prompts disabled|unable to get password|Authentication failed",
        "needs_credentials",
        "only public repositories can be cloned; check the URL",
    ),
    (r"returned error: 404|repository .* not found", "no_repository", "check the URL"),
    (
        _CURL + "([Cc]ould not resolve|[Cc]ould ?n.t connect|Failed to connect|timed out|unreach)",
        "unreachable",
        "check the host, and whether the sandbox's network reaches it",
    ),
    (
        _CURL + "(certificate|SSL|TLS|gnutls)",
        "tls",
        "give ca_pem if the server has a CA of its own",
    ),
    (
        r"dumb http|not valid: is this a git repository",
        "no_repository",
        "the server has to speak git's smart HTTP",
    ),
    (
        r"fsck|invalid path|[Ii]nvalid object|in tree|bad tree|contains '\.git'|hasDot",
        "unsafe_repository",
        "it holds what git's own checks refuse",
    ),
    (r"File too large|File size limit", "too_large", "raise max_bytes, or clone less"),
    (r"No space left|Disk quota", "disk_full", "give the sandbox more disk"),
    # Whatever else ends index-pack, it says; a limit on files or memory ends it silently.
    ("invalid index-pack output", "too_large", "raise max_bytes, or clone less"),
    (
        "n.t find remote ref|not our ref|unadvertised object|Not a valid obj|single revision",
        "no_such_ref",
        "check ref",
    ),
)


def failed(code: int, stderr: str) -> Failed:
    if code in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ):
        return Failed("too_large", "a file of it is over max_bytes", "raise that, or clone less")
    # "remote:" lines are the server's text: it must not choose the code.
    lines = [line for line in stderr.splitlines() if line.startswith(("fatal:", "error:"))]
    said = (lines or stderr.splitlines() or [f"git ended with {code}"])[0]
    # Nor does what the caller's URL says.
    searched = re.sub(r"https://[^'\s]*", "", "\n".join(lines))
    for pattern, name, fix in _FAILURES:
        if re.search(pattern, searched):
            return Failed(name, said, fix)
    return Failed("git_failed", said)
