"""Images of a registry: Debian's docker-registry, on the loopback, with and without a password."""

import base64
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests import ports
from tests.oci import ARCHITECTURE, LIST, Images, Layout, busybox, file, layer
from tests.unit.capability.fetch.authority import Authority

from agentd import Sandbox

pytestmark = [
    pytest.mark.needs("skopeo", "umoci", "docker-registry"),
    pytest.mark.timeout(900),
]
Start = Callable[..., str]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a registry; "HOST:PORT". ``password``: whose user is "me"."""
    with ExitStack() as stack:

        def started(password: str = "", tls: dict[str, str] | None = None) -> str:
            place = f"127.0.0.1:{ports.free()}"
            folder = tmp_path / f"registry-{place[10:]}"
            folder.mkdir()
            config = {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                "http": {"addr": place, **({"tls": tls} if tls else {})},
            }
            if password:
                (folder / "users").write_text(f"me:{_bcrypt(password)}\n")
                config["auth"] = {"htpasswd": {"realm": "x", "path": str(folder / "users")}}
            (folder / "config.yml").write_text(json.dumps(config))
            log = stack.enter_context(open(folder / "log", "wb"))
            process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.yml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            _await(place, process)
            return place

        yield started


def _await(place: str, process: "subprocess.Popen[bytes]") -> None:
    host, port = place.split(":")
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)


def _bcrypt(password: str) -> str:
    try:
        crypt = ctypes.CDLL("libcrypt.so.1").crypt
    except OSError:
        pytest.skip("there is no libcrypt")
    crypt.restype = ctypes.c_char_p
    made = crypt(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu")
    return str(made.decode())


def push(source: str, place: str, name: str, *words: str) -> None:
    """With its digest as it is."""
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests",
         *(words or ("--dest-no-creds",)),
         "--dest-tls-verify=false", source, f"docker://{place}/{name}"],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_image_is_pulled_by_tag_and_by_digest_and_runs(
    images: Images, layout: Layout, start: Start
) -> None:
    place = start()
    source = layout.add([busybox(), layer(file("a", b"a"))], {"Env": ["A=b"]}, packed="zstd")
    push(source, place, "me/tool:1.0")
    by_tag = f"docker://{place}/me/tool:1.0"
    images.run("pull", by_tag, "--insecure")
    (row,) = images.told("ls")
    assert (row["name"], row["source"]) == (f"{place}/me/tool:1.0", by_tag)
    by_digest = f"docker://{place}/me/tool@{row['digest']}"
    assert images.told("pull", by_digest, "--insecure", "--name", "d")["digest"] == row["digest"]
    # As a Dockerfile pins it: the digest decides, and the tag is for who reads it.
    both = f"docker://{place}/me/tool:2.0@{row['digest']}"
    assert images.told("pull", both, "--insecure")["digest"] == row["digest"]
    assert f"{place}/me/tool:2.0" in {each["name"] for each in images.told("ls")}
    with Sandbox.create(image=f"{place}/me/tool:1.0") as box:
        assert box.run("cat /a; echo $A").stdout == b"ab\n"
    wrong = f"docker://{place}/me/tool@sha256:{'0' * 64}"
    said = images.run("pull", wrong, "--insecure", "--name", "e", code=125).stderr
    assert f"{place} has no {wrong}" in said and "see to its name and tag" in said


def fetched(tmp_path: Path, place: str) -> list[str]:
    """The blobs that were asked for, by the registry's own log of accesses."""
    log = (tmp_path / f"registry-{place[10:]}" / "log").read_text()
    return re.findall(r'"GET /v2/[a-z/]+/blobs/(sha256:[0-9a-f]{64}) ', log)


def test_layers_that_are_here_are_not_fetched_again(
    images: Images, layout: Layout, start: Start, tmp_path: Path
) -> None:
    place = start()
    shared, own = busybox(), layer(file("own", b"own"))
    for name, layers in (("first", [shared]), ("second", [shared, own])):
        push(layout.add(layers, tag=name), place, f"{name}:1")
    images.run("pull", f"docker://{place}/first:1", "--insecure", "--name", "first")
    (base,) = [b["digest"] for b in images.told("inspect", "first")["layers"]]
    assert fetched(tmp_path, place).count(base) == 1
    images.run("pull", f"docker://{place}/second:1", "--insecure", "--name", "second")
    layers = [b["digest"] for b in images.told("inspect", "second")["layers"]]
    assert [fetched(tmp_path, place).count(digest) for digest in layers] == [1, 1]
    with Sandbox.create(image="second") as box:
        assert box.run("cat /own").stdout == b"own"
    # A second time nothing is; and what was damaged since is fetched once more.
    images.run("pull", f"docker://{place}/second:1", "--insecure", "--name", "again")
    assert [fetched(tmp_path, place).count(digest) for digest in layers] == [1, 1]
    blob = images.cache / "agentd/oci/blobs/sha256" / base.removeprefix("sha256:")
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    images.run("pull", f"docker://{place}/second:1", "--insecure", "--name", "again")
    assert fetched(tmp_path, place).count(base) == 2
    assert {row["state"] for row in images.told("verify")} == {"ready"}
    assert images.left() == []


