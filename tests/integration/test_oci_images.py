"""OCI images by the command line: pulled from what is on disk, kept, checked, removed."""

import errno
import gzip
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.oci import ARCHITECTURE, Images, Layout, device, file, folder, layer, link

from agentd.image.model import ImageError
from agentd.image.oci import tools

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
_CAPABILITY = "\x01\0\0\x02\0\x04\0\0" + "\0" * 12  # cap_net_bind_service


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


SMALL = layer(folder("bin"), file("bin/tool", b"#!/bin/sh\n", 0o755))


def _content(root: Path) -> dict[str, str]:
    """Each path of a tree, with its kind and its content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def test_an_image_is_pulled_listed_looked_at_checked_and_removed(
    images: Images, layout: Layout
) -> None:
    source = layout.add([SMALL], {"Cmd": ["/bin/tool"], "Env": ["A=b"], "WorkingDir": "/srv"})
    pulled = images.run("pull", source, "--name", "mine")
    name, digest = pulled.stdout.split()
    assert name == "mine" and digest.startswith("sha256:")
    assert "agentd image: fetching" in pulled.stderr and "unpacking 1 layer" in pulled.stderr
    (row,) = images.told("ls")
    assert (row["name"], row["kind"], row["digest"], row["state"]) == (
        *("mine", "oci", digest), "ready",
    )  # fmt: skip
    assert source in images.run("ls").stdout
    whole = images.told("inspect", "mine", "--verify")
    assert whole["config"]["Cmd"] == ["/bin/tool"] and whole["config"]["WorkingDir"] == "/srv"
    assert whole["verified"] and whole["platform"] == f"linux/{ARCHITECTURE}"
    assert "env      A=b" in images.run("inspect", "mine").stdout
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]
    some = images.run("rm", "none", "mine", "mine", "--json", code=125)
    assert json.loads(some.stdout) == {"removed": ["mine"]}
    assert images.told("ls") == [] and images.left() == []
    store = images.cache / "agentd/oci"
    assert os.listdir(store / "blobs/sha256") == os.listdir(store / "roots") == []
    for action in ("inspect", "rm"):
        said = images.run(action, "mine", code=125).stderr
        assert "no image 'mine' in" in said and "nor a machine image in" in said


def test_however_layers_are_packed_the_root_is_one(images: Images, layout: Layout) -> None:
    for packed in ("gzip", "zstd", ""):
        source = layout.add([SMALL], packed=packed, tag=packed or "plain")
        images.run("pull", source, "--name", f"by-{packed or 'plain'}")
    names = ("by-gzip", "by-plain", "by-zstd")
    assert [row["name"] for row in images.told("ls")] == list(names)
    assert len({images.root(name) for name in names}) == 1
    assert len({row["digest"] for row in images.told("ls")}) == 3
    images.run("rm", "by-gzip", "by-plain")
    assert images.told("verify") == [{"name": "by-zstd", "state": "ready"}]


@pytest.mark.parametrize("packed", ["gzip in parts", "zstd in parts", "zstd of a stream"])
def test_a_layer_that_does_not_say_how_large_it_is_is_unpacked_all_the_same(
    images: Images, layout: Layout, packed: str
) -> None:
    layers = [layer(file("first", b"1")), SMALL, layer(file("last", b"3"))]
    images.run("pull", layout.add(layers, packed=packed, tag="odd"), "--name", "odd")
    images.run("pull", layout.add(layers, tag="usual"), "--name", "usual")
    assert images.root("odd") == images.root("usual")  # by the archives' digests
    assert {"first", "bin/tool", "last"} <= _content(images.root("odd")).keys()
    assert {row["state"] for row in images.told("verify")} == {"ready"}
    assert images.left() == []


def test_a_file_system_without_pipes_does(
    images: Images, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None that there is here has links, owners and no pipes: the call fails as it does there."""

    def refused(path: str, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(os, "mkfifo", refused)
    images.run("pull", layout.add([SMALL]), "--name", "x")
    assert "bin/tool" in _content(images.root("x"))


def test_one_layer_may_be_there_twice(images: Images, layout: Layout) -> None:
    other = layer(file("bin/tool", b"other"))
    images.run("pull", layout.add([SMALL, other, SMALL]), "--name", "x")
    assert _content(images.root("x"))["bin/tool"] == "#!/bin/sh\n"


def test_zstd_is_unpacked_where_it_comes_first(images: Images, layout: Layout) -> None:
    images.run("pull", layout.add([SMALL, layer(file("b", b"2"))], packed="zstd"), "--name", "z")
    assert _content(images.root("z"))["b"] == "2"


def test_layers_lie_on_each_other_as_the_specification_has_it(
    images: Images, layout: Layout
) -> None:
    below = layer(
        *(folder("kept"), file("kept/a", b"a"), file("gone", b"g"), file("changed", b"1")),
        *(folder("opaque"), file("opaque/old", b"o"), folder("away"), file("away/x", b"x")),
        *(file("one", b"linked"), link("two", "one", hard=True), link("to", "/kept/a")),
    )
    above = layer(
        *(file(".wh.gone"), file("changed", b"2"), file("opaque/.wh..wh..opq")),
        *(file("opaque/new", b"n"), file(".wh.away"), file("kept/b", b"b")),
    )
    images.run("pull", layout.add([below, above]), "--name", "x")
    root = images.root("x")
    assert _content(root) == {
        "changed": "2", "kept": "/", "kept/a": "a", "kept/b": "b", "one": "linked",
        "opaque": "/", "opaque/new": "n", "to": "-> /kept/a", "two": "linked",
    }  # fmt: skip
    assert os.path.samefile(root / "one", root / "two")


def test_owners_devices_and_what_gives_rights_do_not_come_to_the_host(
    images: Images, layout: Layout
) -> None:
    """All files are of one owner, whose programs give nobody anything; the store is shut."""
    source = layer(
        file("su", b"s", 0o4755), file("shadow", b"h", 0o600, uid=5, gid=42), device("sda"),
        file("cap", b"c", 0o755, pax_headers={"SCHILY.xattr.security.capability": _CAPABILITY}),
        folder("closed", 0), file("closed/in", b"i", 0),
    )  # fmt: skip
    images.run("pull", layout.add([source]), "--name", "x")
    root = images.root("x")
    assert (root / "sda").is_file()
    assert len({path.lstat().st_uid for path in root.iterdir()}) == 1
    owner = (root / "su").stat().st_uid
    assert owner != 0
    if os.geteuid() == 0:  # nobody's other processes could trace what unpacks
        assert owner not in [entry.pw_uid for entry in pwd.getpwall()]
    assert "security.capability" not in os.listxattr(root / "cap")
    assert (images.cache / "agentd/oci").stat().st_mode & 0o777 == 0o700
    assert images.told("verify") == [{"name": "x", "state": "ready"}]
    images.run("rm", "x")


def test_sixty_layers(images: Images, layout: Layout) -> None:
    layers = [layer(file("last", str(n).encode()), file(f"f{n}", b"x")) for n in range(60)]
    images.run("pull", layout.add(layers), "--name", "x")
    root = images.root("x")
    assert len(os.listdir(root)) == 61 and (root / "last").read_text() == "59"


def test_an_image_without_layers_is_an_empty_root(images: Images, layout: Layout) -> None:
    images.run("pull", layout.add([]), "--name", "scratch")
    assert os.listdir(images.root("scratch")) == []


def test_of_many_platforms_this_machines_is_taken(images: Images, layout: Layout) -> None:
    by_name = {"s390x": b"other", ARCHITECTURE: b"ours", "riscv64": b"another"}
    many = {name: [layer(file("which", text))] for name, text in by_name.items()}
    images.run("pull", layout.add_index(many, "all"), "--name", "x")
    assert (images.root("x") / "which").read_text() == "ours"
    del many[ARCHITECTURE]
    said = images.run("pull", layout.add_index(many, "none"), "--name", "y", code=125).stderr
    assert "no image found in image index for architecture" in said
    assert (
        f"{layout.path}:none has no image for this machine, which is linux/{ARCHITECTURE}" in said
    )
    assert "by digest, as skopeo inspect --raw lists them" in said


def test_an_index_of_indexes_is_told(images: Images, layout: Layout) -> None:
    inner = layout.index({ARCHITECTURE: [SMALL]})
    layout.tag(layout.index_of([inner]), "nested")
    said = images.run("pull", f"oci:{layout.path}:nested", "--name", "x", code=125).stderr
    assert f"{layout.path}:nested is an index of indexes" in said


def test_of_another_platform_it_is_remarked_as_it_is_pulled(images: Images, layout: Layout) -> None:
    layout.tag(layout.image([SMALL], None, architecture="s390x"), "other")
    words = ("pull", f"oci:{layout.path}:other", "--name", "x")
    own = f"linux/{ARCHITECTURE}"
    note = f"note: it is linux/s390x, and this machine {own}, on which its programs may not run\n"
    assert note in images.run(*words).stderr
    assert "note:" not in images.run("pull", layout.add([SMALL]), "--name", "y").stderr


def test_docker_archive_and_oci_archive(images: Images, layout: Layout, tmp_path: Path) -> None:
    source = layout.add([SMALL, layer(file("b", b"2"))], {"Cmd": ["/bin/tool"]})
    for transport, tag in (("docker-archive", ":me/tool:1"), ("oci-archive", "")):
        archive = tmp_path / f"{transport}.tar"
        copy = ["skopeo", "--insecure-policy", "copy", source, f"{transport}:{archive}{tag}"]
        subprocess.run(copy, check=True, capture_output=True, timeout=60)
        (other,) = {"docker-archive", "oci-archive"} - {transport}
        done = images.run("pull", f"{other}:{archive}", code=2)
        assert f"(pull {transport}:{archive})" in done.stderr
        if transport == "docker-archive":  # as docker save | gzip
            archive.write_bytes(gzip.compress(archive.read_bytes()))
        archive.chmod(0o600)
        images.run("pull", f"{transport}:{archive}")
        whole = images.told("inspect", transport)
        assert whole["config"]["Cmd"] == ["/bin/tool"]
        assert _content(Path(whole["root"])) == {"b": "2", "bin": "/", "bin/tool": "#!/bin/sh\n"}


def test_a_root_file_system_becomes_an_image(images: Images, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name").write_text("mine")
    (root / "out").symlink_to("/etc/passwd")
    os.link(root / "etc/name", root / "same")
    os.mkfifo(root / "fifo")
    images.run("pull", f"dir:{root}")
    made = images.root("rootfs")
    assert (made / "etc/name").read_text() == "mine" and os.readlink(made / "out") == "/etc/passwd"
    assert os.path.samefile(made / "same", made / "etc/name") and (made / "fifo").is_fifo()
    digest = images.told("ls")[0]["digest"]
    assert images.told("pull", f"dir:{root}", "--name", "again")["digest"] == digest


HOSTILE = [
    [file("../evil", b"e")],
    [file("../../../../../../mnt/work/evil", b"e")],
    [file("/mnt/work/evil", b"e")],
    [link("out", "../.."), file("out/evil", b"e")],
    [link("out", "/mnt/work"), file("out/evil", b"e")],
    [link("a", "b"), link("b", "c"), link("c", "/mnt/work"), file("a/evil", b"e")],
    [folder("d"), link("d/up", ".."), link("d/e", "up/.."), file("d/e/evil", b"e")],
    [link("taken", "/etc/passwd", hard=True)],
    [link("taken", "../../../etc/passwd", hard=True)],
    [link("s", "/etc/passwd"), link("taken", "s", hard=True), file("taken", b"e")],
    [link("out", "/mnt/work"), file("out/.wh.root")],
    [link("out", ".."), file("out/.wh..wh..opq")],
    [file(".wh..")],
    [file(".wh...")],
    [link(".", "/etc")],
    [link("/", "/mnt/work"), file("evil", b"e")],
]


def test_a_hostile_layer_writes_nowhere_else(
    images: Images, layout: Layout, tmp_path: Path
) -> None:
    """It is refused, or what it names lies in its own root; the host's files are what they were."""
    passwd = Path("/etc/passwd").read_bytes()
    images.run("pull", layout.add([SMALL], tag="good"), "--name", "good")
    for number, entries in enumerate(HOSTILE):
        source = layout.add([SMALL, layer(*entries)], tag=f"evil{number}")
        # Whether it is refused is umoci's to say.
        done = images.run("pull", source, "--name", f"evil{number}", code=None)
        assert done.returncode in (0, 125), (entries, done)
    assert sorted(os.listdir(tmp_path)) == ["cache", "layout"]
    assert Path("/etc/passwd").read_bytes() == passwd
    for root in (images.cache / "agentd/oci/roots").iterdir():
        if root.is_dir():
            assert sorted(os.listdir(root)) == ["root", "root.json"]
            taken = root / "root/taken"
            assert not os.path.lexists(taken) or taken.is_symlink() or taken.stat().st_size < 10
    assert {row["state"] for row in images.told("verify")} == {"ready"}
    assert images.left() == []


def test_a_layer_that_is_not_the_one_told_of_is_refused(images: Images, layout: Layout) -> None:
    """Whoever could have another's layers taken for theirs could change everybody's root."""
    theirs = f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
    for packed in ("gzip", "zstd", ""):
        one = Layout(layout.path.parent / f"layout-{packed}")
        source = one.add([layer(file("evil"))], packed=packed, diff_ids=[theirs])
        images.run("pull", source, "--name", "evil", code=125)
    images.run("pull", layout.add([SMALL], tag="good"), "--name", "good")
    assert (images.root("good") / "bin/tool").exists()
    assert [row["name"] for row in images.told("ls")] == ["good"] and images.left() == []


def test_damage_is_found_and_another_pull_mends_it(images: Images, layout: Layout) -> None:
    source = layout.add([SMALL])
    images.run("pull", source, "--name", "x")
    tool = images.root("x") / "bin/tool"
    tool.chmod(0o644)
    assert "is not what was unpacked" in images.told("verify", code=1)[0]["state"]
    images.run("pull", source, "--name", "x")
    assert images.told("verify", "x") == [{"name": "x", "state": "ready"}]
    blobs = images.cache / "agentd/oci/blobs/sha256"
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(b"damaged")
    for done in (
        images.run("verify", code=1).stdout,
        images.run("inspect", "x", "--verify", code=125).stderr,
    ):
        assert "the image 'x' is damaged: " in done and "(pull or build it again, as x)" in done
    images.run("pull", source, "--name", "x")
    assert "is what was pulled" in images.run("verify").stdout


def test_many_processes_pull_remove_and_prune_at_once(images: Images, layout: Layout) -> None:
    shared = layer(file("shared", b"s" * 100_000))
    for n in range(3):
        layout.add([shared, layer(file(f"own{n}", b"x"))], tag=f"t{n}")
    same = layout.add([shared], tag="same")
    words = [["pull", same, "--name", f"same{n}"] for n in range(3)]
    words += [["pull", f"oci:{layout.path}:t{n}", "--name", f"own{n}"] for n in range(3)]
    words += [["prune"], ["prune"]]
    started = [images.start(*each) for each in words]
    for each, process in zip(words, started, strict=True):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, (each, out, err)
    assert len({images.root(f"same{n}") for n in range(3)}) == 1
    states = {row["name"]: row["state"] for row in images.told("verify")}
    assert states == {f"{kind}{n}": "ready" for kind in ("same", "own") for n in range(3)}
    images.run("rm", *states)
    assert os.listdir(images.cache / "agentd/oci/blobs/sha256") == []


@pytest.mark.parametrize("at", ["fetching", "copying blob", "verifying", "unpacking", "publishing"])
def test_killed_at_any_step_a_pull_leaves_a_store_that_verifies(
    at: str, images: Images, layout: Layout
) -> None:
    images.run("pull", layout.add([SMALL], tag="first"), "--name", "first")
    source = layout.add([layer(file("big", os.urandom(4 << 20)))], tag="big")
    process = images.start("pull", source, "--name", "big")
    assert process.stderr is not None
    for line in process.stderr:
        if at in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    states = {row["name"]: row["state"] for row in images.told("verify")}
    assert states["first"] == "ready" and set(states.values()) == {"ready"}
    images.run("prune")
    assert images.left() == []
    images.run("pull", source, "--name", "big")
    assert images.told("verify", "big") == [{"name": "big", "state": "ready"}]


@pytest.fixture
def short_of_room(tmp_path: Path) -> Iterator[None]:
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(cache)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield
    subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("short_of_room")
@pytest.mark.parametrize("mebibytes", [5, 9])
def test_where_the_disk_is_full_nothing_is_left_of_it(
    mebibytes: int, images: Images, layout: Layout
) -> None:
    """The larger one does not fit once, the other not once more, unpacked."""
    images.run("pull", layout.add([SMALL], tag="first"), "--name", "first")
    source = layout.add([layer(file("big", os.urandom(mebibytes << 20)))], tag="big")
    said = images.run("pull", source, "--name", "big", code=125).stderr
    assert "there is no room for the image in " in said and "agentd image prune" in said
    assert images.told("verify") == [{"name": "first", "state": "ready"}]
    assert images.left() == [] and shutil.disk_usage(images.cache).used < 1 << 20


def test_no_name_is_another_images_digest(images: Images, layout: Layout) -> None:
    digest = f"sha256:{'0' * 64}"
    err = images.run("pull", layout.add([SMALL]), "--name", digest, code=2).stderr
    assert f"{digest!r} is a digest, which means the image that has it" in err


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("nosuch", 2, "use one of: docker://"),
        ("oci:nosuch:tag", 2, "/nosuch does not exist"),
        ("oci:/etc/passwd", 2, "is not a directory, an OCI layout"),
        ("docker-archive:/etc", 2, "is not a file"),
        ("docker-archive:/etc/passwd", 125, "/etc/passwd is no archive of an image"),
        ("oci-archive:/etc/passwd", 125, "/etc/passwd is no archive of an image"),
        ("oci:/etc", 125, "/etc is no OCI layout"),
        ("dir:/etc/passwd", 2, "is no directory"),
        ("oci:layout:nosuch", 125, "/layout has no image of that tag"),
        ("127.0.0.1:1/a:1", 2, "use one of: docker://127.0.0.1:1/a:1, oci:"),
        ("docker://Not A Name", 2, "is no reference of a registry"),
        ("docker://127.0.0.1:1/Mine:1", 2, "with NAME in lower case"),
        ("docker://127.0.0.1:1/a:1:", 2, "is no reference of a registry"),
        ("docker://localhost:65536/a:1", 2, "has the port '65536' (give a number from 1"),
        ("docker://localhost:0/a:1", 2, "has the port '0' (give a number from 1"),
        ("dir:/", 2, "is no name for an image"),
    ],
)
def test_what_cannot_be_pulled_is_said(
    source: str, code: int, said: str, images: Images, layout: Layout
) -> None:
    layout.add([SMALL])
    err = images.run("pull", source, code=code).stderr
    assert said in err and "Traceback" not in err
    # What a program logs is told without its time and level, and by the host's names.
    assert "level=" not in err and "/dev/archive" not in err


