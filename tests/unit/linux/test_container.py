"""Which container this is, by what its engine leaves in it, and what its options are called."""

from pathlib import Path

import pytest

from agentd.linux import container


@pytest.mark.parametrize(
    ("env", "file", "name"),
    [
        ({}, ".dockerenv", "docker"),
        ({}, "run/.containerenv", "podman"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "run/.containerenv", "kubernetes"),
        ({"container": "podman"}, "", "podman"),
        ({"container": "lxc"}, "", "container"),
        ({}, "run/systemd/container", "container"),
        ({}, "", ""),
    ],
)
def test_the_engine(env: dict[str, str], file: str, name: str, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert container.engine(env, f"{tmp_path}/") == name


def test_docker_without_its_mark_is_told_by_its_root(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    line = "701 650 0:55 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X:Y\n"
    (tmp_path / "proc/self/mountinfo").write_text(line)
    assert container.engine({}, f"{tmp_path}/") == "container"
    assert not container.masked(f"{tmp_path}/")
    masked = "702 701 0:56 / /proc/kcore rw - tmpfs tmpfs rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(line + masked)
    assert container.masked(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("engine", "fix"),
    [
        (
            "docker",
            "docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined",
        ),
        ("podman", "podman run --security-opt seccomp=unconfined --security-opt unmask=ALL"),
    ],
)
def test_all_options_are_one_command(engine: str, fix: str) -> None:
    assert container.fix("seccomp", "proc", of=engine) == fix


def test_kubernetes_has_fields() -> None:
    assert "procMount: Unmasked" in container.fix("proc", of="kubernetes")
    assert "seccompProfile" in container.fix("seccomp", of="kubernetes")


def test_an_engine_that_is_not_known_is_told_what_is_meant() -> None:
    assert container.fix("proc", of="container") == container.fix("proc", of="")
