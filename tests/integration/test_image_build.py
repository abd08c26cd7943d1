"""``agentd image build`` of a Dockerfile, by the command line; what was built is run."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.integration.test_network_of_a_sandbox import port
from tests.integration.test_oci_images import short_of_room
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd import Sandbox

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
__all__ = ["port", "short_of_room"]  # fixtures
PASSWD = b"root:x:0:0::/root:/bin/sh\nnode:x:77:78::/home/node:/bin/sh\n"
GROUP = b"root:x:0:\nstaff:x:50:\n"


class Builds(Images):
    """``base`` is an image of busybox; ``context`` is a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.context = path / "context"
        self.context.mkdir()

    def base(self, layout: Layout) -> None:
        more = (
            *(folder("etc"), file("etc/passwd", PASSWD), file("etc/group", GROUP)),
            *(folder("tmp", 0o1777), folder("run"), folder("var"), link("var/run", "/run")),
            *(folder("old"), file("old/a", b"a"), file("old/b", b"b"), link("bin/rm", "busybox")),
            *(link(f"bin/{name}", "busybox") for name in ("chmod", "chown", "ln", "kill", "sleep")),
        )
        config = {"Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": {"of": "base"}}
        self.run("pull", layout.add([busybox(*more)], config), "--name", "base")

    def build(self, text: str, *words: str, name: str = "mine", code: int = 0) -> Any:
        (self.context / "Dockerfile").write_text(text)
        return self.run("build", "-t", name, *words, str(self.context), code=code)

    def built(self, text: str, *words: str) -> dict[str, Any]:
        return dict(json.loads(self.build(text, *words, "--json").stdout))

    def files(self, name: str = "mine") -> dict[str, tarfile.TarInfo]:
        """The entries of its last layer, by path."""
        (*_, last) = self.told("inspect", name)["layers"]
        blob = self.cache / "agentd/oci/blobs/sha256" / last["digest"].removeprefix("sha256:")
        with tarfile.open(blob) as archive:
            return {member.name: member for member in archive}

    def config(self, name: str = "mine") -> dict[str, Any]:
        return dict(self.told("inspect", name)["config"])

    def store(self) -> list[str]:
        """All that is in it, but for what is locked."""
        top = self.cache / "agentd/oci"
        found = (str(path.relative_to(top)) for path in top.rglob("*"))
        return sorted(path for path in found if not path.endswith(".lock"))


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return made


@pytest.fixture
def on_base(builds: Builds, tmp_path: Path) -> Builds:
    builds.base(Layout(tmp_path / "layout"))
    return builds


def said(image: str, command: str, **options: Any) -> str:
    with Sandbox.create(image=image, **options) as box:
        return box.run(command, check=True).stdout.decode()


ALL = """\
# syntax=docker/dockerfile:1
ARG TAG=base
FROM $TAG AS made
ARG WHO=nobody
ENV GREETING="hello $WHO" OTHER=${NOT:-else}
WORKDIR /srv/app
COPY one.txt sub/ ./
COPY <<EOF <<'RAW' /etc/
$GREETING
EOF
$GREETING
RAW
RUN cat one.txt > out && \\
    # a comment amid a command
    echo "$WHO" >> out && cat /etc/EOF /etc/RAW >> out
RUN <<END
echo $0 >> out
pwd >> out
END
RUN cat <<END >> out
from a heredoc
END
RUN <<"END"
#!/bin/sh -e
echo $0 $WHO >> out
END
RUN ["/bin/sh", "-c", "echo $HOME in /tmp: > /tmp/here && cat /tmp/here >> out"]
SHELL ["/bin/busybox", "sh", "-ec"]
RUN mkdir /workspace && echo kept > /workspace/w && id -u >> out
FROM made AS unused
RUN exit 9
FROM scratch
COPY --from=0 --chown=7:8 --chmod=750 /srv /srv
COPY --from=base /bin /bin
COPY --from=made /workspace/w /etc/EOF /copied/
LABEL a=b "c d"="e f"
EXPOSE 80 53/udp
ENV PATH=/bin
USER node
CMD ["cat", "/srv/app/out"]
"""