@pytest.mark.parametrize(
    "config",
    [{"WorkingDir": "/a\0b"}, {"WorkingDir": f"/{'n' * 256}"}, {"WorkingDir": "/a" * 2048},
     {"Env": ["A=b\0c"]}, {"Cmd": ["a\0"]}, {"User": "\0"}],
    ids=["NUL", "name", "length", "Env", "Cmd", "User"],
)  # fmt: skip
def test_what_no_command_can_be_given_is_refused(
    images: Images, layout: Layout, config: dict[str, object]
) -> None:
    refused = images.run("pull", layout.add([SMALL], config), code=125).stderr
    assert "the image's configuration has a NUL byte" in refused or "longer than a path" in refused
    assert images.told("ls") == [] and images.left() == []


def test_a_name_means_one_kind_of_image(images: Images, layout: Layout, tmp_path: Path) -> None:
    source = layout.add([SMALL])
    assert "means no image" in images.run("pull", source, "--name", "default", code=2).stderr
    images.run("pull", source, "--name", "mine")
    built = images.run("build", "--name", "mine", "--kernel", "x", code=125)
    assert "mine is an OCI image already" in built.stderr


@pytest.mark.parametrize("name", ["mine", "mine:latest", "localhost:5000/a/mine:latest"])
def test_a_name_is_the_same_with_the_tag_latest_and_without(
    name: str, images: Images, layout: Layout, tmp_path: Path
) -> None:
    bare = name.removesuffix(":latest")
    (other,) = {bare, f"{bare}:latest"} - {name}
    first, second = layout.add([SMALL], tag="1"), layout.add([SMALL], {"User": "5"}, tag="2")
    images.run("pull", first, "--name", name)
    (tmp_path / "Dockerfile").write_text(f"FROM {other}\nENV A=b\n")
    images.run("build", "-t", "of-it:latest", str(tmp_path))
    assert images.told("inspect", other)["config"]["User"] == ""
    assert images.told("verify", other) == [{"name": name, "state": "ready"}]
    images.run("push", other, f"oci:{tmp_path}/pushed:x")
    machine = ("build", "--name", "of-it", "--kernel", "x")
    assert "of-it is an OCI image already" in images.run(*machine, code=125).stderr
    images.run("pull", second, "--name", other)
    assert {row["name"] for row in images.told("ls")} == {other, "of-it:latest"}
    for each in (name, other):
        assert images.told("inspect", each)["config"]["User"] == "5"
    images.run("rm", name)
    assert {row["name"] for row in images.told("ls")} == {"of-it:latest"}
    assert "no image" in images.run("inspect", f"{bare}:1", code=125).stderr


def test_without_the_program_its_package_is_named(images: Images, layout: Layout) -> None:
    script = (
        "from agentd.image.oci import tools; tools._PATH = '/nosuch'\n"
        "from agentd.client.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    words = ["image", "pull", layout.add([SMALL]), "--name", "x"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=images.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    for told in ("skopeo is not installed", "apt-get install skopeo", "dnf", "pacman"):
        assert told in done.stderr


def test_a_program_that_a_signal_ends_is_told_as_shells_tell_it(tmp_path: Path) -> None:
    fault = "import ctypes; ctypes.string_at(0)"
    with pytest.raises(ImageError, match=r"python3 failed \(exit code 139\)"):
        tools.run(["python3", "-c", fault], work=str(tmp_path), seconds=100)
