"""git.clone.v1: a shallow clone of a public repository, over https and by nothing else."""

import re
from urllib.parse import urlsplit

import msgspec

from agentd.capability import script
from agentd.capability.builtin import fs, temporary
from agentd.capability.port import Call, Inside
from agentd.capability.shape import integer, parameters, string
from agentd.model import typed
from agentd.model.capability import About, Bounds, Example, Needs, Outcome
from agentd.model.errors import InvalidInput

# Of what git would take, a part in which nothing has a second meaning: no user, no space, no
# control character, no percent sign in the host, nothing that begins with a dash.
_URL = re.compile(
    r"https://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"/[A-Za-z0-9._~/+%@,=-]{1,1000}"
)
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,200}")
_NO_REF = re.compile(r"\.\.|//|@\{|/\.|\.lock(/|$)|[./]$|^@$")
_SCHEMA = parameters(
    ["url", "path"],
    url=string(maximum=2000, description="https://HOST/PATH"),
    path={**fs.PATH, "description": "a directory that is not there yet"},
    ref=string(
        maximum=200,
        default="",
        description="a branch, a tag or a commit; the server's choice without one",
    ),
    depth=integer(0, 1_000_000, 1, "commits of history; 0 for all"),
    ca_pem=string(
        maximum=1 << 20,
        default="",
        description="certificates of the CAs to trust instead of the sandbox's",
    ),
    max_bytes=integer(1 << 20, 16 << 30, 1 << 30, "of what is fetched, and of the files"),
    max_files=integer(1, 1_000_000, 100_000),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example(
        "a sandbox without a network",
        {"url": "https://git.example/team/project.git", "path": "project"},
        error="no_network",
    ),
    Example(
        "nothing but https",
        {"url": "ssh://git@git.example/team/project.git", "path": "project"},
        error="invalid_input",
    ),
    Example(
        "no option in place of a ref",
        {
            "url": "https://git.example/team/project.git",
            "path": "project",
            "ref": "--upload-pack=true",
        },
        error="invalid_input",
    ),
)


class Cloned(msgspec.Struct, frozen=True):
    """``ref`` in full, as refs/heads/main; ``files`` and ``bytes`` of the commit's tree."""

    commit: str
    ref: str
    files: int
    bytes: int
    symlinks: int
    submodules: int


_CLONED = typed.decoder(Cloned)


class GitClone:
    about = About(
        name="git.clone.v1",
        summary="clone a public git repository over https",
        schema=_SCHEMA,
        needs=Needs(network=True, writes=True),
        bounds=Bounds(timeout=300.0, output=1 << 16),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        ask = {
            "url": checked_url(asked["url"]),
            "ref": checked_ref(asked["ref"]),
            "root": inside.workspace,
            "path": fs.place(inside, asked["path"]),
            "depth": asked["depth"],
            "ca_pem": asked["ca_pem"],
            "max_bytes": asked["max_bytes"],
            "max_files": asked["max_files"],
            # A little sooner, so that it cleans up by itself.
            "timeout": max(call.timeout - 2.0, call.timeout / 2),
        }
        with temporary.beside(inside, ask["path"]) as name:
            ask["temporary"] = name
            done = script.run(inside, "git_clone", ask, _CLONED, call.timeout)
        return Outcome({"path": ask["path"], **msgspec.to_builtins(done)})


def checked_url(url: str) -> str:
    """Raises InvalidInput for all but a plain https URL without a user."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = None, None
    if parts is None or not _URL.fullmatch(url) or port == 0 or "@" in parts.netloc:
        raise InvalidInput(
            "git.clone.v1: the url is not one that can be cloned",
            cause="it has to be https://HOST/PATH, without a user, a query or a fragment",
            remediation="write it so; repositories that need a password cannot be cloned",
        )
    return url


def checked_ref(ref: str) -> str:
    """Raises InvalidInput for what is no name of a branch or tag, nor a commit."""
    if ref and (not _REF.fullmatch(ref) or _NO_REF.search(ref)):
        raise InvalidInput(
            "git.clone.v1: the ref is no name of a branch or a tag, and no commit",
            remediation="use letters, digits and . _ / + @ -, beginning with no dash",
        )
    return ref


CAPABILITY = GitClone()
