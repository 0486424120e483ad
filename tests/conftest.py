"""A failed test may leave a thread that waits for ever; the whole run must end all the same, and say where it waits."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading

import pytest


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    own = {threading.main_thread(), threading.current_thread()}
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread not in own]
    if left:
        sys.stderr.write(f"\nthreads that would keep this process for ever: {', '.join(left)}\n")
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)