@pytest.mark.parametrize("name", ["registries.conf", "registries.conf.d/own.conf"])
def test_a_mirror_of_ones_own_is_asked_with_its_own_credentials(
    images: Images, layout: Layout, start: Start, tmp_path: Path, name: str
) -> None:
    place = start("secret")
    push(layout.add([busybox()]), place, "kept/tool:1", "--dest-creds=me:secret")
    own = tmp_path / ".config/containers"
    (own / name).parent.mkdir(parents=True)
    (own / name).write_text(
        f'[[registry]]\nlocation = "registry.invalid/ours"\n[[registry.mirror]]\n'
        f'location = "{place}/kept"\ninsecure = true\n'
    )
    asked = ("docker://registry.invalid/ours/tool:1", "--name", "tool")
    assert "does not let us have" in images.run("pull", *asked, code=125).stderr
    right = base64.b64encode(b"me:secret").decode()
    (own / "auth.json").write_text(json.dumps({"auths": {place: {"auth": right}}}))
    images.run("pull", *asked)
    with Sandbox.create(image="tool") as box:
        assert box.run("echo there").text == "there\n"


def test_the_ca_of_ones_own_is_trusted(
    images: Images, layout: Layout, start: Start, tmp_path: Path
) -> None:
    authority, pair = Authority(tmp_path, [], ["127.0.0.1"]), str(tmp_path / "leaf.pem")
    tls = {"certificate": pair, "key": pair}
    place = start(tls=tls)
    push(layout.add([busybox()]), place, "tool:1")
    asked = ("docker://" + place + "/tool:1", "--name", "tool")
    assert "does not hold" in images.run("pull", *asked, code=125).stderr
    folder = tmp_path / ".config/containers/certs.d" / place
    folder.mkdir(parents=True)
    shutil.copy(authority.ca, folder / "ca.crt")
    images.run("pull", *asked)
    assert [row["name"] for row in images.told("ls")] == ["tool"]


def test_plain_http_is_spoken_only_when_it_is_named(
    images: Images, layout: Layout, start: Start
) -> None:
    place = start()
    push(layout.add([layer(file("a"))]), place, "a:1")
    said = images.run("pull", f"docker://{place}/a:1", code=125).stderr
    assert f"{place} speaks plain HTTP" in said and "agentd image pull --insecure" in said
    assert images.told("ls") == [] and images.left() == []


def test_of_many_platforms_this_machines_is_fetched(
    images: Images, layout: Layout, start: Start
) -> None:
    place = start()
    many = {name: [layer(file("which", name.encode()))] for name in ("s390x", ARCHITECTURE)}
    push(layout.add_index(many, "all"), place, "many:1")
    images.run("pull", f"docker://{place}/many:1", "--insecure", "--name", "x")
    assert (images.root("x") / "which").read_text() == ARCHITECTURE


def _helper(folder: Path, name: str, script: str) -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_credentials_are_found_as_docker_and_podman_find_them(
    images: Images, layout: Layout, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = start(password="secret")
    push(layout.add([layer(file("a"))]), place, "ours/a:1", "--dest-creds", "me:secret")
    words = ("pull", f"docker://{place}/ours/a:1", "--insecure", "--name", "a")
    said = images.run(*words, code=125).stderr
    assert f"{place} does not let us have docker://{place}/ours/a:1" in said
    assert "docker login" in said
    (tmp_path / ".docker").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    right = {"auth": base64.b64encode(b"me:secret").decode()}
    wrong = {"auth": base64.b64encode(b"me:wrong").decode()}
    answer = '{"ServerURL": "x", "Username": "me", "Secret": "secret"}'
    _helper(tmp_path / "bin", "good", f"grep -q '^{place}$' && echo '{answer}'")
    _helper(tmp_path / "bin", "empty", "echo credentials not found in native keychain; exit 1")
    _helper(tmp_path / "bin", "broken", "echo no keyring is unlocked; exit 1")
    for config, told in (
        ({"auths": {place: right}}, ""),
        ({"auths": {f"https://{place}": right}}, ""),
        ({"auths": {f"http://{place}/v1/": right}}, ""),
        ({"credHelpers": {place: "good"}, "auths": {place: wrong}}, ""),
        ({"credsStore": "good", "auths": {place: {}}}, ""),
        ({"auths": {place: wrong, f"{place}/ours": right}}, ""),
        ({"auths": {f"{place}/ours": wrong, f"{place}/ours/a": right}}, ""),
        ({"auths": {place: right, f"{place}/ours": wrong}}, "does not let us have"),
        ({"auths": {place: wrong, f"{place}/our": right}}, "does not let us have"),
        ({"auths": {place: wrong}}, "does not let us have"),
        ({"credsStore": "empty"}, "does not let us have"),
        ({"credHelpers": {place: "broken"}}, "no keyring is unlocked"),
        ({"credHelpers": {place: "nosuch"}}, "docker-credential-nosuch is not installed"),
        ({"credHelpers": {place: "../../bin/sh"}}, "is not installed"),
        ({"auths": {"other.example": right}}, "does not let us have"),
    ):
        (tmp_path / ".docker/config.json").write_text(json.dumps(config))
        done = images.run(*words, code=125 if told else 0)
        assert told in done.stderr and "secret" not in done.stderr, config
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {place: right}}))
    images.run(*words)
    kept = subprocess.run(
        ["grep", "-rl", right["auth"], str(images.cache)], capture_output=True, check=False
    )
    assert kept.stdout == b""


