"""git.clone.v1 against a real server, in a sandbox that has the host's network."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.capability.builtin.git_clone import CAPABILITY, checked_ref, checked_url
from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

sys.path.insert(0, str(Path(__file__).parent))
from gitserver import GitServer, Repository, exists, git

pytestmark = pytest.mark.skipif(not exists(), reason="git-http-backend is not installed")
NAME = "git.clone.v1"


@pytest.fixture(scope="module", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    """Only there both the network's absence and its presence can be had."""
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path) as running:
        yield running


@pytest.fixture
def online(make_box: Callable[..., Any]) -> Any:
    return make_box(net="host")


def clone(box: Any, server: GitServer, name: str, **parameters: Any) -> dict[str, Any]:
    asked = {"url": server.url(name), "path": "here", "ca_pem": server.ca_pem, **parameters}
    return dict(box.call(NAME, **asked))


def fails(box: Any, server: GitServer, name: str, **parameters: Any) -> CallFailed:
    """Nothing is left of what could not be had."""
    with pytest.raises(CallFailed) as caught:
        clone(box, server, name, **parameters)
    assert box.sh("ls -A").text == ""
    return caught.value


# --- what it does ---


def test_the_default_branch_comes_shallow_and_says_what_it_is(
    online: Any, server: GitServer
) -> None:
    made = server.repository("a.git")
    first = made.files({"a": b"1"})
    commit = made.files({"a": b"12", "b": b"345"}, first)
    value = clone(online, server, "a.git")
    assert value == {
        "path": f"{online.inside.workspace}/here",
        "commit": commit,
        "ref": "refs/heads/main",
        "files": 2,
        "bytes": 5,
        "symlinks": 0,
        "submodules": 0,
    }
    assert online.get("here/b") == b"345"
    assert online.sh("cd here && git rev-list --count HEAD && git status -sb").text.split() == [
        "1",
        "##",
        "main...origin/main",
    ]
    assert online.sh("ls -A; ls here/.git/hooks 2>/dev/null; true").text == "here\n"


@pytest.mark.parametrize("kind", ["branch", "tag", "commit", "full"])
def test_a_ref_is_a_branch_a_tag_or_a_commit(online: Any, server: GitServer, kind: str) -> None:
    made = server.repository("a.git")
    wanted = made.files({"a": b"wanted"}, branch="side")
    made.files({"a": b"other"}, wanted)
    git(made.path, "tag", "-a", "-m", "a tag", "v1.0", wanted)
    ref, full = {
        "branch": ("side", "refs/heads/side"),
        "tag": ("v1.0", "refs/tags/v1.0"),
        "commit": (wanted, wanted),
        "full": ("refs/heads/side", "refs/heads/side"),
    }[kind]
    value = clone(online, server, "a.git", ref=ref)
    assert (value["commit"], value["ref"]) == (wanted, full)
    assert online.get("here/a") == b"wanted"


def test_depth_0_is_all_of_the_history(online: Any, server: GitServer) -> None:
    made = server.repository("a.git")
    made.files({"a": b"2"}, made.files({"a": b"1"}))
    clone(online, server, "a.git", depth=0)
    assert online.sh("cd here && git rev-list --count HEAD").text == "2\n"


def test_what_is_there_stays(online: Any, server: GitServer) -> None:
    server.repository("a.git").files({"a": b"1"})
    online.put("here/mine", "x")
    with pytest.raises(CallFailed) as caught:
        clone(online, server, "a.git")
    assert caught.value.code == "exists"
    assert online.get("here/mine") == b"x"


@pytest.mark.parametrize("ref", ["gone", "0" * 39 + "1"])
def test_a_ref_that_is_not_there(online: Any, server: GitServer, ref: str) -> None:
    server.repository("a.git").files({"a": b"1"})
    assert fails(online, server, "a.git", ref=ref).code == "no_such_ref"


def test_an_empty_repository(online: Any, server: GitServer) -> None:
    server.repository("a.git")
    assert fails(online, server, "a.git").code == "no_such_ref"


def test_no_network(make_box: Callable[..., Any], server: GitServer) -> None:
    error = fails(make_box(), server, "a.git")
    assert error.code == "no_network"
    assert server.seen == []


# --- who is talked to ---


def test_a_server_whose_certificate_is_not_trusted(online: Any, server: GitServer) -> None:
    server.repository("a.git").files({"a": b"1"})
    assert fails(online, server, "a.git", ca_pem="").code == "tls"
    assert server.seen == []


