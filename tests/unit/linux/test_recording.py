import errno

import pytest

from agentd.linux.recording import RecordingKernel


def test_calls_are_recorded_and_answered_from_the_script() -> None:
    kernel = RecordingKernel({"prctl": [7, OSError(errno.EPERM, "no")]})
    assert kernel.prctl(1, 2) == 7
    with pytest.raises(PermissionError):
        kernel.prctl(3)
    assert kernel.prctl(4) == 0
    kernel.umount("/x", 2)
    assert kernel.names() == ["prctl", "prctl", "prctl", "umount2"]
    assert kernel.calls[-1] == ("umount2", (b"/x", 2))
