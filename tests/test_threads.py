"""What is computed beside an engine leaves it its cores."""

import os
import sys
import threading

import pytest
import torch

from chatbot.threads import lower_priority, on_one_thread


def test_the_pool_of_threads_is_back_after_an_error_too() -> None:
    before = torch.get_num_threads()
    with pytest.raises(OSError, match="no disk"), on_one_thread():
        assert torch.get_num_threads() == 1
        raise OSError("no disk")
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own here")
def test_a_thread_that_gives_way_does_so_alone() -> None:
    seen: list[int] = []

    def work() -> None:
        lower_priority()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before, thread = os.getpriority(os.PRIO_PROCESS, 0), threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (seen, os.getpriority(os.PRIO_PROCESS, 0)) == ([19], before)