@pytest.mark.parametrize("target", ["same", "http://127.0.0.1:1", "file:///etc", "ext::sh"])
def test_a_redirect_is_not_followed(online: Any, server: GitServer, target: str) -> None:
    server.repository("a.git").files({"a": b"1"})
    server.special["/moved.git"] = (302, server.url("a.git") if target == "same" else target)
    assert fails(online, server, "moved.git").code == "redirected"
    assert not any(path.startswith("/a.git") for path in server.seen)


@pytest.mark.parametrize(
    ("status", "code"), [(404, "no_repository"), (401, "needs_credentials"), (500, "git_failed")]
)
def test_what_a_server_refuses(online: Any, server: GitServer, status: int, code: str) -> None:
    server.special["/a.git"] = (status, "")
    assert fails(online, server, "a.git").code == code


def test_a_server_that_is_not_there(online: Any, server: GitServer) -> None:
    for name in ("a.git", "OpenSSL/certificate.git"):
        assert fails(online, server, "", url=f"https://127.0.0.1:1/{name}").code == "unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.invalid/a.git",
        "HTTPS://example.invalid/a.git",
        "git://example.invalid/a.git",
        "ssh://git@example.invalid/a.git",
        "git@example.invalid:a.git",
        "file:///etc",
        "/etc",
        "ext::sh -c touch% /tmp/x",
        "--upload-pack=touch /tmp/x",
        "https://user@example.invalid/a.git",
        "https://user:secret@example.invalid/a.git",
        "https://example.invalid\\@other.invalid/a.git",
        "https://example.invalid:0/a.git",
        "https://example.invalid:99999/a.git",
        "https://-oProxyCommand=x/a.git",
        "https://example.invalid/a.git?x",
        "https://example.invalid/a.git#x",
        "https://example.invalid/a b",
        "https://example.invalid/a\n",
        "https://example.invalid/a\0b",
        "https://example.invalid",
        "https:///a.git",
        "https::https://example.invalid/a",
        " https://example.invalid/a",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        checked_url(url)


@pytest.mark.parametrize(
    "url",
    ["https://example.invalid/a.git", "https://[::1]:8443/a/b", "https://a-b.invalid:1/~c/d+e"],
)
def test_urls_that_are_taken(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "ref",
    [
        "--upload-pack=touch /tmp/x",
        "-b",
        "a b",
        "a:b",
        "+a",
        "a..b",
        "a@{1}",
        "a^",
        "a~1",
        "a//b",
        "a.lock",
        "a/",
        "a/.b",
        "*",
        "a\n",
        "@",
    ],
)
def test_refs_that_are_refused(ref: str) -> None:
    with pytest.raises(InvalidInput):
        checked_ref(ref)


@pytest.mark.parametrize("ref", ["", "main", "v1.2.3", "feature/a-b_c+d", "a" * 40, "refs/pull/1"])
def test_refs_that_are_taken(ref: str) -> None:
    assert checked_ref(ref) == ref


def test_an_option_in_place_of_a_ref_runs_nothing(online: Any, server: GitServer) -> None:
    server.repository("a.git").files({"a": b"1"})
    with pytest.raises(InvalidInput):
        clone(online, server, "a.git", ref="--upload-pack=touch /tmp/x")
    assert server.seen == []
    assert online.sh("ls /tmp").text == ""


# --- what a repository may hold ---


def test_a_submodule_is_not_fetched(online: Any, server: GitServer) -> None:
    made = server.repository("a.git")
    modules = b'[submodule "s"]\n\tpath = s\n\turl = https://127.0.0.1:1/other.git\n'
    made.commit(made.tree(("100644", ".gitmodules", made.blob(modules)), ("160000", "s", "1" * 40)))
    value = clone(online, server, "a.git")
    assert (value["files"], value["submodules"]) == (1, 1)
    assert online.sh("ls -A here/s; ls here/.git").text.split().count("modules") == 0


@pytest.mark.parametrize("url", ["ext::sh -c touch% /tmp/x", "-u./x", "https://a\nb"])
def test_a_submodule_with_an_evil_url(online: Any, server: GitServer, url: str) -> None:
    made = server.repository("a.git")
    modules = f'[submodule "s"]\n\tpath = s\n\turl = "{url}"\n'.replace("\nb", "\\nb").encode()
    made.commit(made.tree(("100644", ".gitmodules", made.blob(modules)), ("160000", "s", "1" * 40)))
    try:
        clone(online, server, "a.git")
    except CallFailed as error:
        assert error.code == "unsafe_repository"
    assert online.sh("ls /tmp").text == ""


