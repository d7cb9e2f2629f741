"""Everything of asyncio that zloop relies on and that asyncio does not promise to keep.

`missing()` says what the running Python lacks of a list of names, `differences()` which parameters of
asyncio's methods are not taken by the methods that zloop puts in their place. The tests ask both on every
version, and they are the first things to ask of a new one. Neither changes anything; `adapt()` does, on a
Python that is newer than the tests.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import platform
import sys
import warnings
from asyncio import events, selector_events, sslproto, unix_events
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import CodeType, FunctionType, ModuleType
from typing import Any

Version = tuple[int, int]


class Need(enum.Enum):
    HAS = "has no attribute"
    """zloop uses it, by this name, of this class or module."""
    CALLS = "is not asked for"
    """zloop replaces it: it must exist, and asyncio's own code must ask for it."""
    SETS = "does not set"
    """Its instances have it: code of the class mentions it."""


@dataclass(frozen=True)
class Hook:
    place: str
    """A module, or module:class."""
    need: Need
    names: tuple[str, ...]
    why: str
    since: Version = (3, 10)
    before: Version = (4, 0)


def _hook(place: str, need: Need, names: str, why: str, **versions: Version) -> Hook:
    return Hook(place, need, tuple(names.split()), why, **versions)


_LOOP = "asyncio.selector_events:BaseSelectorEventLoop"
_UNIX_LOOP = "asyncio.unix_events:_UnixSelectorEventLoop"

