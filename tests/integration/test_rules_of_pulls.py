"""Whom a pull or a push may be led to beside the public: rules, as those of a sandbox."""

from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser
from tests.leading import SECRET, registry, service
from tests.oci import Images, Layout, file, layer

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Images(tmp_path)


_MANY = ",".join(f"host.agentd.internal:{port}" for port in range(1, 101))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--net", "none"), "no registry is reached without a network"),
        (("--net", "read auth.example/**"), "are for sandboxes"),
        (("--net", "ask auth.example"), "are for sandboxes"),
        (("--net", "github-read"), "are for sandboxes"),
        (("--net", "record,auth.example"), "are for sandboxes"),
        (("--net", "127.0.0.1:5001"), "is this machine (write it as host.agentd.internal:5001)"),
        (("--net", "pypi,localhost:5001"), "(write it as host.agentd.internal:5001)"),
        (("--net", "[::1]"), "(write it as host.agentd.internal:PORT)"),
        (("--net", "auth"), "is no preset"),
        (("--net", _MANY), "--net has 100 ports of this machine"),
    ],
)
def test_what_is_no_rule_for_a_pull(images: Images, words: tuple[str, ...], said: str) -> None:
    for action in (("pull", "docker://127.0.0.1:1/a:1"), ("push", "a", "docker://127.0.0.1:1/a:1")):
        if action[0] == "push":
            made = Layout(images.folder / "layout")
            images.run("pull", made.add([layer(file("a"))]), "--name", "a")
        assert said in images.run(*action, *words, code=2).stderr, action


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://:x"])
def test_a_proxy_that_is_not_spoken_to_by_http_is_refused(
    images: Images, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    said = images.run("pull", "docker://127.0.0.1:1/a:1", code=2).stderr
    assert "HTTPS_PROXY names no proxy that is spoken to by HTTP" in said and "--net host" in said


def test_a_service_of_this_machine_is_asked_where_a_rule_says_so(
    images: Images, tmp_path: Path
) -> None:
    made = Layout(tmp_path / "layout")
    made.add([layer(file("a"))])
    with service(made.path) as ours:
        realm = f"http://localhost:{ours.port}/token"
        with registry(made.path, realm=realm, blobs=f"http://127.0.0.1:{ours.port}") as leads:
            place = f"docker://localhost:{leads.port}/a:1"
            grant = f"host.agentd.internal:{ours.port}"
            said = images.run("pull", place, "--insecure", "--name", "a", code=125).stderr
            assert f"agentd image pull --net {grant}" in said and ours.asked == []
            images.run("pull", place, "--insecure", "--name", "a", "--net", grant)
            assert len(ours.asked) == 3, ours.asked  # a token, a configuration, a layer
            sent = {authorization for _, authorization in leads.asked}
            assert sent == {"", f"Bearer {SECRET}"}


def test_an_ordinary_users_pull_is_led_nowhere_either(
    as_user_alone: OrdinaryUser, tmp_path: Path
) -> None:
    made = Layout(tmp_path / "layout")
    made.add([layer(file("a"))])
    with service(made.path) as ours:
        for realm, code in (("", 0), (f"http://127.0.0.1:{ours.port}/token", 125)):
            with registry(made.path, realm=realm) as leads:
                place = f"docker://127.0.0.1:{leads.port}/a:1"
                words = ("image", "pull", place, "--insecure", "--name", "a")
                done = as_user_alone.agentd(*words)
            assert done.returncode == code, done.stderr
        assert ours.asked == [] and b"which is not asked" in done.stderr
