"""Which TLS engine a loop uses, and how a connection gets it.

The direct engine is `_engine.SSLTransport`: a stdlib SSLObject whose OpenSSL is driven natively. Where it
cannot run, and for what it does not serve, TLS is asyncio's own sslproto over zloop's transports. Programs
see the same behaviour either way; `Loop.tls_engine` says which one it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio import constants, sslproto
from asyncio.streams import StreamReaderProtocol
from typing import TYPE_CHECKING, Any

from . import _engine, _sockets

try:
    import ssl
except ImportError:  # A Python built without OpenSSL; asyncio raises when TLS is asked for.
    ssl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import contextvars
    import socket

    from ._loop import Loop

VARIABLE = "ZLOOP_TLS"
_CHOICES = ("auto", "native", "asyncio")

_HANDSHAKE_TIMEOUT_S = constants.SSL_HANDSHAKE_TIMEOUT
_SHUTDOWN_TIMEOUT_S = getattr(constants, "SSL_SHUTDOWN_TIMEOUT", 30.0)
_HAS_SHUTDOWN_TIMEOUT = hasattr(constants, "SSL_SHUTDOWN_TIMEOUT")
"""CPython 3.10 has an older SSLProtocol, without shutdown timeout and BIO attributes."""


def wanted() -> str:
    """What the environment asks for, read once per loop."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in _CHOICES:
        raise ValueError(f"{VARIABLE} is {choice!r}; it can be {', '.join(_CHOICES)}")
    return choice


def choose(loop: Loop, choice: str) -> str:
    """The engine's name, `native` or `asyncio`; RuntimeError if the one that is demanded cannot run."""
    if choice == "asyncio":
        return "asyncio"
    reason = loop._tls_unavailable()
    if reason is None:
        return "native"
    if choice == "native":
        raise RuntimeError(f"{VARIABLE} demands the direct TLS engine, which cannot run here: {reason}")
    return "asyncio"


def make_transport(
    loop: Loop,
    rawsock: socket.socket,
    protocol: Any,
    sslcontext: Any,
    waiter: asyncio.Future[None] | None,
    server_side: bool,
    server_hostname: str | None,
    extra: dict[str, Any] | None,
    server: Any,
    timeouts: dict[str, float | None],
    context: contextvars.Context | None,
) -> asyncio.Transport:
    """What asyncio's `_make_ssl_transport` does, on the loop's engine."""
    if not sslcontext:
        sslcontext = sslproto._create_transport_context(server_side, server_hostname)
    options: dict[str, Any] = {"extra": extra, "server": server}
    if sys.version_info >= (3, 15):  # pragma: >=3.15 cover
        options["context"] = context
    upper = None
    if not _sockets.has_own_methods(rawsock):
        upper = _direct(loop, protocol, sslcontext, waiter, server_side, server_hostname, timeouts)
    if upper is not None:
        loop._make_socket_transport(rawsock, upper, **options)
        return upper
    ssl_protocol = _ssl_protocol(loop, protocol, sslcontext, waiter, server_side, server_hostname, timeouts)
    stream = loop._make_socket_transport(rawsock, ssl_protocol, **options)
    _let_nothing_wait(stream)
    transport: asyncio.Transport = ssl_protocol._app_transport
    return transport


def accepts(transport: Any, sslcontext: Any) -> bool:
    """Whether asyncio's `start_tls` would go on with these."""
    is_context = ssl is not None and isinstance(sslcontext, ssl.SSLContext)
    return is_context and bool(getattr(transport, "_start_tls_compatible", False))


