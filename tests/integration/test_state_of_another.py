"""A state directory that belongs to somebody else is told by whose it is."""

from tests.conftest import OrdinaryUser


def test_an_ordinary_user_is_not_told_to_take_roots(as_user: OrdinaryUser) -> None:
    done = as_user.agentd("serve", "--state", "/usr")
    fix = "(give --state a directory of your own, or set daemon.state)\n"
    assert (done.returncode, done.stderr.decode()) == (125, f"agentd serve: /usr is of uid 0 {fix}")