HOOKS = (
    # The run.
    _hook(_LOOP, Need.CALLS, "_run_once", "the engine runs all turns of a run in it"),
    _hook(
        _LOOP, Need.HAS, "_run_forever_setup _run_forever_cleanup", "the run around the turns", since=(3, 13)
    ),
    _hook(_LOOP, Need.CALLS, "_check_running", "permits runs inside of a run where nest_asyncio does"),
    _hook(
        _LOOP,
        Need.HAS,
        "_asyncgen_firstiter_hook _asyncgen_finalizer_hook _set_coroutine_origin_tracking",
        "set up for a run inside of a run",
    ),
    _hook("asyncio.events", Need.HAS, "_get_running_loop _set_running_loop", "as above"),
    _hook("asyncio.tasks", Need.HAS, "_swap_current_task", "as above", since=(3, 12)),
    _hook("asyncio.tasks", Need.HAS, "_current_tasks", "as above", before=(3, 12)),
    _hook(_LOOP, Need.CALLS, "_check_closed", "the engine knows whether the loop is closed"),
    _hook(_LOOP, Need.CALLS, "_write_to_self", "wakes the engine"),
    _hook(
        _LOOP,
        Need.SETS,
        "_closed _stopping _debug _thread_id _current_handle _task_factory _ready _scheduled",
        "the engine has properties of these names, through which both sides agree",
    ),
    _hook(_LOOP, Need.HAS, "_check_callback", "refuses coroutines as callbacks in debug mode"),
    # Signals.
    _hook(_LOOP, Need.CALLS, "_make_self_pipe _close_self_pipe", "made with the first signal handler only"),
    _hook(_LOOP, Need.SETS, "_ssock _csock", "the pipe's ends"),
    _hook(_UNIX_LOOP, Need.CALLS, "_add_callback_signalsafe", "queues signal handlers in the engine"),
    # Descriptors.
    _hook(
        _LOOP,
        Need.CALLS,
        "_add_reader _remove_reader _add_writer _remove_writer _ensure_fd_no_transport",
        "the engine watches descriptors",
    ),
    # Transports.
    _hook(
        _LOOP,
        Need.CALLS,
        "_make_socket_transport _make_ssl_transport _make_datagram_transport _start_serving"
        " _accept_connection2",
        "connections and listeners are the engine's",
    ),
    _hook(_LOOP, Need.CALLS, "_stop_serving", "closes a listening socket, through remove_reader()"),
    _hook(
        _UNIX_LOOP,
        Need.CALLS,
        "_make_read_pipe_transport _make_write_pipe_transport _make_subprocess_transport",
        "pipes are the engine's, children are waited for without a watcher",
    ),
    _hook("asyncio.base_events:Server", Need.CALLS, "_attach _detach", "a server counts its connections"),
    _hook("asyncio.trsock", Need.HAS, "TransportSocket", "what get_extra_info() shows of a socket"),
    _hook("asyncio.trsock:TransportSocket", Need.HAS, "_sock", "its slot; leads to the socket"),
    _hook("asyncio.transports", Need.HAS, "_FlowControlMixin", "base of what sendfile's fallback takes"),
    _hook(
        "asyncio.transports:_FlowControlMixin", Need.SETS, "_protocol_paused _loop", "read by the fallback"
    ),
    # Sockets and files.
    _hook(_UNIX_LOOP, Need.CALLS, "_sock_sendfile_native", "sends files by the engine"),
    _hook(_LOOP, Need.CALLS, "_sendfile_native _sendfile_fallback", "sends files by the engine"),
    _hook("asyncio.constants:_SendfileMode", Need.HAS, "TRY_NATIVE FALLBACK", "a transport's answer"),
    _hook("asyncio.constants", Need.HAS, "ACCEPT_RETRY_DELAY SSL_HANDSHAKE_TIMEOUT", "its times in seconds"),
    _hook("asyncio.constants", Need.HAS, "SSL_SHUTDOWN_TIMEOUT", "its times in seconds", since=(3, 11)),
    _hook("asyncio.base_events", Need.HAS, "_check_ssl_socket", "refuses SSL sockets with asyncio's words"),
    _hook("asyncio.unix_events", Need.HAS, "os", "where sendfile() is looked for"),
    _hook("asyncio.selector_events", Need.HAS, "selectors", "whose select() may be gevent's or eventlet's"),
    # Names.
    _hook("concurrent.futures.thread", Need.HAS, "threading queue", "what lookups get their threads from"),
    _hook("asyncio.base_events", Need.HAS, "socket", "where getaddrinfo() is looked up, and may be replaced"),
    _hook(_LOOP, Need.HAS, "_getaddrinfo_debug", "reports slow lookups in debug mode"),
    _hook("asyncio.streams", Need.HAS, "FlowControlMixin", "inherited by protocols that drain() asks"),
    # Streams, fed natively.
    _hook(
        "asyncio.streams:StreamReader",
        Need.SETS,
        "_buffer _waiter _eof _limit _paused _transport",
        "what feed_data() changes",
    ),
    _hook("asyncio.streams:StreamReader", Need.HAS, "_wakeup_waiter feed_data", "done natively if unchanged"),
    _hook("asyncio.streams:StreamReaderProtocol", Need.SETS, "_stream_reader_wr", "leads to the reader"),
    _hook(
        "asyncio.streams:StreamReaderProtocol",
        Need.HAS,
        "_stream_reader data_received",
        "the reader of a connection that start_tls() upgrades",
    ),
    # Futures, tasks and handles.
    _hook("asyncio.futures", Need.HAS, "Future", "create_future(); looked up at each call"),
    _hook("asyncio.tasks", Need.HAS, "Task", "create_task(); looked up at each call"),
    _hook("asyncio.futures:Future", Need.HAS, "_asyncio_future_blocking", "tells tasks that they may wait"),
    _hook(
        "asyncio.events:Handle",
        Need.SETS,
        "_callback _args _context _loop _cancelled _repr",
        "of the same names",
    ),
    _hook("asyncio.events:Handle", Need.HAS, "_run _source_traceback", "run by signals; shown in reports"),
    _hook("asyncio.events", Need.HAS, "_ThreadSafeHandle", "call_soon_threadsafe()'s", since=(3, 14)),
    _hook("asyncio.events:TimerHandle", Need.SETS, "_when _scheduled", "of the same names"),
    # TLS by asyncio's own engine.
    _hook("asyncio.sslproto", Need.HAS, "SSLProtocol _create_transport_context", "serves what ours does not"),
    _hook("asyncio.sslproto:SSLProtocol", Need.SETS, "_app_transport", "the program's transport"),
    _hook(
        "asyncio.sslproto:SSLProtocol",
        Need.SETS,
        "_incoming _app_writing_paused",
        "takes over from a plain connection",
        since=(3, 11),
    ),
    _hook("ssl:SSLContext", Need.HAS, "wrap_bio _msg_callback", "our own engine's SSLObject"),
    _hook("ssl:SSLObject", Need.SETS, "_sslobj", "leads to OpenSSL's object"),
    # Children.
    _hook(
        "asyncio.base_subprocess:BaseSubprocessTransport",
        Need.CALLS,
        "_start _process_exited _check_proc _wait",
        "the transport whose child is started and waited for by zloop",
    ),
    _hook(
        "asyncio.base_subprocess:BaseSubprocessTransport",
        Need.SETS,
        "_loop _proc _pid _returncode _exit_waiters",
        "its state",
    ),
    _hook("subprocess:Popen", Need.SETS, "_waitpid_lock", "held while a status is taken"),
    _hook(
        "asyncio.subprocess:SubprocessStreamProtocol",
        Need.SETS,
        "_stdin_closed",
        "reports a child that leaves its input twice",
        before=(3, 12),
    ),
    # Reports.
    _hook(
        "asyncio.format_helpers", Need.HAS, "extract_stack _format_callback_source", "reports and debug mode"
    ),
    _hook("asyncio.base_events", Need.HAS, "_format_handle", "names a slow callback"),
    _hook("asyncio.log", Need.HAS, "logger", "asyncio's own log"),
    # The policy and zloop.run().
    _hook(
        "asyncio.unix_events", Need.HAS, "_UnixDefaultEventLoopPolicy", "our policy's base", before=(3, 14)
    ),
    _hook(
        "asyncio.unix_events",
        Need.HAS,
        "_DefaultEventLoopPolicy",
        "our policy's base",
        since=(3, 14),
        before=(3, 16),
    ),
    _hook("asyncio.runners", Need.HAS, "_cancel_all_tasks", "ends a run without a Runner", before=(3, 11)),
)