def test_a_dockerfile_of_all_instructions_is_built_and_runs(on_base: Builds) -> None:
    (on_base.context / "one.txt").write_text("one\n")
    (on_base.context / "sub/deep").mkdir(parents=True)
    (on_base.context / "sub/deep/x").write_text("x")
    (on_base.context / "sub/deep/l").symlink_to("x")
    done = on_base.build(ALL, "--build-arg", "WHO=me", "--build-arg", "NONE=1")
    assert done.stdout.startswith("mine sha256:")
    assert "note: no ARG asks for --build-arg NONE" in done.stderr
    assert "[1/" in done.stderr and "RUN exit 9" not in done.stderr
    out = "one\nme\nhello me\n$GREETING\n/bin/sh\n/srv/app\nfrom a heredoc\n"
    out += "/dev/shm/heredoc me\n/root in /tmp:\n0\n"
    assert said("mine", "cat /srv/app/out /srv/app/deep/l /copied/*", user="7") == (
        f"{out}xhello me\nkept\n"
    )
    config = on_base.config()
    assert config["Cmd"] == ["cat", "/srv/app/out"] and config["User"] == "node"
    with Sandbox.create(image="mine", user="7") as sandbox:
        assert sandbox.command == ("cat", "/srv/app/out") and sandbox.fidelity == "files"
    assert config["Labels"] == {"a": "b", "c d": "e f"} and config["Env"] == ["PATH=/bin"]
    again = on_base.built(ALL, "--build-arg", "WHO=me")
    assert again["cached"] == again["steps"] - 10  # those without a layer
    assert again["digest"] == done.stdout.split()[1]
    assert on_base.told("verify") == [
        {"name": "base", "state": "ready"}, {"name": "mine", "state": "ready"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("RUN rm /old/a && echo c > /old/c", {"old/.wh.a", "old", "old/c"}),
        ("RUN rm -r /old && mkdir /old && echo c > /old/c", {"old", "old/.wh..wh..opq", "old/c"}),
        ("RUN rm -r /old", {".wh.old"}),
        ("RUN rm -r /old && echo x > /old", {"old"}),
        ("RUN chmod 2751 /old/a", {"old", "old/a"}),
        ("RUN ln /old/a /old/z && ln -s /a /old/l", {"old", "old/a", "old/z", "old/l"}),
        ("RUN echo x > /tmp/x && echo y >> /etc/hosts", {"tmp", "tmp/x", "etc"}),
        ("COPY . /old", {"old/a"}),
        ("COPY a /var/run/", {"run/a"}),
        ("WORKDIR /var/run/x", {"run/x"}),
        ("ADD a /new/", {"new", "new/a"}),
    ],
)
def test_a_layer_holds_what_a_step_changed(text: str, changed: set[str], on_base: Builds) -> None:
    (on_base.context / ".dockerignore").write_text("Dockerfile\n.dockerignore\n")
    (on_base.context / "a").write_text("mine")
    on_base.build(f"FROM base\n{text}\n")
    found = on_base.files()
    assert set(found) == changed
    if "2751" in text:
        assert found["old/a"].mode == 0o2751
    if "/tmp/x" in text:
        assert found["tmp"].mode == 0o1777
    shown = said("mine", "ls / /old/ /tmp 2>&1; cat /old/* || true", writable=True)
    assert ("mine" in shown) == (text == "COPY . /old")


def test_a_copy_sees_what_steps_before_it_took_away(on_base: Builds) -> None:
    (on_base.context / "a").write_text("mine")
    for text, changed in (
        ("RUN rm -r /old\nCOPY a /old", {"old"}),  # no folder any more, to copy into
        ("RUN rm -r /old && mkdir /old\nCOPY a /old/b/c", {"old/b", "old/b/c"}),
    ):
        on_base.build(f"FROM base\n{text}\n")
        assert set(on_base.files()) == changed