def test_a_signature_policy_is_obeyed(
    images: Images, layout: Layout, start: Start, tmp_path: Path
) -> None:
    place = start()
    push(layout.add([layer(file("a"))]), place, "a:1")
    (tmp_path / ".config/containers").mkdir(parents=True)
    path = tmp_path / ".config/containers/policy.json"
    allowed = {"docker": {f"{place}/a": [{"type": "insecureAcceptAnything"}]}}
    words = ("pull", f"docker://{place}/a:1", "--insecure", "--name", "a")
    path.write_text(json.dumps({"default": [{"type": "reject"}]}))
    said = images.run(*words, code=125).stderr
    assert "the signature policy does not allow" in said and "policy.json" in said
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": allowed}))
    images.run(*words)
    path.write_text("{")
    assert f"{path} cannot be read" in images.run(*words, code=2).stderr


def test_a_registry_that_is_not_there_is_told(images: Images) -> None:
    place = f"127.0.0.1:{ports.free()}"
    said = images.run("pull", f"docker://{place}/a:1", code=125).stderr
    assert f"{place} cannot be reached" in said


def test_an_index_of_dockers_without_this_platform_is_told(images: Images, layout: Layout) -> None:
    digest = layout.index({"s390x": [layer(file("a"))]}, LIST)["digest"]
    listed = (layout.path / "blobs/sha256" / digest[7:]).read_bytes()

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = b"{}" if self.path == "/v2/" else listed
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", LIST)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_address[1]}"
        said = images.run("pull", f"docker://{place}/a:1", "--insecure", code=125).stderr
        server.shutdown()
    assert f"{place}/a:1 has no image for this machine" in said


def test_a_registry_that_breaks_off_is_told_as_that(images: Images, layout: Layout) -> None:
    manifest = layout.image([layer(file("x", os.urandom(4096)))], None)["digest"]
    blobs = layout.path / "blobs/sha256"

    class Cut(BaseHTTPRequestHandler):
        """Serves layers by half."""

        def do_GET(self) -> None:
            digest = manifest if "manifests" in self.path else self.path.rpartition("/")[2]
            data = b"{}" if self.path == "/v2/" else (blobs / digest[7:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if len(data) > 4096 else data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_address[1]}"
        said = images.run("pull", f"docker://{place}/a:1", "--insecure", code=125).stderr
        server.shutdown()
    assert "unexpected EOF" in said and f"{place} broke off" in said
    assert "no archive" not in said


def test_credentials_that_cannot_be_read_are_told(images: Images, tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    auths = {"127.0.0.1:1": {"auth": "!!!"}}
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": auths}))
    said = images.run("pull", "docker://127.0.0.1:1/a:1", "--insecure", code=125).stderr
    assert "the credentials for 127.0.0.1:1 cannot be read" in said
    assert "docker login 127.0.0.1:1" in said


@pytest.mark.root
def test_a_configuration_that_cannot_be_read_is_told(images: Images) -> None:
    words = ("-m", "agentd", "image", "pull", "docker://127.0.0.1:1/a:1")
    broken = "mount -t tmpfs none /etc/containers && echo '[[[' > /etc/containers/registries.conf"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{broken} && exec "$@"', "sh", sys.executable, *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 125, done.stderr
    assert "the configuration of registries cannot be read" in done.stderr
    assert "mend /etc/containers/registries.conf" in done.stderr