_CALLERS = (
    "asyncio.base_events",
    "asyncio.selector_events",
    "asyncio.unix_events",
    "asyncio.base_subprocess",
)


def missing(hooks: tuple[Hook, ...] = HOOKS) -> list[str]:
    """What this Python lacks of *hooks*, in words; empty if zloop can stand on it."""
    asked = set().union(*(_mentioned(importlib.import_module(name)) for name in _CALLERS))
    return [
        f"{hook.place} {problem} {name} ({hook.why})"
        for hook in hooks
        if hook.since <= sys.version_info[:2] < hook.before
        for name in hook.names
        for problem in _problems(hook, name, asked)
    ]


def _problems(hook: Hook, name: str, asked: set[str]) -> list[str]:
    module, _, attribute = hook.place.partition(":")
    try:
        place: Any = importlib.import_module(module)
        if attribute:
            place = getattr(place, attribute)
    except (ImportError, AttributeError):
        return ["is not there to ask for"]
    if hook.need is Need.SETS:
        return [] if any(name in _mentioned(base) for base in place.__mro__) else [hook.need.value]
    if not hasattr(place, name):
        return [Need.HAS.value]
    return [hook.need.value] if hook.need is Need.CALLS and name not in asked else []


def _mentioned(place: Any) -> set[str]:
    """Attribute names in the code of a module's or class's own functions and classes."""
    found: set[str] = set()
    for value in list(vars(place).values()):
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if isinstance(value, FunctionType):
            found |= _names(value.__code__)
        elif isinstance(value, type) and isinstance(place, ModuleType) and value.__module__ == place.__name__:
            found |= _mentioned(value)
    return found