async def start(
    loop: Loop,
    transport: Any,
    protocol: Any,
    sslcontext: ssl.SSLContext,
    server_side: bool,
    server_hostname: str | None,
    timeouts: dict[str, float | None],
) -> asyncio.Transport | None:
    """`loop.start_tls()` for arguments that asyncio accepts."""
    waiter = loop.create_future()
    # A protocol that was told to pause waits to hear that it may go on; now the new transport says so.
    paused = getattr(transport, "_protocol_paused", False) and transport.get_protocol() is protocol
    below: Any = None
    if type(transport) is _engine.StreamTransport:
        below = _direct(
            loop,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            timeouts,
            started=True,
            paused=paused,
        )
    upper = below
    if below is None:
        below = _ssl_protocol(
            loop,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            timeouts,
            call_connection_made=False,
        )
        upper = below._app_transport
        _let_nothing_wait(transport)
        if paused and _HAS_SHUTDOWN_TIMEOUT:  # pragma: >=3.11 cover
            below.pause_writing()
            below._app_writing_paused = True
    transport.pause_reading()
    early = _take_early_bytes(protocol) if server_side else b""
    if early and upper is below:
        upper.data_received(early)
    elif early and _HAS_SHUTDOWN_TIMEOUT:  # pragma: >=3.11 cover
        below._incoming.write(early)
    transport.set_protocol(below)
    made = loop.call_soon(below.connection_made, transport)
    if early and upper is not below and not _HAS_SHUTDOWN_TIMEOUT:  # pragma: <3.11 cover
        loop.call_soon(below.data_received, early)
    resumed = loop.call_soon(transport.resume_reading)
    try:
        await waiter
    except BaseException:
        transport.close()
        made.cancel()
        resumed.cancel()
        raise
    finally:
        # The exception in it has a traceback that leads back here.
        del waiter
    if upper is not below:
        return below._app_transport
    # A transport that was closed before has nothing to upgrade, and asyncio returns nothing.
    return upper if upper.get_extra_info("ssl_object") is not None else None


def _let_nothing_wait(transport: Any) -> None:
    """asyncio's TLS hands down nothing of what makes a transport send: `drain()`, the size of the buffer."""
    if isinstance(transport, (_engine.StreamTransport, _engine.SSLTransport)):
        transport.set_send_at_once(True)


def _take_early_bytes(protocol: Any) -> bytes:
    """What the peer sent behind the last plain message and asyncio's reader holds: its ClientHello."""
    if not isinstance(protocol, StreamReaderProtocol):
        return b""
    reader = getattr(protocol, "_stream_reader", None)
    if reader is None or not reader._buffer:
        return b""
    early = bytes(reader._buffer)
    reader._buffer.clear()
    return early


def _direct(
    loop: Loop,
    protocol: Any,
    sslcontext: Any,
    waiter: asyncio.Future[None] | None,
    server_side: bool,
    server_hostname: str | None,
    timeouts: dict[str, float | None],
    *,
    started: bool = False,
    paused: bool = False,
) -> Any:
    """A SSLTransport, or None if the loop or the context wants asyncio's sslproto."""
    if loop.tls_engine != "native":
        return None
    return loop._make_tls_transport(
        protocol,
        sslcontext,
        waiter,
        server_side,
        (server_hostname or None) if not server_side else None,
        not started,
        paused,
        _checked("ssl_handshake_timeout", timeouts.get("ssl_handshake_timeout"), _HANDSHAKE_TIMEOUT_S),
        _checked("ssl_shutdown_timeout", timeouts.get("ssl_shutdown_timeout"), _SHUTDOWN_TIMEOUT_S),
    )


def _checked(name: str, given: float | None, default: float) -> float:
    if given is None:
        return default
    if given <= 0:
        raise ValueError(f"{name} should be a positive number, got {given}")
    return given


def _ssl_protocol(
    loop: Loop,
    protocol: Any,
    sslcontext: Any,
    waiter: asyncio.Future[None] | None,
    server_side: bool,
    server_hostname: str | None,
    timeouts: dict[str, float | None],
    **options: Any,
) -> Any:
    """asyncio's own engine."""
    known = timeouts
    if not _HAS_SHUTDOWN_TIMEOUT:  # pragma: <3.11 cover
        known = {name: value for name, value in timeouts.items() if name != "ssl_shutdown_timeout"}
    # The stubs differ from version to version.
    made: Any = sslproto.SSLProtocol
    return made(loop, protocol, sslcontext, waiter, server_side, server_hostname, **known, **options)
