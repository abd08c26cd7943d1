"""Packages in one word: asked for by the command line and the SDK, without a daemon."""

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import rootfs
from tests.conftest import OrdinaryUser
from tests.index import NAME, Index, serving, tarball, wheel
from tests.integration.test_docs_network import _reaches
from tests.integration.test_guest_bundle import others

from agentd import AgentdError, InvalidInput, NotFound, Refused, Sandbox, SandboxError
from agentd.model.packages import packages_of

_PLACE = "/opt/agentd/packages"
_SAY = "import demo; print(demo.VERSION, demo.__file__)"


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with serving() as made:
        yield made


@pytest.fixture
def own(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for packages of ``index``, which has none yet."""
    index.files.clear()
    index.asked.clear()
    for name, value in index.configure(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, str]]:
    """The variables of an index with "demo" alone, and of a cache that everybody may enter."""
    with serving() as made, tempfile.TemporaryDirectory(prefix="agentd-packages-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  commands at the process level are nobody
        os.makedirs(f"{folder}/cache/agentd", 0o755)
        made.add("demo")
        yield made.configure(Path(folder))


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)


def said(*words: str) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fails(*words: str) -> str:
    done = run(*words)
    assert done.returncode in (2, 125), (done.returncode, done.stdout, done.stderr)
    return done.stderr.splitlines()[-1]


def sets(own: Path) -> list[Path]:
    return sorted(own.glob("cache/agentd/packages/sets/*/set.json"))


def test_what_is_asked_for_is_there_and_the_second_time_nobody_is_asked(
    index: Index, own: Path
) -> None:
    text = "import needed\nVERSION = needed.VERSION\ndef say(): print('hi')\n"
    scripts = {"demo-says": "demo:say"}
    index.add("demo", scripts=scripts, needs=["needed>=2"], files={"demo.py": text})
    index.add("needed", "1.0")
    index.add("needed", "2.1")
    assert said("--with", "demo", "--", "python3", "-c", _SAY) == f"2.1 {_PLACE}/demo.py"
    asked = len(index.asked)
    assert asked > 0
    assert said("--with", "Demo", "--", "demo-says") == "hi"
    assert len(index.asked) == asked, index.asked[asked:]
    (made,) = sets(own)
    locked = {each["name"]: each for each in json.loads(made.read_bytes())["packages"]}
    assert locked["needed"]["version"] == "2.1" and len(locked["demo"]["sha256"]) == 64
    # The programs of packages are compiled already: nothing could be written beside them.
    assert list(made.parent.glob("root/__pycache__/demo.*.pyc"))


def packages(*words: str) -> str:
    argv = [sys.executable, "-m", "agentd", "packages", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=280, check=True).stdout


def test_the_sdk_says_what_was_found_and_nothing_there_can_be_written(
    index: Index, own: Path
) -> None:
    index.add("demo", "1.0")
    index.add("demo", "2.0")
    with Sandbox.create(packages=["demo<2"], embedded=True, env={"PYTHONPATH": "/tmp"}) as sandbox:
        done = sandbox.run(["python3", "-c", _SAY], check=True)
        assert done.text.split() == ["1.0", f"{_PLACE}/demo.py"]
        told = sandbox.enforcement["packages"]
        assert told.asked == "demo<2" and told.enforced is True
        assert told.detail.startswith("demo==1.0 sha256:")
        assert sandbox.enforcement[f"mount {_PLACE}"].asked == "ro"
        for command in (f"echo > {_PLACE}/new", f"rm {_PLACE}/demo.py", f"chmod 777 {_PLACE}"):
            assert not sandbox.run(["sh", "-c", command]).ok


@pytest.mark.parametrize(
    ("asked", "because"),
    [
        ("source", "there is no wheel of source for CPython 3."),
        ("one,other", "cannot be had together"),
    ],
)
def test_what_cannot_be_had_is_named_with_what_pip_says(
    asked: str, because: str, index: Index, own: Path
) -> None:
    index.files["source-1.0.tar.gz"] = b"no wheel"
    index.add("one", needs=["demo<2"])
    index.add("other", needs=["demo>=2"])
    index.add("demo", "1.0")
    index.add("demo", "2.0")
    line = fails("--with", asked, "--", "true")
    assert because in line and len(line) < 1000, line
    assert not sets(own)


def test_an_index_that_does_not_answer_is_named(own: Path) -> None:
    config = own / "agentd.toml"
    config.write_text('[packages]\nindex = "https://nowhere.invalid/simple"\n')
    line = fails("--with", "demo", "--", "true")
    assert "the index nowhere.invalid does not give them" in line
    assert "set packages.index in the configuration" in line


@pytest.mark.parametrize(
    "text",
    ["-r file", "--index-url=https://a.example", "demo @ https://a.example/demo.whl", "./demo",
     "/etc", "demo; python_version<'3'", "demo===1", "a b", "demo\n-r", "demo==1 --hash=x", "",
     "--pre"],
)  # fmt: skip
def test_only_names_and_versions_can_be_asked_for(text: str) -> None:
    with pytest.raises(InvalidInput, match="package"):
        Sandbox.create(packages=[text], embedded=True)
    assert run("--with", text, "--", "true").returncode == 2


def test_one_request_has_one_spelling_and_a_bound() -> None:
    assert packages_of("Foo_Bar[z, A] >= 1 , < 2,numpy") == ("foo-bar[a,z]<2,>=1", "numpy")
    with pytest.raises(InvalidInput, match="more than 64"):
        packages_of([f"p{number}" for number in range(65)])
    with pytest.raises(InvalidInput, match="no list"):
        packages_of(7)  # type: ignore[arg-type]


def test_a_mount_does_not_hide_the_packages(own: Path) -> None:
    assert "in the way of the packages" in fails(
        "--with", "demo", "--mount", f"{own}:{_PLACE}/x", "--", "true"
    )


def test_killed_in_the_middle_nothing_is_taken_for_whole(index: Index, own: Path) -> None:
    index.add("demo")
    index.waiting.clear()
    index.wait.clear()
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "--with", "demo", "--", "true"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as begun:
        assert index.waiting.wait(120)
        os.kill(begun.pid, signal.SIGKILL)
    index.wait.set()
    assert not sets(own)
    assert said("--with", "demo", "--", "python3", "-c", _SAY) == f"1.0 {_PLACE}/demo.py"
    assert len(sets(own)) == 1
    assert not list((own / "cache/agentd/packages/work").iterdir())


def test_two_at_once_fetch_once(index: Index, own: Path) -> None:
    index.add("demo")
    texts: list[str] = []

    def one() -> None:
        texts.append(said("--with", "demo", "--", "python3", "-c", _SAY))

    index.waiting.clear()
    index.wait.clear()
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert index.waiting.wait(120)
    index.wait.set()
    for thread in threads:
        thread.join()
    assert texts == [f"1.0 {_PLACE}/demo.py"] * 2
    assert len(sets(own)) == 1
    assert index.asked.count("/simple/demo/") == 2  # once to find it, once to fetch it


def test_what_was_not_used_for_longest_goes_and_nothing_that_is_used(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = "x = '" + "a" * 700_000 + "'\nVERSION = 1\n"
    for name in ("demo", "second", "third"):
        index.add(name, files={f"{name}.py": half})
    monkeypatch.setenv("AGENTD_PACKAGES__SIZE", "2M")
    with Sandbox.create(packages=["demo"], embedded=True) as sandbox:
        for name in ("second", "third"):
            said("--with", name, "--", "true")
        names = {json.loads(made.read_bytes())["packages"][0]["name"] for made in sets(own)}
        assert names == {"demo", "third"}
        sandbox.run(["python3", "-c", "import demo"], check=True)
        shown = [line.split()[-1] for line in packages("ls").splitlines()[1:]]
        assert shown == ["third==1.0", "demo==1.0"]
        freed = json.loads(packages("prune", "--json"))["freed"]
        assert freed > 700_000
        (left,) = json.loads(packages("ls", "--json"))
        assert left["in_use"] is True and left["packages"][0]["name"] == "demo"
    assert packages("prune").endswith(" freed\n") and not sets(own)


def test_a_wheel_that_leads_elsewhere_is_refused(index: Index, own: Path) -> None:
    index.add("demo", files={"demo.py": "", "../../../../tmp/outside.py": "x = 1\n"})
    assert "packages" in fails("--with", "demo", "--", "true")
    assert not sets(own)


def test_a_wheel_that_becomes_another_between_both_runs_is_refused(index: Index, own: Path) -> None:
    """It would be kept, for others as well, under the digest of what was found first."""
    index.add("demo")
    (file,) = index.files
    first, asked = index.page, []

    def page(name: str) -> bytes | None:
        asked.append(name)
        if len(asked) > 1:
            index.files[file] = wheel("demo", files={"demo.py": "VERSION = 'another'\n"})
        return first(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "page", page)
        line = fails("--with", "demo", "--", "true")
    assert len(asked) == 2
    assert "demo" in line and "cannot be resolved" in line, line
    assert not sets(own)


@pytest.mark.parametrize("python", others()[:1] or ["none"])
def test_they_are_for_the_python_that_the_command_finds(
    python: str, index: Index, own: Path
) -> None:
    """Its tags, its markers, its version: whatever Python resolves."""
    if python == "none":
        pytest.skip("there is no other Python of pyenv, or in /usr/bin")
    folder = os.path.dirname(os.path.dirname(os.path.realpath(python)))
    version = subprocess.check_output(
        [python, "-c", "import sys; print('%d%d' % sys.version_info[:2])"], text=True
    ).strip()
    if folder == "/usr":
        pytest.skip(f"{python} is python3 by no PATH")
    index.add("demo", "2.0", tag="cp399-cp399-manylinux_2_17_x86_64")
    index.add("demo", "1.0", tag=f"cp{version}-cp{version}-linux_{platform.machine()}",
              needs=[f"marked; python_version == '{version[0]}.{version[1:]}'",
                     f"absent; python_version != '{version[0]}.{version[1:]}'"])  # fmt: skip
    text = "import sys\ndef main(): print('%d%d' % sys.version_info[:2])\n"
    index.add("marked", scripts={"marked": "marked:main"}, files={"marked.py": text})
    words = ["--mount", f"{folder}:{folder}", "-e", f"PATH={folder}/bin:/usr/bin:/bin"]
    assert said(*words, "--with", "demo", "--", "marked") == version
    python3 = [*words, "-e", "PYTHONPATH=/workspace", "--with", "demo", "--", "python3", "-c", _SAY]
    assert said(*python3) == f"1.0 {_PLACE}/demo.py"


def test_the_examples_of_the_page(index: Index, own: Path) -> None:
    index.add("numpy", files={"numpy.py": ""})
    index.add("pandas", "2.1", files={"pandas.py": "__version__ = '2.1'\n"}, needs=["numpy"])
    index.add("httpx", "0.28", needs=["h2; extra == 'http2'"])
    index.add("h2")
    index.add(
        "ruff", scripts={"ruff": "ruff:main"}, files={"ruff.py": "def main(): print('ruff 1')\n"}
    )
    page = (Path(__file__).parents[2] / "docs/packages.md").read_text()
    shell, python = (
        re.findall(rf"^```{kind}\n(.*?)^```", page, re.M | re.S) for kind in ("sh", "python")
    )
    lines = [shlex.split(line)[2:] for line in shell[0].splitlines()]
    assert [said(*words) for words in lines] == ["2.1", "ruff 1"]
    done = subprocess.run(
        [sys.executable, "-c", python[0]], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.stdout.startswith("numpy==1.0 sha256:"), done.stderr
    assert "; pandas==2.1 sha256:" in done.stdout


@pytest.mark.parametrize(
    "backend",
    [
        "landlock",
        "host",
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
    ],
)
def test_each_wall_that_can_has_them(
    backend: str, index: Index, shared: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    with Sandbox.create(packages=["demo"], backend=backend, embedded=True) as sandbox:
        found = sandbox.run(["python3", "-c", _SAY], check=True).text.split()
        at_its_own = f"{shared['XDG_CACHE_HOME']}/agentd/packages/sets/"
        assert found[0] == "1.0"
        assert found[1].startswith(at_its_own if backend in ("landlock", "host") else _PLACE)


@pytest.mark.parametrize(
    "backend",
    [
        "linux",
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
    ],
)
def test_a_fork_and_a_snapshot_have_the_same(
    backend: str,
    index: Index,
    shared: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in shared.items():
        monkeypatch.setenv(name, value)

    def check(copy: Sandbox) -> None:
        found = copy.run(["sh", "-c", f"cat a; python3 -c '{_SAY}'"], check=True).text.split()
        assert found[:2] == ["kept", "1.0"] and found[2].startswith(_PLACE)
        assert copy.enforcement["packages"].detail.startswith("demo==1.0 sha256:")
        assert copy.run(f"touch {_PLACE}/x").exit_code

    with Sandbox.create(packages=["demo"], backend=backend, embedded=True) as sandbox:
        sandbox.run("echo kept > a", check=True)
        for copy in sandbox.fork(2):
            with copy:
                check(copy)
                for again in copy.fork(1):
                    with again:
                        check(again)
        kept = sandbox.snapshot(path=str(tmp_path / "kept"))
        sandbox.run("head -c 40M /dev/zero > large", check=True)  # shared from here on
        for copy in sandbox.fork(1):
            with copy:
                check(copy)
                assert copy.run("stat -c %s large", check=True).text == f"{40 << 20}\n"
    with Sandbox.create(snapshot=kept.path, embedded=True) as copy:
        check(copy)
    _refuses_what_is_gone_or_forged(kept.path, monkeypatch, tmp_path)


def _refuses_what_is_gone_or_forged(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = Path(path) / "manifest.json"
    said = json.loads(manifest.read_text())
    [mount] = said["spec"]["mounts"]
    mount["source"] = "/etc"  # of no meaning: the digest says where
    manifest.write_text(json.dumps(said))
    with Sandbox.create(snapshot=path, embedded=True) as copy:
        assert copy.run(["ls", f"{_PLACE}/demo.py"]).exit_code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(NotFound, match=f"the packages {mount['packages']} are not in"):
        Sandbox.create(snapshot=path, embedded=True)
    for forged in ({"packages": ""}, {"packages": "sha256:../../x"}, {"target": "/usr"}):
        said["spec"]["mounts"] = [mount | forged]
        manifest.write_text(json.dumps(said))
        with pytest.raises(SandboxError, match="asks for host directories"):
            Sandbox.create(snapshot=path, embedded=True)


@pytest.mark.needs("skopeo", "umoci")
def test_an_images_python_has_them_behind_its_wall(
    index: Index, shared: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    with Sandbox.create(packages=["demo"], image=rootfs.pulled("python"), embedded=True) as sandbox:
        done = sandbox.run(["python3", "-c", _SAY], check=True)
        assert done.text.split() == ["1.0", f"{_PLACE}/demo.py"]
        # An image would be without them.
        with pytest.raises(Refused, match="packages are mounted in it"):
            sandbox.commit("without")
        with sandbox.snapshot() as kept, pytest.raises(Refused, match="a sandbox with packages"):
            kept.export(f"oci-archive:{tmp_path}/without.tar")  # type: ignore[attr-defined]
        with sandbox.fork(1)[0] as copy:
            assert copy.run(["python3", "-c", _SAY], check=True).text == done.text
    busybox = rootfs.pulled("busybox")
    with pytest.raises(Refused, match="no Python in the sandbox"):
        Sandbox.create(packages=["demo"], image=busybox, embedded=True)


_FACTS = {
    "executable": "/usr/bin/python3",
    "soabi": "cpython-313-x86_64-linux-gnu",
    "platform": "linux-x86_64",
    "libc": "glibc",
    "libc_version": "2.41",
    "implementation_name": "cpython",
    "implementation_version": "3.13.5",
    "python_full_version": "3.13.5",
    "platform_machine": "x86_64",
}


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("executable", "/usr/bin/python3\n#!/bin/sh"),
        ("executable", "--index-url=http://elsewhere.example"),
        ("python_full_version", "3.13.5 --pre"),
        ("soabi", "pypy311-pp73-x86_64-linux-gnu"),
        ("platform", "linux-x86_64,any"),
        ("libc", "bionic"),
        ("libc_version", "2.1000000"),
        ("platform_machine", "x86_64' or os_name == 'posix"),
        ("", "no JSON"),
    ],
)
def test_a_python_that_lies_of_what_it_is_chooses_nothing_but_tags(
    fact: str, value: str, index: Index, own: Path
) -> None:
    (own / "bin").mkdir()
    told = json.dumps({**_FACTS, fact: value}) if fact else value
    (own / "bin/python3").write_text(f"#!/bin/sh\ncat <<'END'\n{told}\nEND\n")
    (own / "bin/python3").chmod(0o755)
    with pytest.raises(AgentdError, match=r"sandbox's Python|does not say what it is"):
        Sandbox.create(packages=["demo"], env={"PATH": f"{own}/bin:/usr/bin:/bin"},
                       mounts=[f"{own}:{own}"], embedded=True)  # fmt: skip
    assert not index.asked and not sets(own)


def test_an_ordinary_user_has_them(index: Index, own: Path, as_user: OrdinaryUser) -> None:
    index.add("demo")
    as_user.env |= index.configure(as_user.home)
    done = as_user.agentd("run", "--with", "demo", "--", "python3", "-c", _SAY)
    assert done.stdout.decode().strip() == f"1.0 {_PLACE}/demo.py", done.stderr


_BUILDS = """
import urllib.request
def prepare_metadata_for_build_wheel(*_):
    urllib.request.urlopen("http://{host}:{port}/ran")
get_requires_for_build_wheel = lambda *_: []
build_wheel = prepare_metadata_for_build_wheel
"""


def demo_needs_evil(index: Index, kind: str = "sdist") -> str:
    """Have demo need another package by its address, which asks the index for /ran where it is
    built; return the name of its file."""
    file = "evil-1.0.tar.gz" if kind == "sdist" else "evil-1.0-py3-none-any.whl"
    index.files[file] = wheel("evil")
    if kind == "sdist":
        index.files[file] = tarball(
            {
                "evil-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
                "evil-1.0/pyproject.toml": "[build-system]\nrequires = []\n"
                'build-backend = "backend"\nbackend-path = ["."]\n',
                "evil-1.0/backend.py": _BUILDS.format(host=NAME, port=index.port),
            }
        )
    index.add("demo", needs=[f"evil @ http://{NAME}:{index.port}/files/{file}"])
    return file


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_a_wheel_that_needs_another_by_its_address_is_refused_and_nothing_of_that_runs(
    kind: str, index: Index, own: Path
) -> None:
    """What ran there could have other packages than these kept under the digest of theirs."""
    demo_needs_evil(index, kind)
    line = fails("--with", "demo", "--", "true")
    assert "/ran" not in index.asked
    assert "evil" in line, line
    assert not sets(own)


def test_compiled_packages_of_pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not _reaches("pypi.org", 443):
        pytest.skip("PyPI is not reached")
    config = tmp_path / "agentd.toml"
    config.write_text("")
    monkeypatch.setenv("AGENTD_CONFIG", str(config))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = "import markupsafe._speedups as c, six; print(c.__file__, six.__version__)"
    where, version = said("--with", "markupsafe,six", "--", "python3", "-c", program).split()
    assert where.startswith(f"{_PLACE}/markupsafe/_speedups.cpython-3") and version
