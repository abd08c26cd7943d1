"""Dockerfiles that other builders build become the same here, or are refused by their line."""

import io
import re
import tarfile
from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser
from tests.integration.test_image_build import Builds, builds, on_base, said
from tests.oci import Layout, busybox, file, folder

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
__all__ = ["builds", "on_base"]  # fixtures


def test_a_stage_has_the_arguments_of_the_stage_that_it_is_from(builds: Builds) -> None:
    text = (
        "FROM scratch AS one\nARG A=1 B=2\nFROM one AS two\nARG B=3\n"
        "FROM two\nENV SEEN=$A$B\nFROM two\nENV SEEN=$A$B\nFROM scratch\nENV SEEN=none$A\n"
    )
    for target, seen in (("3", "13"), ("4", "none"), ("2", "13")):
        builds.build(text, "--target", target)
        assert builds.config()["Env"] == [f"SEEN={seen}"]
    builds.build(text, "--target", "3", "--build-arg", "A=x")
    assert builds.config()["Env"] == ["SEEN=x3"]


USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("ENV PATH=/opt/bin:$PATH", f"PATH=/opt/bin:{USUAL}"),
        ("ENV PATH=/bin\nENV PATH=/x:$PATH", "PATH=/x:/bin"),
        ("ENV A\tb  c", "A=b  c"),
        ("ENV A \t b", "A=b"),
    ],
)
def test_what_variables_are_without_being_given(text: str, env: str, builds: Builds) -> None:
    builds.build(f"FROM scratch\n{text}\n")
    assert builds.config()["Env"] == [env]


def test_a_stage_that_a_variable_names_is_counted(on_base: Builds) -> None:
    text = "FROM base AS one\nLABEL a=b\nFROM one AS two\nENV C=d\nRUN echo x > /x\n"
    text += "FROM scratch\nARG S=two\nCOPY --from=$S /x /x\n"
    for _ in range(2):
        done = on_base.build(text)
        told = [(int(a), int(b)) for a, b in re.findall(r"\[(\d+)/(\d+)\]", done.stderr)]
        assert all(step <= total for step, total in told), told
        assert told[-1] == (8, 8)


def test_triggers_of_a_base_are_not_dropped_in_silence(builds: Builds, tmp_path: Path) -> None:
    base = Layout(tmp_path / "layout").add([busybox()], {"OnBuild": ["COPY . /app", "RUN make"]})
    builds.run("pull", base, "--name", "base")
    done = builds.build("FROM scratch\nFROM base\nENV A=b\n", code=2)
    assert "Dockerfile:2: FROM base" in done.stderr and "COPY . /app" in done.stderr
    builds.build("FROM scratch\nCOPY --from=base / /\n")
    builds.run("pull", Layout(tmp_path / "none").add([busybox()], {"OnBuild": []}), "--name", "n")
    builds.build("FROM n\nENV A=b\n")


def test_a_working_directory_is_its_users(on_base: Builds) -> None:
    on_base.build("FROM base\nUSER node\nWORKDIR /srv/app\n")
    files = on_base.files()
    assert {name: (each.uid, each.gid) for name, each in files.items()} == {
        "srv": (77, 78), "srv/app": (77, 78),
    }  # fmt: skip
    again = on_base.built("FROM base\nUSER 5:staff\nWORKDIR /srv/app\n")
    assert again["cached"] == 0 and on_base.files()["srv/app"].gid == 50
    assert on_base.built("FROM base\nUSER 5:staff\nWORKDIR /srv/app\n")["cached"] == 1
    on_base.build("FROM base\nUSER nosuch\nWORKDIR /srv/app\n")
    assert on_base.files()["srv/app"].uid == 0


def test_a_pattern_may_fit_nothing_beside_what_does(builds: Builds) -> None:
    (builds.context / "package.json").write_text("{}")
    builds.build("FROM scratch\nCOPY package.json yarn.lock* pnpm*.yaml ./\n")
    assert list(builds.files()) == ["package.json"]
    builds.build("FROM scratch\nCOPY yarn.lock* <<EOF /x/\na\nEOF\n")
    assert list(builds.files()) == ["x", "x/EOF"]
    done = builds.build("FROM scratch\nCOPY no* nor* /\n", code=2)
    assert "COPY: nothing in the context fits no* nor*" in done.stderr
    done = builds.build("FROM scratch\nCOPY package.json yarn.lock /\n", code=2)
    assert "yarn.lock is not in the context" in done.stderr


