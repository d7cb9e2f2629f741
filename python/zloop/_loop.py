"""The event loop class: the native base in front of asyncio's own selector loop.

What happens once per loop, per connection or per failure is here; what happens per callback or per
packet is in `_engine`. The methods with a leading underscore are called by the engine or override
a hook of asyncio's, see `_hooks`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import selectors
import socket
import sys
import traceback
import types
from asyncio import base_events, constants, format_helpers, selector_events, trsock
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from . import _engine, _fork, _pipes, _resolver, _running, _sending, _sockets, _subprocess, _tls

if TYPE_CHECKING:
    import ssl

    from typing_extensions import TypeVarTuple, Unpack

    _Args = TypeVarTuple("_Args")


#: Newer ones may differ, see `_hooks.adapt`.
NEWEST_TESTED = (3, 15)


@functools.cache
def _adapt_once() -> None:
    from . import _hooks

    _hooks.adapt()


class Loop(
    _running.Running, _sockets.SocketMethods, _resolver.Resolving, _engine.Loop, asyncio.SelectorEventLoop
):
    """An asyncio event loop on zloop's engine: a complete `asyncio.AbstractEventLoop`.

    *selector* is accepted for the sake of programs that pass one to `asyncio.SelectorEventLoop`; it
    is closed with the loop and not used otherwise.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        if sys.version_info[:2] > NEWEST_TESTED:
            _adapt_once()
        super().__init__(selector if selector is not None else _Watched(self))
        _fork.loops.add(self)
        self._tls_engine: str | None = None
        # As the selectors see it that asyncio uses.
        select = selector_events.selectors.select.select
        if not isinstance(select, types.BuiltinFunctionType):
            self._select = select
        try:
            self._send_at_once = _sending.wanted() == "now"
            self._tls_wanted = _tls.wanted()
            if self._tls_wanted == "native":
                _ = self.tls_engine
        except (RuntimeError, ValueError):
            self.close()
            raise

    # Life cycle.

    def close(self) -> None:
        """asyncio.loop.close(): drops what is queued; transports still open are abandoned."""
        if self._is_forked():
            # Whoever runs it runs it in the parent.
            self._thread_id = None
        super().close()
        self._close_resolver()
        self._release()

    # Sending, see `_sending`.

    @property
    def send_at_once(self) -> bool:
        """Whether `write()` gives its bytes to the kernel before it returns, as in asyncio.

        False by default: answers wait for the end of the turn. The environment variable ZLOOP_SEND (`turn`,
        `now`) decides when the loop is made. It can be set at any time and holds for all transports.
        """
        return self._send_at_once

    @send_at_once.setter
    def send_at_once(self, enabled: bool) -> None:
        self._send_at_once = enabled
        if enabled:
            self._send_waiting()

    def _show_socket(self, sock: socket.socket, transport: Any) -> trsock.TransportSocket:
        return _sending.TransportSocket(sock, transport)

    # TLS, see `_tls`.

    @property
    def tls_engine(self) -> str:
        """What TLS connections run on: `native`, OpenSSL driven directly, or `asyncio`, its sslproto.

        The environment variable ZLOOP_TLS (`auto`, `native`, `asyncio`) decides when the loop is made; `auto`
        takes the first wherever it can run.
        """
        if self._tls_engine is None:
            self._tls_engine = _tls.choose(self, self._tls_wanted)
            self._tls_native = self._tls_engine == "native"
        return self._tls_engine

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: Any,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Transport:
        timeouts = {
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        return _tls.make_transport(
            self,
            rawsock,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            extra,
            server,
            timeouts,
            context,
        )

    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport | None:
        """asyncio.loop.start_tls(): upgrades a transport; the protocol uses the new one from then on."""
        timeouts = {
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        if not _tls.accepts(transport, sslcontext):
            # Raises: asyncio has the words for it.
            return await super().start_tls(transport, protocol, sslcontext)
        return await _tls.start(self, transport, protocol, sslcontext, server_side, server_hostname, timeouts)

    # The engine wakes itself; only signal handlers need a pipe, made with the first of them.

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None
        # asyncio counts its pipe here; the engine's own wake-up stands in for it.
        self._internal_fds += 1

    def _close_self_pipe(self) -> None:
        if self._csock is None:
            self._internal_fds -= 1
        else:
            _fork.wakeup_fds.discard(self._csock.fileno())
            super()._close_self_pipe()

    def add_signal_handler(
        self, sig: int, callback: Callable[[Unpack[_Args]], Any], *args: Unpack[_Args]
    ) -> None:
        """asyncio.loop.add_signal_handler(), Unix only, in the main thread."""
        if self._csock is None and not self.is_closed():
            super()._make_self_pipe()  # type: ignore[misc]
            self._internal_fds -= 1
            _fork.wakeup_fds.add(self._csock.fileno())
        super().add_signal_handler(sig, callback, *args)

    def _add_callback_signalsafe(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            self.call_soon(handle._run)

    # Reports, called by the engine with exceptions that callbacks raised.

    def _callback_failed(self, handle: asyncio.Handle, exc: BaseException) -> None:
        context = {
            "message": f"Exception in callback {_describe(handle)}",
            "exception": exc,
            "handle": handle,
        }
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def _method_failed(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        exc: BaseException,
        context: contextvars.Context | None,
    ) -> None:
        self._callback_failed(asyncio.Handle(method, args, self, context), exc)

    def _slow_callback(self, what: Any, duration: float) -> None:
        if duration >= self.slow_callback_duration:
            text = base_events._format_handle(what) if isinstance(what, asyncio.Handle) else what
            base_events.logger.warning("Executing %s took %.3f seconds", text, duration)

    def _extract_stack(self) -> Any:
        caller = sys._getframe().f_back
        # A thread that is not Python's own can call without a frame.
        return traceback.StackSummary() if caller is None else format_helpers.extract_stack(caller)

    # Pipes.

    _pipe_modes: _pipes.Modes | None = None

    def _make_read_pipe_transport(
        self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None
    ) -> asyncio.ReadTransport:
        return _pipes.make_reading(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None
    ) -> asyncio.WriteTransport:
        return _pipes.make_writing(self, pipe, protocol, waiter, extra)

    def _restore_mode(self, pipe: Any) -> None:
        modes = self._pipe_modes
        assert modes is not None, "made when the first mode was taken"
        modes.give_back(pipe)

    # Child processes.

    async def _make_subprocess_transport(
        self,
        protocol: Any,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> asyncio.SubprocessTransport:
        return await _subprocess.make_transport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
        )

    # Accepting, where the engine needs asyncio's help.

    def _accept_failed(self, exc: OSError, serving_args: tuple[Any, ...], out_of_resources: bool) -> None:
        sock = serving_args[1]
        message = "socket.accept() out of system resource" if out_of_resources else "socket.accept() failed"
        self.call_exception_handler(
            {"message": message, "exception": exc, "socket": trsock.TransportSocket(sock)}
        )
        if out_of_resources:
            self.call_later(constants.ACCEPT_RETRY_DELAY, self._serve_again, serving_args)

    def _serve_again(self, serving_args: tuple[Any, ...]) -> None:
        if serving_args[1].fileno() >= 0:
            self._start_serving(*serving_args)

    def _start_serving(
        self, protocol_factory: Any, sock: Any, sslcontext: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if sslcontext is not None:
            # From here on the listener knows the engine.
            _ = self.tls_engine
        super()._start_serving(protocol_factory, sock, sslcontext, *args, **kwargs)

    def _accept_tls(self, fd: int, serving_args: tuple[Any, ...], context: contextvars.Context) -> None:
        # Called in *context*, the new connection's own.
        protocol_factory, _, sslcontext, server, _, *timeouts = serving_args[:7]
        conn = socket.socket(fileno=fd)
        conn.setblocking(False)
        names = ("ssl_handshake_timeout", "ssl_shutdown_timeout")
        given: dict[str, Any] = {name: value for name, value in zip(names, timeouts) if value is not None}
        try:
            extra = {"peername": conn.getpeername()}
        except OSError:
            conn.close()
            return
        options: dict[str, Any] = {}
        if sys.version_info >= (3, 15):  # pragma: >=3.15 cover
            given["context"] = options["context"] = context
        accept = self._accept_connection2(protocol_factory, conn, extra, sslcontext, server, **given)
        self.create_task(accept, **options)

    def _connection_failed(self, exc: BaseException) -> None:
        self.call_exception_handler(
            {"message": "Error on transport creation for incoming connection", "exception": exc}
        )


def _describe(handle: asyncio.Handle) -> str:
    return format_helpers._format_callback_source(handle._callback, handle._args)


_QUEUED = (selectors.SelectorKey(-1, -1, 0, None), 0)


class _Watched(selectors.BaseSelector):
    """What stands where asyncio keeps its selector: tells what the engine watches, changes nothing.

    A program that puts a function in the place of `select` (looptime) has it called for each turn, as on
    asyncio's loop.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self._loop._polls_by_selector = "select" in vars(self)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._loop._polls_by_selector = "select" in vars(self)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise RuntimeError("zloop watches descriptors itself: use loop.add_reader() or add_writer()")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise RuntimeError("zloop watches descriptors itself: use loop.remove_reader() or remove_writer()")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Polls once and queues what is ready: one entry for each callback, none of which says which."""
        return [_QUEUED] * self._loop._poll(timeout)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        events = self._loop._watched_events(fd)
        if not events:
            raise KeyError(f"{fileobj!r} is not registered")
        return selectors.SelectorKey(fileobj, fd, events, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


def new_event_loop() -> Loop:
    """A new loop, for `loop_factory=` and for programs that run and close a loop by hand."""
    return Loop()


def run(main: Coroutine[Any, Any, Any], *, debug: bool | None = None) -> Any:
    """asyncio.run() on a new zloop loop, on every supported Python version."""
    if asyncio._get_running_loop() is not None:
        # Before a loop is made that could not be ended in an orderly way.
        main.close()
        raise RuntimeError("zloop.run() cannot be called from a running event loop")
    if sys.version_info >= (3, 11):  # pragma: >=3.11 cover
        with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
            return runner.run(main)
    return _run_without_runner(main, debug)  # pragma: <3.11 cover


def _run_without_runner(main: Coroutine[Any, Any, Any], debug: bool | None) -> Any:  # pragma: <3.11 cover
    if not asyncio.iscoroutine(main):
        raise ValueError(f"a coroutine was expected, got {main!r}")
    loop = new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        if debug is not None:
            loop.set_debug(debug)
        return loop.run_until_complete(main)
    finally:
        try:
            asyncio.runners._cancel_all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
