import select
import threading

from tests.unit.ingest.fake import until

from agentd.daemon.calls.ends import Ends


def is_readable(fd):
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def test_all_that_run_are_told_and_those_that_come_later_are_not():
    ends = Ends()
    with ends.one() as first, ends.one() as second:
        assert ends.running() == 2
        assert not is_readable(first) and not is_readable(second)
        ends.end()
        ends.end()
        assert is_readable(first) and is_readable(second)
        with ends.one() as later:
            assert not is_readable(later)
    assert ends.running() == 0
    ends.end()


def test_many_threads_begin_and_end_while_they_are_ended():
    """No descriptor is written to that is somebody else's by now: the test counts them."""
    ends, stop = Ends(), threading.Event()

    def work():
        while not stop.is_set():
            with ends.one():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        ends.end()
    stop.set()
    for thread in threads:
        thread.join()
    until(lambda: ends.running() == 0)