def test_files_of_a_stage_keep_their_owners(builds: Builds, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    own = folder("own", uid=77, gid=78), file("own/a", b"a", uid=77, gid=5), file("own/r", b"r")
    builds.run("pull", layout.add([busybox(*own)]), "--name", "base")
    for source in ("base", "of"):
        builds.build(f"FROM base AS of\nFROM scratch\nCOPY --from={source} /own /own/a /to/\n")
        found = {name: (each.uid, each.gid) for name, each in builds.files().items()}
        assert found == {"to": (0, 0), "to/a": (77, 5), "to/r": (0, 0)}
    builds.build("FROM scratch\nCOPY --from=base / /\n")
    assert (builds.files()["own"].uid, builds.files()["own"].gid) == (77, 78)
    builds.build("FROM scratch\nCOPY --from=base --chown=3 /own /to/\n")
    assert {each.uid for each in builds.files().values()} == {3}
    (builds.context / "mine").write_text("")
    builds.build("FROM scratch\nCOPY mine /\n")
    assert builds.files()["mine"].uid == 0


def test_a_number_of_a_stage_of_any_length(builds: Builds) -> None:
    done = builds.build(f"FROM scratch\nCOPY --from={'9' * 5000} /a /b\n", code=None)
    assert "agentd image: Dockerfile:2: COPY --from=999" in done.stderr
    assert "Traceback" not in done.stderr and "(" in done.stderr
    done = builds.build("FROM scratch\nENV A=b\n", "--target", "9" * 5000, code=2)
    assert "use one of: 0" in done.stderr
    builds.build("FROM scratch AS a\nEXPOSE 80/TCP\n", "--target", "0")


def test_a_closed_folder_is_named_with_the_line(as_user: OrdinaryUser) -> None:
    context = as_user.home / "context"
    (context / "closed").mkdir(parents=True)
    (context / "closed").chmod(0o700)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY closed /x\n")
    done = as_user.agentd("image", "build", "-t", "mine", str(context))
    assert b"Dockerfile:2: COPY: closed cannot be read: Permission denied" in done.stderr


@pytest.mark.parametrize("where", ["path", "linkpath"])
def test_a_name_in_an_archive_that_no_file_can_have(where: str, on_base: Builds) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("dir/name")
        info.type = tarfile.SYMTYPE if where == "linkpath" else tarfile.REGTYPE
        info.pax_headers = {where: "d\0r/n\0me"}
        archive.addfile(info)
    (on_base.context / "a.tar").write_bytes(out.getvalue())
    for base in ("base", "scratch"):
        done = on_base.build(f"FROM {base}\nADD a.tar /x/\n", code=2)
        assert "Dockerfile:2: ADD: a.tar cannot be unpacked: " in done.stderr


def test_building_again_mends_what_was_damaged(on_base: Builds) -> None:
    text = "FROM base\nRUN echo x > /x\nCOPY Dockerfile /d\n"
    on_base.build(text)
    for number in range(3):  # what is built anew has other times, and is another then
        path = (on_base.root("mine") / "x", *blobs(on_base))[number]
        path.chmod(0o644)
        path.write_bytes(b"y" * path.stat().st_size)
        assert on_base.told("verify", "mine", code=1)[0]["state"] != "ready"
        on_base.build(text)
        assert on_base.told("verify", "mine") == [{"name": "mine", "state": "ready"}]
        assert said("mine", "cat /x") == "x\n"


def blobs(builds: Builds) -> list[Path]:
    """The layers that were built."""
    folder = builds.cache / "agentd/oci/blobs/sha256"
    layers = builds.told("inspect", "mine")["layers"][1:]
    return [folder / each["digest"].removeprefix("sha256:") for each in layers]


def test_a_directory_with_a_name_that_layers_mean_something_by(builds: Builds) -> None:
    root = builds.folder / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin/a").write_text("a")
    (root / "bin/.wh.a").write_text("")
    done = builds.run("pull", f"dir:{root}", "--name", "tree", code=None)
    assert done.returncode == 125 and "'bin/.wh.a' cannot be in an image" in done.stderr


def test_a_run_finds_its_machine_by_its_own_name(on_base: Builds) -> None:
    """As programs do that tell others where they are, or wait for an answer of a resolver."""
    text = "FROM base\nRUN name=$(busybox hostname) && busybox grep -w $name /etc/hosts\n"
    assert "127.0.1.1" in on_base.build(text).stderr
