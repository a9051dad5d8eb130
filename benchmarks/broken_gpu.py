"""A pytest plugin for runs on a GPU: an error that breaks the CUDA context ends the process it happened in.

Every call after such an error fails with it. Under pytest-xdist the next tests get a fresh process, and the report
names the test that broke this one.
"""

import os
import sys

import pytest
import torch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    result = yield
    if torch.cuda.is_initialized() and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(
                f"{item.nodeid} broke the GPU's context: {str(error).splitlines()[0]}", file=sys.__stderr__, flush=True
            )
            os._exit(70)
    return result