@pytest.mark.root
def test_owners_and_modes_are_in_the_layer(on_base: Builds) -> None:
    """Of a range of ids, too; what the flat root says of an owner before is heeded."""
    (on_base.context / "a").write_text("a")
    on_base.build(
        "FROM base\nCOPY --chown=node:staff --chmod=0600 a /kept\n"
        "RUN echo b > /n && chown 77:50 /n && chmod 4755 /n && echo b >> /kept\n"
    )
    found = on_base.files()
    assert {n: (f.uid, f.gid, f.mode) for n, f in found.items()} == {
        "n": (77, 50, 0o4755), "kept": (77, 50, 0o600),
    }  # fmt: skip
    on_base.build("FROM base\nUSER node\nRUN echo x > /tmp/x && id -u\n")
    found = on_base.files()
    assert (found["tmp"].uid, found["tmp/x"].uid, found["tmp/x"].gid) == (0, 77, 77)


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("ENV A=1 B=$A", "A=1 B="),
        ("ENV A=1\nENV B=${A}x C='$A' D=\"$A b\" E=\\$A", "A=1 B=1x C=$A D=1 b E=$A"),
        ("ENV A b  c", "A=b  c"),
        ("ENV B=${A:-no} C=${A:+yes} D=${A-x$A}", "B=no C= D=x"),
        ("ARG A\nENV B=${A:-no}", "B=no"),
        ("ARG G\nENV B=$G", "B=global"),
        ("ENV B=$G", "B="),
        ("ARG A=1\nENV A=2\nENV B=$A", "A=2 B=2"),
        ("ARG TARGETOS\nENV B=$TARGETOS", "B=linux"),
        ("ENV A=b \\\n\n# no\n C=d", "A=b C=d"),
        ("ENV A=C:\\\\\nENV B=d", "A=C:\\ B=d"),
        ("env a=b\nEnV c=d", "a=b c=d"),
        ("ENV A=1\nENV A=2", "A=2"),
    ],
)
def test_variables_mean_what_they_mean_to_docker(text: str, env: str, builds: Builds) -> None:
    builds.build(f"ARG G=global\nFROM scratch\n{text}\n")
    assert " ".join(builds.config()["Env"]) == env


def test_an_escape_of_its_own_and_the_base_are_heeded(on_base: Builds) -> None:
    on_base.build('# escape=`\nFROM base\nENV A=a`\n  B=`$A\nENTRYPOINT ["x"]\n')
    config = on_base.config()
    assert config["Env"] == ["PATH=/bin", "A=a", "B=$A"] and config["Labels"] == {"of": "base"}
    assert config["Entrypoint"] == ["x"] and config["Cmd"] is None
    on_base.build("FROM base\nCMD echo $A\nENTRYPOINT x y\n")
    config = on_base.config()
    assert config["Cmd"] == ["/bin/sh", "-c", "echo $A"]
    assert config["Entrypoint"] == ["/bin/sh", "-c", "x y"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 2, "Dockerfile:1: it has no FROM"),
        ("RUN x\nFROM scratch\n", 2, "Dockerfile:1: RUN stands before the first FROM"),
        ("FROM scratch\nRUNN x\n", 2, "Dockerfile:2: RUNN is no instruction"),
        ("FROM scratch\nVOLUME $NONE\n", 2, "Dockerfile:2: VOLUME of nothing"),
        ("FROM scratch\nSTOPSIGNAL a b\n", 2, "Dockerfile:2: STOPSIGNAL a b (write a signal"),
        ("FROM scratch\nONBUILD RUN x\n", 2, "Dockerfile:2: ONBUILD is not understood"),
        ("FROM scratch\nRUN --mount=type=cache,target=/x x\n", 2, "2: RUN --mount is not unders"),
        ("FROM scratch\nRUN --network=host x\n", 2, "build with --net host"),
        ("FROM scratch\nCOPY --parents a b\n", 2, "2: COPY --parents is not understood"),
        ("FROM scratch\n\n\nADD https://x.example/y /\n", 2, "Dockerfile:4: ADD of a URL, https"),
        ("FROM scratch\nADD git@x.example:y /\n", 2, "Dockerfile:2: ADD of a URL"),
        ("FROM scratch\nCOPY a\n", 2, "Dockerfile:2: COPY wants two words"),
        ("FROM scratch\nCOPY nosuch /\n", 2, "2: COPY: nosuch is not in the context (name paths"),
        ("FROM scratch\nCOPY no* /\n", 2, "2: COPY: nothing in the context fits no*"),
        ("FROM scratch\nCOPY ../x /\n", 2, "2: COPY: ../x leads out of the context"),
        ("FROM scratch\nCOPY Dockerfile .dockerignore /x\n", 2, "end it with /"),
        ("FROM scratch\nCOPY <<EOF /x\nabc\n", 2, "Dockerfile:2: nothing ends <<EOF"),
        ("FROM scratch\nCOPY --chmod=u+x Dockerfile /\n", 2, "is no octal mode"),
        ("FROM scratch\nCOPY --chown=me Dockerfile /\n", 2, "there is no user 'me'"),
        ("FROM scratch\nENV A=${B\n", 2, "Dockerfile:2: nothing ends"),
        ("FROM scratch\nENV A=\"${B:?is needed}\"\n", 2, "2: B is not set: is needed"),
        ("FROM scratch\nENV A=${B##x}\n", 2, "Dockerfile:2: ${B##x}"),
        ("FROM scratch\nEXPOSE 99999\n", 2, "Dockerfile:2: EXPOSE 99999"),
        ("FROM --platform=windows/arm scratch\n", 2, "is not this machine's"),
        ("FROM scratch AS a\nFROM scratch AS a\n", 2, "there is a stage a already"),
        ("FROM scratch AS a b\n", 2, "write FROM IMAGE [AS NAME]"),
        ("FROM $NONE\n", 2, "Dockerfile:1: FROM $NONE names nothing"),
        ("FROM scratch\nCOPY Dockerfile /a/x/\nWORKDIR /a/x/Dockerfile\n", 2, "no folder"),
        ("# escape=x\nFROM scratch\n", 2, "escape cannot be 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_by_its_line(
    text: str, code: int, words: str, builds: Builds
) -> None:
    (builds.context / ".dockerignore").write_text("")
    done = builds.build(text, code=code)
    assert words in done.stderr and not done.stdout
    assert "(" in done.stderr  # what to do about it
    assert [path for path in builds.store() if "/" in path] in ([], ["blobs/sha256"])


