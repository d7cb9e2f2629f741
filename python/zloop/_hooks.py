"""Everything of asyncio that zloop relies on and that asyncio does not promise to keep.

A list to read and to check; it changes nothing. `missing()` says what the running Python lacks: the tests
ask it on every version, and it is the first thing to ask of a new one.
"""

from __future__ import annotations

import enum
import importlib
import sys
from dataclasses import dataclass
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
    _hook(_LOOP, Need.CALLS, "_check_closed", "a forked child's copy of a loop refuses like a closed one"),
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
    # Names.
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
        "_loop _proc _pid _returncode",
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
