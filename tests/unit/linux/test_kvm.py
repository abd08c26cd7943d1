"""A KVM made of a fake ioctl: what each of the kernel's answers is turned into."""

import errno
import os
import struct
import time

import pytest

from agentd.linux import kvm, kvm_guest

PAGE = 4096
IO_DATA = 0x100  # where in the page the fake puts what a guest wrote to a port
OK = [(kvm._EXIT_IO, number) for number, _ in kvm_guest.MARKS] + [(kvm._EXIT_HLT, 0)]


class Fake:
    """Answers as the kernel would; ``exits`` are what each KVM_RUN ends with."""

    def __init__(self, exits=(), fails=None, version=12):
        self.exits, self.fails, self.version = list(exits), fails or {}, version
        self.vcpu = -1
        self.ran = 0

    def __call__(self, fd, request, *args):
        if request in self.fails:
            raise OSError(self.fails[request], "no")
        if request == kvm._GET_API_VERSION:
            return self.version
        if request == kvm._GET_VCPU_MMAP_SIZE:
            return PAGE
        if request == kvm._CREATE_VM:
            return os.open("/dev/null", os.O_RDWR)
        if request == kvm._CREATE_VCPU:
            self.vcpu = os.memfd_create("vcpu")
            os.truncate(self.vcpu, PAGE)
            return self.vcpu
        if request == kvm._RUN:
            self.run()
        return 0

    def run(self):
        reason, value = self.exits[self.ran]
        self.ran += 1
        os.pwrite(self.vcpu, struct.pack("=I", reason), kvm._EXIT_REASON)
        if reason == kvm._EXIT_IO:
            os.pwrite(self.vcpu, struct.pack("=Q", IO_DATA), kvm._IO_DATA_OFFSET)
            os.pwrite(self.vcpu, bytes([value]), IO_DATA)
        else:
            os.pwrite(self.vcpu, value or b"", kvm._EXIT)


def attempt(fake, machine="x86_64"):
    return kvm.attempt("/dev/null", fake, machine)


def test_a_guest_that_does_all_its_steps_and_halts_is_a_working_kvm():
    fake = Fake([*OK[:-1], (kvm._EXIT_HLT, None)])
    assert attempt(fake) == kvm.KvmReport(True, detail="ran a guest in long mode until it halted")
    assert fake.ran == len(OK)


def emulation_failure(code):
    return struct.pack("=IIQB", 1, 8, 1, len(code)) + code


@pytest.mark.parametrize(
    ("exits", "words"),
    [
        ([(8, None)], "writes to a port: exit reason 8, a triple fault"),
        (
            [OK[0], (9, struct.pack("=Q", 0x80000021))],
            "page tables: exit reason 9, the CPU refused",
        ),
        ([OK[0], OK[0]], "page tables: exit reason 2, another answer than the one expected"),
        (
            [*OK[:3], (17, emulation_failure(b"\x66\x0f\xef\xc0\x90"))],
            "KVM emulates instead of running, and does not know the code 66 0f ef c0",
        ),
        ([*OK[:3], (17, struct.pack("=I", 3))], "exit reason 17, internal error 3"),
        ([*OK[:5], (8, None)], "takes an exception: exit reason 8"),
        ([*OK[:-1], (6, None)], "halts: exit reason 6, no known meaning"),
    ],
)
def test_the_exit_that_ended_it_is_the_blocker(exits, words):
    report = attempt(Fake(exits))
    assert not report.usable
    assert words in report.what
    assert "nested" in report.fix


@pytest.mark.parametrize(
    ("request_", "code", "what", "fix"),
    [
        (kvm._CREATE_VM, errno.EBUSY, "create a vm: device or resource busy", "other hypervisor"),
        (kvm._CREATE_VM, errno.ENODEV, "create a vm", "virtualis"),
        (kvm._GET_API_VERSION, errno.ENOTTY, "api version", "modprobe kvm"),
        (kvm._CREATE_VCPU, errno.EINVAL, "create a vcpu: invalid argument", "nested"),
        (kvm._RUN, errno.EFAULT, "run a guest that writes to a port: bad address", "nested"),
        (kvm._CREATE_VM, errno.EPERM, "not permitted", "usermod -aG kvm"),
    ],
)
def test_a_refused_call_is_named_with_what_mends_it(request_, code, what, fix):
    report = attempt(Fake(OK, {request_: code}))
    assert not report.usable
    assert what in report.what.lower()
    assert fix in report.fix or "modprobe" in report.fix


def test_another_api_version_is_refused():
    assert "API version 11" in attempt(Fake(version=11)).what


def test_a_foreign_machine_gets_a_vcpu_and_no_more():
    fake = Fake()
    report = attempt(fake, "aarch64")
    assert report.usable
    assert fake.ran == 0
    assert "aarch64 code was not run" in report.detail


def test_no_device_and_no_permission(tmp_path, as_user):
    assert kvm.probe(str(tmp_path / "kvm")).what.endswith("kvm does not exist")
    device = as_user.home / "device"
    device.touch()
    device.chmod(0o600)
    report = as_user.call(lambda: kvm.probe(str(device)))
    if as_user.is_other:
        assert report.what == f"uid 65534 may not open {device}"
        assert "usermod -aG kvm" in report.fix


def test_a_device_of_another_kind_is_not_kvms():
    report = kvm.probe("/dev/null")
    assert not report.usable
    assert "ioctl" in report.what
    assert "modprobe kvm" in report.fix


def test_a_guest_without_an_end_is_ended_at_the_deadline():
    report = kvm.in_child(lambda: time.sleep(600), 0.2)
    assert not report.usable
    assert "for 0.2 s without an end" in report.what


def test_a_child_that_dies_and_one_that_raises_are_told_apart():
    assert kvm.in_child(lambda: os._exit(3), 120).what == "the probe died"
    assert "by zero" in kvm.in_child(lambda: 1 // 0, 120).what


def test_this_machines_answer_is_the_same_twice_and_leaves_nothing_open():
    report = kvm.probe()
    assert kvm.probe() == report
    assert report.usable == (report.what == "")
    assert bool(report.fix) != report.usable
