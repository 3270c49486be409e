"""Processes of the tests, forked from a server that has imported torch and the packages once.

    process = forked(function, argument)        # function(argument) in a process with one thread; pickled by name

Imports are most of the time of a launch in the tests. The server computes nothing, so a fork of it is as clean as a
new interpreter. Its environment is that of the first call.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any
from unittest import mock

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["executor.command", "executor.launch.agent", "executor.sharding", "longvila.train"])
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def forked(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """The started process; `exitcode` is -N after signal N."""
    process = _SERVER.Process(target=function, args=arguments)
    with mock.patch.dict(os.environ, _ENVIRONMENT):
        process.start()
    return process
