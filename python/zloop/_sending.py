"""When written bytes leave, where it takes Python: the choice of the environment, and the socket object.

The rule itself is in the engine's `stream_write.zig`.
"""

from __future__ import annotations

import os
import weakref
from asyncio import trsock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

VARIABLE = "ZLOOP_SEND"
_CHOICES = ("turn", "now")


def wanted() -> str:
    """What the environment asks for, read once per loop."""
    choice = os.environ.get(VARIABLE) or "turn"
    if choice not in _CHOICES:
        raise ValueError(f"{VARIABLE} is {choice!r}; it can be {', '.join(_CHOICES)}")
    return choice


#: asyncio's own slot, which the property of this name below hides.
_real: Any = vars(trsock.TransportSocket)["_sock"]


class TransportSocket(trsock.TransportSocket):
    """`get_extra_info("socket")`: before a method acts on the connection, what was written is in the kernel.

    asyncio's methods reach the socket through `_sock`, which gives the program the descriptor and so ends
    all waiting on this transport. Those that are here do not use the descriptor for anything that bytes
    written later would have to be in front of.
    """

    __slots__ = ("_transport",)

    def __init__(self, sock: socket.socket, transport: Any) -> None:
        _real.__set__(self, sock)
        # Weak: a transport that nobody closed is found when the last reference to it goes.
        self._transport = weakref.ref(transport)

    @property
    def _sock(self) -> socket.socket:
        transport = self._transport()
        if transport is not None:
            transport._let_out()
        return _quiet(self)

    def __repr__(self) -> str:
        return repr(trsock.TransportSocket(_quiet(self)))

    @property
    def family(self) -> int:
        return _quiet(self).family

    @property
    def type(self) -> int:
        return _quiet(self).type

    @property
    def proto(self) -> int:
        return _quiet(self).proto

    def get_inheritable(self) -> bool:
        return _quiet(self).get_inheritable()

    def getpeername(self) -> Any:
        return _quiet(self).getpeername()

    def getsockname(self) -> Any:
        return _quiet(self).getsockname()

    def getsockopt(self, *args: Any, **kwargs: Any) -> Any:
        return _settled(self).getsockopt(*args, **kwargs)

    def setsockopt(self, *args: Any, **kwargs: Any) -> None:
        _settled(self).setsockopt(*args, **kwargs)

    def shutdown(self, how: int) -> None:
        _settled(self).shutdown(how)


def _quiet(shown: TransportSocket) -> socket.socket:
    sock: socket.socket = _real.__get__(shown)
    return sock


def _settled(shown: TransportSocket) -> socket.socket:
    transport = shown._transport()
    if transport is not None:
        transport._settle()
    return _quiet(shown)
