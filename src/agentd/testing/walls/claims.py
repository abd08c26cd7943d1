"""What a wall says of itself, by which the suite knows what to hold it to."""

from collections.abc import Callable

import pytest

from agentd import Refused, Sandbox

#: Controls that put a kernel of the wall's own between a command and the host's.
OWN_KERNEL = ("virtual_machine", "userspace_kernel")
#: Controls by which files of the host are out of reach.
FILES = ("mount_namespace", "landlock", *OWN_KERNEL)


def reports(sandbox: Sandbox, *controls: str) -> bool:
    """Whether its wall reports any of these controls as enforced."""
    found = (sandbox.enforcement.get(name) for name in controls)
    return any(control is not None and control.enforced for control in found)


def claimed(sandbox: Sandbox, *controls: str) -> None:
    """Skip a case of what none of these controls is reported to hold, by its name and reason."""
    if reports(sandbox, *controls):
        return
    said = [sandbox.enforcement[name].detail for name in controls if name in sandbox.enforcement]
    why = "; ".join(said) or "it is not in the report"
    pytest.skip(
        f"{sandbox.info.backend} does not report {' or '.join(controls)} as enforced: {why}"
    )


def needs(sandbox: Sandbox, *programs: str) -> None:
    """Skip a case that takes programs which are not behind this wall: an image need have none."""
    for program in programs:
        if sandbox.run(f"command -v {program}").exit_code:
            image = sandbox.enforcement.get("image")
            where = f"the image {image.asked} on {sandbox.info.backend}" if image else "it"
            pytest.skip(f"it needs {program} inside, and {where} has none")


def own_kernel(sandbox: Sandbox) -> bool:
    """Whether the host's kernel sees nothing of what runs behind its wall."""
    return reports(sandbox, *OWN_KERNEL)


def granted(make: Callable[..., Sandbox], **wanted: object) -> Sandbox:
    """Make a sandbox; skip, by the wall's own reason, where it refuses what was asked for."""
    try:
        return make(**wanted)
    except Refused as refusal:
        assert refusal.remediation, f"a refusal that says no way out: {refusal}"
        pytest.skip(f"refused, as it must where it cannot hold: {refusal}")
