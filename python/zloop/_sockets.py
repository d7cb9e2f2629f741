"""The `sock_*` methods and `sendfile`: coroutines around what the engine does.

The engine tries each operation at once and gives its result, or a waiter to await. NotImplemented means
that it leaves the socket alone: it only looks like one, belongs to a family the engine does not read, or
blocks. Then the socket's own methods are called.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import sys
from asyncio import base_events, exceptions, transports, unix_events
from collections.abc import Callable
from typing import Any

from . import _engine

# By these names, whatever a program puts in their places.
_Socket = socket.socket
_Inherited = asyncio.SelectorEventLoop
_STREAM_CALLS = ("recv", "recv_into", "send", "sendmsg")
_DATAGRAM_CALLS = ("recvfrom", "send", "sendto")

# Since 3.14 the file's position is set even if nothing has been sent.
_POSITION_ALWAYS_SET = sys.version_info >= (3, 14)


def has_own_methods(sock: Any, names: tuple[str, ...] = _STREAM_CALLS) -> bool:
    """Whether the engine, which knows the descriptor only, would bypass what the object's class does."""
    kind = type(sock)
    return kind is not _Socket and any(
        getattr(kind, name, None) is not getattr(_Socket, name) for name in names
    )


class SocketMethods(_engine.Loop):
    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """asyncio.loop.sock_recv()."""
        got = self._try_recv(sock, n)
        if type(got) is bytes:
            return got
        if got is NotImplemented:
            return await self._receive(sock, "recv", n)
        return await got

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        """asyncio.loop.sock_recv_into()."""
        got = self._try_recv_into(sock, buf)
        if type(got) is int:
            return got
        if got is NotImplemented:
            return await self._receive(sock, "recv_into", buf)
        return await got

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """asyncio.loop.sock_recvfrom()."""
        got = self._try_recvfrom(sock, bufsize)
        if type(got) is tuple:
            return got
        if got is NotImplemented:
            return await self._receive(sock, "recvfrom", bufsize)
        return await got

    async def sock_recvfrom_into(self, sock: socket.socket, buf: Any, nbytes: int = 0) -> tuple[int, Any]:
        """asyncio.loop.sock_recvfrom_into()."""
        got = self._try_recvfrom_into(sock, buf, nbytes)
        if type(got) is tuple:
            return got
        if got is NotImplemented:
            return await self._receive(sock, "recvfrom_into", buf, nbytes or len(buf))
        return await got

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        """asyncio.loop.sock_sendall()."""
        got = self._try_sendall(sock, data)
        if got is None:
            return
        if got is not NotImplemented:
            await got
            return
        with memoryview(data) as view, view.cast("B") as left:
            sent = await self._send(sock, "send", left)
            while sent < len(left):
                sent += await self._send(sock, "send", left[sent:])

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """asyncio.loop.sock_sendto()."""
        got = self._try_sendto(sock, data, address)
        if type(got) is int:
            return got
        if got is NotImplemented:
            return await self._send(sock, "sendto", data, address)
        return await got

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """asyncio.loop.sock_accept()."""
        got = self._try_accept(sock)
        if type(got) is tuple:
            return got
        if got is NotImplemented:
            conn, address = await self._receive(sock, "accept")
            conn.setblocking(False)
            return conn, address
        return await got

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """asyncio.loop.sock_connect()."""
        got = self._try_connect(sock, address)
        if got is NotImplemented:
            await _Inherited.sock_connect(self, sock, address)
        elif got is not None:
            await got

    # Sockets that the engine leaves alone.

    async def _receive(self, sock: socket.socket, method: str, *args: Any) -> Any:
        return await self._retry(sock, self._add_reader, self._remove_reader, method, args)

    async def _send(self, sock: socket.socket, method: str, *args: Any) -> Any:
        return await self._retry(sock, self._add_writer, self._remove_writer, method, args)

    async def _retry(
        self,
        sock: socket.socket,
        watch: Callable[..., Any],
        forget: Callable[[int], Any],
        method: str,
        args: tuple[Any, ...],
    ) -> Any:
        base_events._check_ssl_socket(sock)
        if self.get_debug() and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        while True:
            try:
                return getattr(sock, method)(*args)
            except (BlockingIOError, InterruptedError):
                pass
            fd = sock.fileno()
            self._ensure_fd_no_transport(fd)
            ready = self.create_future()
            handle = watch(fd, _set, ready)
            try:
                await ready
            finally:
                if not handle.cancelled():
                    forget(fd)

    # Transports over sockets that receive and send in their own way, or only look like one: asyncio's, by
    # their methods.

    def _make_socket_transport(self, sock: Any, *args: Any, **kwargs: Any) -> Any:
        if has_own_methods(sock, _STREAM_CALLS):
            return _Inherited._make_socket_transport(self, sock, *args, **kwargs)
        return super()._make_socket_transport(sock, *args, **kwargs)

    def _make_datagram_transport(self, sock: Any, *args: Any, **kwargs: Any) -> Any:
        if has_own_methods(sock, _DATAGRAM_CALLS):
            return _Inherited._make_datagram_transport(self, sock, *args, **kwargs)
        return super()._make_datagram_transport(sock, *args, **kwargs)

    # Files.

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        if not hasattr(unix_events.os, "sendfile"):
            raise exceptions.SendfileNotAvailableError("os.sendfile() is not available")
        try:
            descriptor = file.fileno()
            size = count or os.fstat(descriptor).st_size
        except (AttributeError, io.UnsupportedOperation, OSError):
            raise exceptions.SendfileNotAvailableError("not a regular file") from None
        if not size:
            return 0
        # Without a count it ends with the file, which can have grown.
        limit = count or sys.maxsize
        try:
            got = self._try_sendfile(sock, descriptor, offset, limit)
        except OSError as exc:
            if _POSITION_ALWAYS_SET:  # pragma: >=3.14 cover
                os.lseek(descriptor, offset, os.SEEK_SET)
            raise exceptions.SendfileNotAvailableError("os.sendfile call failed") from exc
        if got is NotImplemented:
            return await _Inherited._sock_sendfile_native(self, sock, file, offset, count)
        sent = 0
        try:
            if type(got) is int:
                sent = got
            else:
                try:
                    await got
                finally:
                    sent = got.sent
        except OSError as exc:
            if not sent:
                raise exceptions.SendfileNotAvailableError("os.sendfile call failed") from exc
            if exc.errno == errno.ENOTCONN and type(exc) is not ConnectionError:
                # asyncio's way to make all systems agree.
                raise ConnectionError("socket is not connected", errno.ENOTCONN) from exc
            raise
        finally:
            if sent or _POSITION_ALWAYS_SET:  # pragma: no branch (always so since 3.14)
                os.lseek(descriptor, offset + sent, os.SEEK_SET)
        return sent

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        resume_reading = transp.is_reading()
        transp.pause_reading()
        try:
            await transp._make_empty_waiter()
            # Of ours without letting the descriptor out: nothing can be written while the file is sent.
            sock: Any = transp._own_socket if isinstance(transp, _engine.StreamTransport) else transp._sock
            try:
                # A number of its own to wait with: the transport may be told to read meanwhile.
                own = sock.dup()
            except OSError as exc:
                raise exceptions.SendfileNotAvailableError("no descriptor is left to wait with") from exc
            with own:
                return await self.sock_sendfile(own, file, offset, count, fallback=False)
        finally:
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()

    async def _sendfile_fallback(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        if not isinstance(transp, transports._FlowControlMixin):
            transp = _FlowControlled(transp)
        return await _Inherited._sendfile_fallback(self, transp, file, offset, count)


_DELEGATED = (
    "get_protocol",
    "is_closing",
    "is_reading",
    "pause_reading",
    "resume_reading",
    "set_protocol",
    "write",
)


class _FlowControlled(transports._FlowControlMixin):
    """A transport of the engine for asyncio's fallback, which insists on this base class."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        for name in _DELEGATED:
            setattr(self, name, getattr(transport, name))
        self._loop = transport._loop

    @property
    def _protocol_paused(self) -> bool:
        return bool(self._transport._protocol_paused)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
