"""What the native engine gives to the Python edge; `scripts/test` compares it with the library.

`Loop` is declared as the asyncio loop that it stands in front of. At run time it is a plain class, and what
it replaces of asyncio's has asyncio's signature; only what it adds is listed.
"""

import asyncio
import contextvars
import socket
import ssl
from asyncio import events, transports
from collections.abc import Callable
from typing import Any, final

from _typeshed import FileDescriptorLike
from typing_extensions import disjoint_base

build_mode: str
version: str

@final
class Handle(events.Handle):
    def get_context(self) -> contextvars.Context: ...
    @property
    def _callback(self) -> Callable[..., Any] | None: ...
    @property
    def _source_traceback(self) -> list[Any] | None: ...

@final
class TimerHandle(events.TimerHandle):
    def get_context(self) -> contextvars.Context: ...
    @property
    def _callback(self) -> Callable[..., Any] | None: ...
    @property
    def _source_traceback(self) -> list[Any] | None: ...

@disjoint_base
class Loop(asyncio.SelectorEventLoop):
    def _release(self) -> None: ...
    def _add_reader(self, fd: FileDescriptorLike, callback: Callable[..., Any], *args: Any) -> Handle: ...
    def _remove_reader(self, fd: FileDescriptorLike) -> bool: ...
    def _watched_events(self, fd: FileDescriptorLike) -> int: ...
    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> StreamTransport: ...
    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None: ...
    def _read_pipe(
        self,
        pipe: Any,
        fd: int,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None,
        extra: dict[str, Any] | None,
        restores_mode: bool,
        watches_peer: bool,
    ) -> ReadPipeTransport: ...
    def _write_pipe(
        self,
        pipe: Any,
        fd: int,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None,
        extra: dict[str, Any] | None,
        restores_mode: bool,
        watches_peer: bool,
    ) -> WritePipeTransport: ...

@final
class StreamTransport(transports.Transport):
    def get_write_buffer_limits(self) -> tuple[int, int]: ...

@final
class ReadPipeTransport(transports.ReadTransport): ...

@final
class WritePipeTransport(transports.WriteTransport):
    def get_write_buffer_limits(self) -> tuple[int, int]: ...