def test_what_has_no_effect_here_is_kept_for_others(builds: Builds) -> None:
    """And said once, where a sandbox does not do it."""
    text = (
        "FROM scratch AS one\nMAINTAINER Me <me@x.example>\nARG S=INT\nSTOPSIGNAL SIG$S\n"
        'VOLUME /a "/b c"\nVOLUME ["/d"]\nHEALTHCHECK --interval=5s CMD x || exit 1\n'
        "FROM one\nLABEL a=b\n"
    )
    done = builds.build(text)
    for word in ("STOPSIGNAL", "VOLUME", "HEALTHCHECK"):
        assert f"agentd image: note: {word} has no effect here: " in done.stderr
    blobs = builds.cache / "agentd/oci/blobs/sha256"
    digest = done.stdout.split()[1].removeprefix("sha256:")
    manifest = json.loads((blobs / digest).read_text())
    told = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert told["author"] == "Me <me@x.example>" and told["config"]["StopSignal"] == "SIGINT"
    assert told["config"]["Volumes"] == {"/a": {}, "/b c": {}, "/d": {}}
    assert "Healthcheck" not in told["config"]
    builds.build("FROM mine\nVOLUME /e\n")


def test_a_run_that_fails_is_named_and_leaves_nothing(on_base: Builds) -> None:
    before = on_base.store()
    text = (
        "FROM base\nENV A=b\nRUN echo fine > /x\nRUN echo $A is wrong \\\n  && exit 7\nRUN true\n"
    )
    done = on_base.build(text, code=1)
    assert "\nb is wrong\n" in done.stderr
    assert "Dockerfile:4: RUN echo $A is wrong && exit 7 failed: exit code 7" in done.stderr
    assert on_base.store() == before
    told = json.loads(on_base.build(text, "--json", code=1).stdout)
    assert (told["code"], told["line"], told["exit_code"]) == ("build_failed", 4, 7)
    done = on_base.build("FROM base\nRUN kill -9 $$\n", code=1)
    assert "signal 9" in done.stderr or "SIGKILL" in done.stderr
    done = on_base.build('FROM base\nRUN ["/nosuch"]\n', code=1)
    assert "Dockerfile:2" in done.stderr and "nosuch" in done.stderr
    done = on_base.build("FROM base\nUSER nosuch\nRUN true\n", code=125)
    assert "Dockerfile:3: RUN" in done.stderr and "'nosuch', who is not in" in done.stderr
    assert "--user" not in done.stderr and "make that user in a RUN before" in done.stderr
    assert on_base.store() == before


