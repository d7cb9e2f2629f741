"""Undo what a child inherits from the shell that started the runner.

A shell that starts a command in the background makes it ignore SIGINT and SIGQUIT, and that is inherited
through every exec. Python then installs no KeyboardInterrupt handler, and tests of interrupts wait for ever.
"""

from __future__ import annotations

import signal


def restore_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
