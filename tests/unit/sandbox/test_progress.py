import threading

import pytest

from agentd.sandbox import progress


def test_a_listener_hears_what_is_done_in_its_block():
    heard = []
    progress.report("before")
    with progress.listening(lambda *said: heard.append(said)):
        progress.report("building", 0.5)
        progress.report_steps("packing", 1, 4)
        progress.report_steps("packing", 1, 0)
    progress.report("after")
    assert heard == [("building", 0.5), ("packing", 0.25), ("packing", None)]


def test_the_inner_listener_hears_and_the_outer_one_again():
    outer, inner = [], []
    with progress.listening(lambda stage, _: outer.append(stage)):
        with progress.listening(lambda stage, _: inner.append(stage)):
            progress.report("a")
        with progress.listening(None):
            progress.report("b")
        progress.report("c")
    assert (outer, inner) == (["c"], ["a"])


def test_another_threads_work_is_not_heard():
    heard = []
    with progress.listening(lambda stage, _: heard.append(stage)):
        thread = threading.Thread(target=lambda: progress.report("elsewhere"))
        thread.start()
        thread.join()
        progress.report("here")
    assert heard == ["here"]


def test_a_listener_may_give_the_work_up():
    def stop(stage, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress.listening(stop):
        progress.report("building")