def test_killed_amid_a_run_a_build_leaves_a_store_that_verifies(on_base: Builds) -> None:
    text = "FROM base\nRUN echo x > /x\nRUN echo now && sleep 1000\n"
    (on_base.context / "Dockerfile").write_text(text)
    process = on_base.start("build", "-t", "mine", str(on_base.context))
    assert process.stderr is not None
    for line in process.stderr:
        if line == "now\n":
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert on_base.told("verify") == [{"name": "base", "state": "ready"}]
    on_base.run("prune")
    assert on_base.left() == []
    (on_base.context / "Dockerfile").write_text("FROM base\nRUN echo x > /x\n")
    # Another process: each removes the groups that killed ones have left once.
    after = on_base.start("build", "-t", "mine", str(on_base.context))
    after.communicate(timeout=120)
    assert after.returncode == 0
    assert on_base.told("verify", "mine") == [{"name": "mine", "state": "ready"}]


CACHED = "FROM base\nARG A=1\nCOPY dir /dir\nRUN echo ran > /ran\nENV B=1\nRUN echo again > /r\n"


def test_a_step_is_cached_by_what_it_depends_on(on_base: Builds) -> None:
    inner = on_base.context / "dir/inner"
    inner.parent.mkdir()
    inner.write_text("x")

    def cached(text: str = CACHED, *words: str) -> int:
        return int(on_base.built(text, *words)["cached"])

    first = on_base.built(CACHED)
    assert (first["steps"], first["cached"]) == (6, 0) and cached() == 3
    os.utime(inner, (1, 1))
    assert cached() == 3, "another checkout has other times"
    os.chmod(inner, 0o600)
    assert cached() == 0
    inner.write_text("y")
    assert cached() == 0 and cached() == 3
    (on_base.context / "dir/more").write_text("")
    assert cached() == 0 and cached() == 3
    assert cached(CACHED, "--build-arg", "A=2") == 1, "a RUN sees it"
    assert cached(CACHED.replace("B=1", "B=2")) == 2
    assert cached(CACHED.replace("again", "other")) == 2
    assert cached(CACHED.replace("ENV B", "USER node\nENV B")) == 2
    assert cached(CACHED.replace("ENV B", "WORKDIR /tmp\nENV B")) == 2, "which is there already"
    assert cached(CACHED, "--net", "host") == 1
    assert cached(CACHED, "--no-cache") == 0
    assert cached() == 3
    on_base.run("rm", "mine")
    assert cached() == 3, "its layers are there"
    on_base.run("prune")
    on_base.run("rm", "mine")
    on_base.run("prune")
    assert cached() == 0
    assert on_base.told("verify", "mine") == [{"name": "mine", "state": "ready"}]