def _dot_git(made: Repository, name: str) -> None:
    hook = made.blob(b"#!/bin/sh\ntouch /tmp/x\n")
    hooks = made.tree(("100755", "post-checkout", hook))
    made.commit(made.tree(("40000", name, made.tree(("40000", "hooks", hooks)))))


@pytest.mark.parametrize("name", [".git", ".GIT", ".git ", "git~1", ".g\u200cit", ".."])
def test_a_tree_with_a_git_directory_in_it(online: Any, server: GitServer, name: str) -> None:
    _dot_git(server.repository("a.git"), name)
    assert fails(online, server, "a.git").code == "unsafe_repository"
    assert online.sh("ls /tmp").text == ""


def test_a_name_that_is_both_a_link_and_a_directory(online: Any, server: GitServer) -> None:
    made = server.repository("a.git")
    hook = made.blob(b"#!/bin/sh\ntouch /tmp/x\n")
    hooks = made.tree(("100755", "post-checkout", hook))
    made.commit(made.tree(("120000", "a", made.blob(b".git/hooks")), ("40000", "a", hooks)))
    assert fails(online, server, "a.git").code == "unsafe_repository"
    assert online.sh("ls /tmp").text == ""


def test_links_are_counted_and_not_followed(online: Any, server: GitServer) -> None:
    made = server.repository("a.git")
    made.commit(made.tree(("120000", "a", made.blob(b"/etc/passwd"))))
    value = clone(online, server, "a.git")
    assert value["symlinks"] == 1
    assert online.sh("readlink here/a").text == "/etc/passwd\n"


def test_hooks_of_the_image_do_not_run(online: Any, server: GitServer) -> None:
    """A template directory and settings that a sandbox brings mean nothing here."""
    server.repository("a.git").files({"a": b"1"})
    online.sh(
        "mkdir -p ~/t/hooks && printf '#!/bin/sh\\ntouch /tmp/x\\n' > ~/t/hooks/post-checkout &&"
        " chmod +x ~/t/hooks/post-checkout &&"
        " git config --global init.templateDir ~/t &&"
        " git config --global core.hooksPath ~/t/hooks &&"
        " git config --global http.followRedirects true"
    )
    clone(online, server, "a.git")
    assert online.sh("ls /tmp").text == ""
    # The hook is one that would have run.
    online.sh(
        "git init -q /home/sandbox/r && cd ~/r && git -c user.name=a -c user.email=a commit"
        " -q --allow-empty -m x && git checkout -q --detach && test -e /tmp/x"
    )


def test_a_filter_of_the_repository_does_not_run(online: Any, server: GitServer) -> None:
    made = server.repository("a.git")
    made.files({".gitattributes": b"* filter=evil\n", "a": b"1"})
    online.sh("git config --global filter.evil.smudge 'touch /tmp/x; cat'")
    clone(online, server, "a.git")
    assert online.sh("ls /tmp").text == ""


def test_a_bomb_of_trees_is_counted_before_it_is_written(online: Any, server: GitServer) -> None:
    made = server.repository("a.git")
    below = made.tree(*[("100644", f"f{n}", made.blob(b"x")) for n in range(10)])
    for _ in range(9):
        below = made.tree(*[("40000", f"d{n}", below) for n in range(10)])
    made.commit(below)  # 10^10 files
    assert fails(online, server, "a.git", max_files=1000).code == "too_large"


def test_files_that_are_too_large_together(online: Any, server: GitServer) -> None:
    server.repository("a.git").files({"a": bytes(2 << 20)})
    assert fails(online, server, "a.git", max_bytes=1 << 20).code == "too_large"


def test_a_pack_that_is_too_large(online: Any, server: GitServer) -> None:
    noise = b"".join(hashlib.sha256(bytes([n & 255, n >> 8])).digest() for n in range(1 << 16))
    made = server.repository("a.git")
    made.files({"small": b"x"}, made.files({"a": noise}))
    assert clone(online, server, "a.git", max_bytes=1 << 20)["bytes"] == 1
    online.sh("rm -rf here")
    assert fails(online, server, "a.git", max_bytes=1 << 20, depth=0).code == "too_large"


def test_time_that_runs_out_leaves_nothing(online: Any, server: GitServer) -> None:
    assert fails(online, server, "a.git", timeout_ms=1).code == "timeout"


def test_what_it_needs() -> None:
    assert CAPABILITY.about.needs.network and CAPABILITY.about.needs.writes