def _names(code: CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


# Signatures.


@dataclass(frozen=True)
class Difference:
    """A parameter of a method of asyncio's that the method in its place does not take."""

    ours: type
    theirs: type
    method: str
    parameter: str

    def __str__(self) -> str:
        names = (f"{cls.__module__}.{cls.__qualname__}" for cls in (self.theirs, self.ours))
        return "{0}.{2}() takes {3!r}, which {1}.{2}() does not take".format(
            *names, self.method, self.parameter
        )


def replacements() -> dict[type, type]:
    """The classes of zloop that stand in the place of one of asyncio's, and that one."""
    from . import _engine, _loop, _subprocess

    found: dict[type, type] = {
        _loop.Loop: unix_events._UnixSelectorEventLoop,
        _engine.Handle: events.Handle,
        _engine.TimerHandle: events.TimerHandle,
        _engine.StreamTransport: selector_events._SelectorSocketTransport,
        _engine.DatagramTransport: selector_events._SelectorDatagramTransport,
        _engine.ReadPipeTransport: unix_events._UnixReadPipeTransport,
        _engine.WritePipeTransport: unix_events._UnixWritePipeTransport,
        _engine.SSLTransport: sslproto._SSLProtocolTransport,
        _subprocess.SubprocessTransport: unix_events._UnixSubprocessTransport,
    }
    if sys.version_info >= (3, 14):  # pragma: >=3.14 cover
        found[_engine.ThreadSafeHandle] = getattr(events, "_ThreadSafeHandle")  # noqa: B009
    return found


def replaced_methods() -> Iterator[tuple[type, type, str]]:
    """Each method of asyncio's that zloop has one of its own for: our class, asyncio's, the name."""
    for ours, theirs in replacements().items():
        names = {name for cls in _our_part(ours) for name in vars(cls)}
        for name in sorted(names):
            is_special = name.startswith("__") and name != "__init__"
            if not is_special and all(callable(getattr(cls, name, None)) for cls in (ours, theirs)):
                yield ours, theirs, name


def _our_part(cls: type) -> list[type]:
    return [each for each in cls.__mro__ if each.__module__.partition(".")[0] == __package__]


def differences() -> list[Difference]:
    """Where a call that this Python's asyncio understands would be a TypeError with zloop."""
    return [
        Difference(ours, theirs, method, parameter)
        for ours, theirs, method in replaced_methods()
        for parameter in _refused(ours, theirs, method)
    ]


def _refused(ours: type, theirs: type, method: str) -> Iterator[str]:
    chain = [
        _parameters(vars(cls)[method])
        for cls in _our_part(ours)
        # A native type's own `__init__` has no signature, and asyncio's is behind it.
        if method in vars(cls) and (method != "__init__" or isinstance(vars(cls)[method], FunctionType))
    ]
    wanted = _parameters(getattr(theirs, method)) if chain else []
    for index, parameter in enumerate(wanted):
        if not _takes(chain, index, parameter):
            yield parameter.name


def _parameters(method: Any) -> list[Parameter]:
    """Without self."""
    return list(inspect.signature(method).parameters.values())[1:]


def _takes(chain: list[list[Parameter]], index: int, wanted: Parameter) -> bool:
    """Whether the first method does. One that collects arguments hands them on to the next of the chain."""
    own, *behind = chain
    kinds = {parameter.kind for parameter in own}
    if wanted.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return wanted.kind in kinds and (not behind or _takes(behind, index, wanted))
    by_name = any(
        parameter.name == wanted.name
        and parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        for parameter in own
    )
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    by_position = index < sum(parameter.kind in positional for parameter in own)
    if wanted.kind is Parameter.POSITIONAL_ONLY:
        taken = by_position
    elif wanted.kind is Parameter.KEYWORD_ONLY:
        taken = by_name
    else:
        taken = by_name and by_position
    if taken or not behind or Parameter.VAR_KEYWORD not in kinds:
        return taken
    return _takes(behind, index, wanted)


def adapt() -> None:
    """Make the best of a Python that is newer than the tests, and say so in one RuntimeWarning.

    asyncio's new code passes new arguments to the loop's methods. A TypeError would end every program that
    makes a server, though what the argument asks for matters to few of them. Silence would leave those few to
    find out. So the loop drops what it does not know, as asyncio did before it had it, and names it.
    """
    from ._loop import Loop

    found = differences()
    unknown: dict[str, set[str]] = {}
    for difference in (each for each in found if each.ours is Loop):
        unknown.setdefault(difference.method, set()).add(difference.parameter)
    for method, names in unknown.items():
        theirs = inspect.signature(getattr(unix_events._UnixSelectorEventLoop, method))
        setattr(Loop, method, _dropping(names, getattr(Loop, method), theirs))
    lines = [*missing(), *(f"{difference}: it is ignored" for difference in found)]
    if lines:
        version = platform.python_version()
        text = f"this zloop was not tested on Python {version}, whose asyncio differs: " + "; ".join(lines)
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def _dropping(names: set[str], method: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        for name in names:
            given.arguments.pop(name, None)
        return method(*given.args, **given.kwargs)

    return call
