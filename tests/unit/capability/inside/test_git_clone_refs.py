"""What a server says its default branch is becomes an argument: only a plain name may."""

import pytest

from agentd.capability.inside.git_clone import _is_branch


@pytest.mark.parametrize("name", ["refs/heads/main", "refs/heads/feature/a-b_c.1"])
def test_branches(name: str) -> None:
    assert _is_branch(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "HEAD",
        "main",
        "refs/heads/",
        "refs/heads/-f",
        "refs/tags/v1",
        "refs/heads/a b",
        "refs/heads/a\n",
        "refs/heads/a:b",
        "refs/heads/" + "a" * 300,
        "--upload-pack=x",
    ],
)
def test_what_is_none(name: str) -> None:
    assert not _is_branch(name)