def test_a_copy_is_cached_by_all_that_is_said_of_it(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    (builds.context / "a").write_text("a")

    def cached(line: str) -> int:
        return int(builds.built(f"FROM scratch\n{line}\n")["cached"])

    heredoc = "COPY <<E /x\n{}\nE"
    for line in (
        "COPY a /x",
        *("COPY a /x/", "COPY a /y", "ADD a /x", "COPY --chown=5 a /x", "COPY --chown=5:6 a /x"),
        *("COPY --chmod=600 a /x", heredoc.format("one"), heredoc.format("two")),
    ):
        assert (cached(line), cached(line)) == (0, 1), line
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert cached("COPY a /x") == 0, "its layer has other times"


def test_the_same_gives_the_same(on_base: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    (on_base.context / "a").write_text("a")
    text = "FROM base\nCOPY a /a\nWORKDIR /w\nLABEL x=y\n"
    first = on_base.built(text, "--no-cache")["digest"]
    assert on_base.built(text, "--no-cache")["digest"] == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    text += "RUN echo x > /x\n"
    first = on_base.built(text, "--no-cache")["digest"]
    assert on_base.built(text, "--no-cache")["digest"] == first
    assert {member.mtime for member in on_base.files().values()} == {1000}


def test_only_what_a_target_needs_is_built(on_base: Builds) -> None:
    text = (
        "FROM base AS one\nRUN echo 1 > /1\nFROM base AS two\nRUN exit 1\n"
        "FROM one AS three\nCOPY --from=one /1 /copy\nFROM two\n"
    )
    on_base.build(text, "--target", "three")
    assert said("mine", "cat /1 /copy") == "1\n1\n"
    on_base.build(text, "--target", "0")
    assert "/copy" not in said("mine", "ls /*")
    assert "use one of: one, two, three, 3" in on_base.build(text, "--target", "x", code=2).stderr
    assert "Dockerfile:4: RUN exit 1 failed" in on_base.build(text, code=1).stderr


def test_a_context_is_hostile(on_base: Builds, tmp_path: Path) -> None:
    """No link leads out, and nothing is waited for."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/x").write_text("secret")
    context = on_base.context
    (context / "out").symlink_to(tmp_path / "secret")
    (context / "up").symlink_to("../secret")
    (context / "folder").symlink_to(tmp_path / "secrets")
    os.mkfifo(context / "fifo")
    (context / "in").symlink_to("Dockerfile")
    for name in ("out", "up", "folder", "folder/x", "folder/*"):
        done = on_base.build(f"FROM scratch\nCOPY {name} /x/\n", code=2)
        assert "in the context" in done.stderr and "Dockerfile:2" in done.stderr
    done = on_base.build("FROM scratch\nCOPY fifo /x\n", code=2)
    assert "fifo is neither a file nor a folder" in done.stderr
    on_base.build("FROM base\nCOPY . /all/\nCOPY in /in\n")
    assert on_base.files()["in"].isreg()
    shown = said("mine", "cat /all/out /all/up /all/folder/x 2>&1; readlink /all/up; true")
    assert shown.count("No such file") == 3 and shown.endswith("\n../secret\n")
    (context / "Dockerfile").unlink()
    (context / "Dockerfile").symlink_to("/etc/passwd")
    done = on_base.run("build", "-t", "mine", str(context), code=2)
    assert "root:" not in done.stderr and "cannot be read" in done.stderr


@pytest.mark.root
def test_a_device_in_a_context_is_refused(builds: Builds) -> None:
    try:
        os.mknod(builds.context / "device", 0o666 | 0o020000, os.makedev(1, 5))
    except OSError:
        pytest.skip("no device can be made here")
    done = builds.build("FROM scratch\nCOPY . /\n", code=2)
    assert "Dockerfile:2: COPY: device is a device" in done.stderr


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        ("", "a.md a.py sub sub/b.md sub/deep sub/deep/c.py"),
        ("*.md", "a.py sub sub/b.md sub/deep sub/deep/c.py"),
        ("**/*.md", "a.py sub sub/deep sub/deep/c.py"),
        ("sub", "a.md a.py"),
        ("/sub/\n# a comment", "a.md a.py"),
        ("*\n!sub/deep", "sub sub/deep sub/deep/c.py"),
        ("sub\n!sub/b.md", "a.md a.py sub sub/b.md"),
        ("s?b/[a-b].md", "a.md a.py sub sub/deep sub/deep/c.py"),
        ("*.md\n!a.md", "a.md a.py sub sub/b.md sub/deep sub/deep/c.py"),
    ],
)
def test_what_dockerignore_names_is_not_copied(ignored: str, left: str, builds: Builds) -> None:
    for name in ("a.md", "a.py", "sub/b.md", "sub/deep/c.py"):
        path = builds.context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    own = "Dockerfile\n.dockerignore\n"
    (builds.context / ".dockerignore").write_text(own + ignored)
    builds.build("FROM scratch\nCOPY . /\n")
    assert " ".join(sorted(builds.files())) == left


def test_add_unpacks_an_archive_and_nothing_outside(builds: Builds) -> None:
    def packed(name: str, *entries: Any) -> None:
        with tarfile.open(builds.context / name, "w:gz") as archive:
            for info, data in entries:
                archive.addfile(info, io.BytesIO(data) if info.isreg() else None)

    packed("good.tgz", folder("d", 0o700), file("d/x", b"x", uid=5), link("d/l", "x"),
           link("d/h", "d/x", hard=True))  # fmt: skip
    builds.build("FROM scratch\nADD good.tgz /in/\n")
    found = builds.files()
    assert sorted(found) == ["in", "in/d", "in/d/h", "in/d/l", "in/d/x"]
    assert (found["in/d/x"].uid, found["in/d"].mode, found["in/d/h"].linkname) == (
        5, 0o700, "in/d/x",
    )  # fmt: skip
    builds.build("FROM scratch\nCOPY good.tgz /in/\n")
    assert sorted(builds.files()) == ["in", "in/good.tgz"]
    for entries, words in (
        ([file("../x")], "leads out"),
        ([link("l", "/etc"), file("l/x")], "/in/l/x lies in /in/l, which is no folder"),
        ([link("h", "/etc/passwd", hard=True)], "not before it"),
        ([file("x", type=tarfile.BLKTYPE)], "is a device"),
    ):
        packed("bad.tgz", *entries)
        done = builds.build("FROM scratch\nADD bad.tgz /in/\n", code=2)
        assert "Dockerfile:2: ADD: " in done.stderr and words in done.stderr


def test_a_run_has_the_network_that_is_granted(on_base: Builds) -> None:
    text = "FROM base\nRUN readlink /proc/self/ns/net\n"
    here = os.readlink("/proc/self/ns/net")
    assert here not in on_base.build(text).stderr
    assert here in on_base.build(text, "--net", "host").stderr
    assert "is no preset" in on_base.build(text, "--net", "other", code=2).stderr


def test_a_run_reaches_what_rules_allow(on_base: Builds) -> None:
    """Alone, by its own network; and each spelling of the rules is the same step."""
    text = "FROM base\nRUN nslookup pypi.org; nslookup example.com; true\n"
    told = on_base.build(text, "--net", "PyPI, *.example.org").stderr
    assert "198.18." in told and "can't find example.com: NXDOMAIN" in told
    again = on_base.build(text, "--net", "pypi,*.example.org", "--json")
    assert json.loads(again.stdout)["cached"] == 1


def test_a_run_reaches_hosts_of_ones_own_configuration(
    on_base: Builds, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = f'name = "own.my.internal"\naddress = "127.0.0.1:{port}"\n'
    (tmp_path / "agentd.toml").write_text(f"[[egress.host]]\n{own}")
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))
    text = "FROM base\nRUN busybox nc own.my.internal 5432 </dev/null\n"
    assert "hello" in on_base.build(text, "--net", "own.my.internal:5432").stderr


def test_a_file_and_a_context_elsewhere(builds: Builds) -> None:
    (builds.folder / "other").write_text("FROM scratch\nCOPY . /\n")
    (builds.folder / "other.dockerignore").write_text("no\n")
    for name in ("yes", "no"):
        (builds.context / name).write_text("")
    builds.run("build", "-t", "mine", "-f", "other", "context")
    assert list(builds.files()) == ["yes"]
    done = builds.run("build", "-t", "mine", "context", code=2)
    assert "there is no Dockerfile in context (name one: -f FILE)" in done.stderr
    for words, told in (
        (["-t", "x", "nosuch"], "context nosuch is no directory (give a folder that is there)"),
        (["-t", "x", "other"], "context other is no directory (give a folder that is there)"),
        (["context"], "give it one: -t NAME"),
        (["-t", "UP", "context"], "is no name for an image"),
        (["-t", "x", "https://x.example/y"], "is no directory"),
        (["-t", "x", "--base", "busybox", "context"], "--base is for machine images"),
        (["-t", "x", "-f", "other"], "--file is for a Dockerfile"),
    ):
        assert told in builds.run("build", *words, code=2).stderr


def test_an_ordinary_user_builds(as_user: OrdinaryUser) -> None:
    made = Layout(as_user.home / "layout")
    source = made.add([busybox(folder("tmp", 0o1777))], {"Env": ["PATH=/bin"]})
    for path in (as_user.home / "layout").rglob("*"):
        path.chmod(0o755)
    context = as_user.home / "context"
    context.mkdir()
    (context / "a").write_text("a")
    (context / "Dockerfile").write_text(
        "FROM base\nCOPY --chown=5 a /a\nRUN cat /a > /b && rm /bin/test && id -u\nCMD cat /b\n"
    )
    for words in (
        ["image", "pull", source, "--name", "base"],
        ["image", "build", "-t", "mine", str(context)],
        ["image", "verify"],
        ["run", "--image", "mine"],
    ):
        done = as_user.agentd(*words)
        assert done.returncode == 0, done
    assert done.stdout == b"a"


def test_a_build_takes_no_longer_for_what_was_cached(on_base: Builds) -> None:
    """Nothing runs, and nothing is unpacked: no folder of a root is made anew."""
    on_base.build("FROM base AS a\nRUN echo x > /x\nFROM scratch\nCOPY --from=a /x /x\n")
    roots = on_base.cache / "agentd/oci/roots"
    before = {path.name: path.stat().st_ctime_ns for path in roots.iterdir()}
    time.sleep(0.01)  # that another time would show
    on_base.build("FROM base AS a\nRUN echo x > /x\nFROM scratch\nCOPY --from=a /x /x\n")
    assert {path.name: path.stat().st_ctime_ns for path in roots.iterdir()} == before


def test_a_layer_is_bounded_whatever_holes_a_file_has(on_base: Builds) -> None:
    (on_base.context / "sparse").touch()
    os.truncate(on_base.context / "sparse", 64 << 30)
    done = on_base.build("FROM base\nCOPY sparse /x\n", code=2)
    assert "Dockerfile:2: COPY: more than 32 GiB of the context is copied" in done.stderr
    (on_base.context / "sparse").unlink()
    sparse = "busybox dd if=/dev/zero of=/x bs=1 count=1 seek=68719476736"
    done = on_base.build(f"FROM base\nRUN {sparse}\n", code=125)
    assert "Dockerfile:2: RUN: the layer would be larger than 512 MiB with 'x'" in done.stderr
    assert on_base.left() == []


@pytest.mark.root
@pytest.mark.usefixtures("short_of_room")
def test_where_the_disk_is_full_a_build_leaves_nothing(on_base: Builds) -> None:
    before = on_base.store()
    (on_base.context / "big").write_bytes(os.urandom(9 << 20))
    run = "busybox dd if=/dev/urandom of=/big bs=1M count=9"
    for text in ("FROM base\nCOPY big /big\n", f"FROM base\nRUN {run}\n"):
        done = on_base.build(text, code=125)
        assert "there is no room for" in done.stderr or "make room" in done.stderr
        assert on_base.store() == before
    assert on_base.told("verify") == [{"name": "base", "state": "ready"}]


def test_interrupted_a_build_ends_its_sandbox_and_leaves_nothing(on_base: Builds) -> None:
    (on_base.context / "Dockerfile").write_text("FROM base\nRUN echo now && sleep 1000\n")
    process = on_base.start("build", "-t", "mine", str(on_base.context))
    assert process.stderr is not None
    for line in process.stderr:
        if line == "now\n":
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert on_base.left() == [] and [row["name"] for row in on_base.told("ls")] == ["base"]


def test_each_run_is_bounded_as_it_is_said(on_base: Builds) -> None:
    done = on_base.build("FROM base\nRUN sleep 100\n", "--timeout", "1s", code=1)
    assert "Dockerfile:2: RUN sleep 100 failed: " in done.stderr
    full = "FROM base\nRUN busybox dd if=/dev/zero of=/x bs=1M count=4\n"
    assert "No space left" in on_base.build(full, "--disk", "2M", code=1).stderr
    on_base.build(full, "--disk", "8M")
    for option, wrong in (("--memory", "much"), ("--disk", "0"), ("--timeout", "soon")):
        assert wrong in on_base.build(full, option, wrong, code=2).stderr


def test_a_dockerfile_comes_by_stdin_and_an_argument_by_the_environment(builds: Builds) -> None:
    words = ["build", "-t", "mine", "-f", "-", "--build-arg", "A", "--json", str(builds.context)]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "image", *words],
        input="FROM scratch\nARG A\nLABEL a=$A\nNOSUCH x\n",
        env=builds.env | {"A": "b"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "-:4: NOSUCH is no instruction" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "image", *words],
        input="FROM scratch\nARG A\nLABEL a=$A\n",
        env=builds.env | {"A": "b"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["name"] == "mine"
    assert builds.config()["Labels"] == {"a": "b"}
