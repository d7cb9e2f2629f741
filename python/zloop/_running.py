"""`run_forever` and `run_until_complete`, also inside a callback of the loop's own.

asyncio refuses that, and so does zloop, until nest_asyncio or nest_asyncio2 has been applied. On asyncio's
loops those replace the methods of the class. Loops that have `_nest_patched` they leave alone: here runs
nest without their help, in the way that a loop patched by them does it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from asyncio import base_events, events, futures, tasks
from typing import Any

from . import _engine

# By this name, and not by super(): the packages change asyncio's selector loop, which lies between.
_Unpatched: Any = base_events.BaseEventLoop


class Running(_engine.Loop):
    _nest_patched = True

    _depth = 0
    """How many runs of this loop are on the stack."""

    _ended: frozenset[int] = frozenset()
    """The runs below the innermost one whose futures are done: they stop when it is their turn again."""

    def _may_nest(self) -> bool:
        return (
            events._get_running_loop() is not None
            and hasattr(asyncio, "_nest_patched")
            and self._thread_id in (None, threading.get_ident())
        )

    def _check_running(self) -> None:
        if not self._may_nest():
            _Unpatched._check_running(self)

    def run_forever(self) -> None:
        """asyncio.loop.run_forever()."""
        if self._may_nest():
            self._run_nested()
            return
        # Before the run is counted: a refused second run must not end the first.
        self._check_usable()
        self._check_running()
        self._depth = 1
        try:
            if sys.version_info >= (3, 13):  # pragma: >=3.13 cover
                self._run_forever_setup()
                try:
                    self._run_once()
                finally:
                    self._run_forever_cleanup()
            else:  # pragma: <3.13 cover
                _Unpatched.run_forever(self)
        finally:
            self._depth = 0
            self._ended = frozenset()

    def run_until_complete(self, future: Any) -> Any:
        """asyncio.loop.run_until_complete()."""
        # Before a task is made of a coroutine, which would be left behind.
        self._check_usable()
        self._check_running()
        is_new = not futures.isfuture(future)
        future = tasks.ensure_future(future, loop=self)
        if is_new:
            # Its exception is raised here, so there is nothing to log.
            future._log_destroy_pending = False
        done = _Done(self, self._depth + 1)
        future.add_done_callback(done)
        try:
            self.run_forever()
        except BaseException:
            if is_new and future.done() and not future.cancelled():
                # The task raised what ends the run: it counts as retrieved.
                future.exception()
            raise
        finally:
            future.remove_done_callback(done)
            done.depth = 0
        if not future.done():
            if self._depth:
                # Inside of nest_asyncio's run_until_complete(), stop() ends the run around it, too.
                self.stop()
            raise RuntimeError("Event loop stopped before Future completed.")
        return future.result()

    def _end_run(self, depth: int) -> None:
        if depth == self._depth:
            self.stop()
        else:
            self._ended |= {depth}

    def _run_nested(self) -> None:
        self._check_usable()
        around = events._get_running_loop()
        assert around is not None, "_may_nest() has seen it"
        is_first = self._thread_id is None
        stopping = self._stopping
        hooks = sys.get_asyncgen_hooks()
        task = _swap_current_task(around, None)
        self._depth += 1
        if is_first:
            self._set_coroutine_origin_tracking(self._debug)
        self._thread_id = threading.get_ident()
        self._stopping = False
        sys.set_asyncgen_hooks(self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(around)
            sys.set_asyncgen_hooks(*hooks)
            self._ended -= {self._depth}
            self._depth -= 1
            self._stopping = stopping or self._depth in self._ended
            if is_first:
                self._thread_id = None
                self._stopping = False
                self._set_coroutine_origin_tracking(False)
            _swap_current_task(around, task)


class _Done:
    """Called when the future of a run is done."""

    def __init__(self, loop: Running, depth: int) -> None:
        self._loop = loop
        self.depth = depth
        """Of the run; 0 when that is over: the call can come in a later one, which it must not end."""

    def __call__(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and isinstance(future.exception(), (SystemExit, KeyboardInterrupt)):
            # It has left the run already.
            return
        if self.depth:
            self._loop._end_run(self.depth)


def _swap_current_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> Any:
    """Makes *task* the running loop's current one; what was it before."""
    if sys.version_info >= (3, 12):  # pragma: >=3.12 cover
        if task is None and tasks.current_task(loop) is None:
            # The function in Python, which nest_asyncio puts in the place of the one in C, fails then.
            return None
        return tasks._swap_current_task(loop, task)
    else:  # pragma: <3.12 cover  # noqa: RET505 (a block for each version)
        before = tasks._current_tasks.pop(loop, None)
        if task is not None:
            tasks._current_tasks[loop] = task
        return before
