"""What zloop shows to the outside: names, signatures, classes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import sys
import weakref
from typing import Any

import pytest
from harness import Echo, Log, connected, turns, within

only_zloop = pytest.mark.only_zloop("speaks of the package")


# --- the module ----


def test_all_is_what_is_public():
    zloop = pytest.importorskip("zloop", reason="not installed")
    public = {
        name
        for name, value in vars(zloop).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert set(zloop.__all__) - {"__version__"} == public
    assert len(zloop.__all__) == len(set(zloop.__all__))
    assert "__version__" in zloop.__all__
    for name in zloop.__all__:
        assert hasattr(zloop, name)


def test_the_promised_names():
    zloop = pytest.importorskip("zloop", reason="not installed")
    promised = {"new_event_loop", "Loop", "run", "__version__"}
    if sys.version_info < (3, 16):
        promised |= {"EventLoopPolicy", "install"}
    assert promised <= set(zloop.__all__)
    assert zloop.__version__.split(".")[0].isdigit()


def test_star_import_brings_nothing_else():
    zloop = pytest.importorskip("zloop", reason="not installed")
    names: dict[str, Any] = {}
    exec("from zloop import *", names)
    names.pop("__builtins__")
    assert set(names) == set(zloop.__all__)


@only_zloop
def test_the_loops_class(loop):
    import zloop

    assert type(loop) is zloop.Loop
    assert type(loop).__module__ == "zloop"
    assert type(loop).__name__ == "Loop"
    made = zloop.Loop()  # can be made directly too
    assert type(made) is zloop.Loop
    made.close()


def test_run():
    zloop = pytest.importorskip("zloop", reason="not installed")

    async def main() -> Any:
        await turns(3)
        return type(asyncio.get_running_loop()), asyncio.get_running_loop().get_debug()

    assert zloop.run(main()) == (zloop.Loop, False)
    assert zloop.run(main(), debug=True) == (zloop.Loop, True)

    async def broken() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError):
        zloop.run(broken())
    with pytest.raises((ValueError, TypeError)):
        zloop.run(5)

    async def nested() -> None:
        coroutine = main()
        try:
            with pytest.raises(RuntimeError):
                zloop.run(coroutine)
        finally:
            coroutine.close()

    zloop.run(nested())


def test_run_cancels_what_is_left_and_ends_generators():
    zloop = pytest.importorskip("zloop", reason="not installed")
    events: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            events.append("cancelled")

    async def generator() -> Any:
        try:
            yield 1
        finally:
            events.append("closed")

    kept: list[Any] = []

    async def main() -> None:
        kept.append(asyncio.ensure_future(forever()))
        kept.append(generator())
        await kept[1].__anext__()
        await turns(1)

    zloop.run(main())
    assert sorted(events) == ["cancelled", "closed"]


@pytest.mark.skipif(sys.version_info >= (3, 16), reason="policies are gone")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_policy():
    zloop = pytest.importorskip("zloop", reason="not installed")
    before = asyncio.get_event_loop_policy()
    try:
        zloop.install()
        assert isinstance(asyncio.get_event_loop_policy(), zloop.EventLoopPolicy)
        loop = asyncio.new_event_loop()
        assert isinstance(loop, zloop.Loop)
        asyncio.set_event_loop(loop)
        assert asyncio.get_event_loop() is loop
        asyncio.set_event_loop(None)
        loop.close()

        async def main() -> Any:
            return type(asyncio.get_running_loop())

        assert asyncio.run(main()) is zloop.Loop
    finally:
        asyncio.set_event_loop_policy(before)
    assert not issubclass(zloop.EventLoopPolicy, type(None))
    policy = zloop.EventLoopPolicy()
    loop = policy.new_event_loop()
    assert isinstance(loop, zloop.Loop)
    loop.close()


@pytest.mark.skipif(sys.version_info >= (3, 16), reason="policies are gone")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_get_event_loop_of_the_policy_is_as_in_asyncio():
    zloop = pytest.importorskip("zloop", reason="not installed")

    def outcome(policy: Any) -> Any:
        policy.set_event_loop(None)
        try:
            loop = policy.get_event_loop()
        except RuntimeError:
            return RuntimeError
        loop.close()
        return "a loop"

    assert outcome(zloop.EventLoopPolicy()) == outcome(asyncio.DefaultEventLoopPolicy())


# --- signatures ----


def public_methods(*classes: type) -> list[str]:
    names: set[str] = set()
    for each in classes:
        names |= {
            name for name, value in inspect.getmembers(each) if not name.startswith("_") and callable(value)
        }
    return sorted(names)


LOOP_METHODS = public_methods(asyncio.AbstractEventLoop, asyncio.BaseEventLoop, asyncio.SelectorEventLoop)


def parameters(function: Any) -> list[tuple[str, Any, bool]]:
    """Name, kind and necessity of each parameter; nobody passes `self` by name, and natively none could."""
    return [
        (parameter.name, parameter.kind, parameter.default is inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ][1:]  # without self, which the interpreter shows as positional-only for native methods


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_every_loop_method_has_asyncios_parameters(loop, name):
    theirs = getattr(asyncio.SelectorEventLoop, name)
    ours = getattr(type(loop), name)
    assert callable(ours)
    try:
        signature = parameters(ours)
    except ValueError:
        pytest.fail(f"{name} has no signature: native functions need a __text_signature__")
    if name == "create_task" and sys.version_info[:2] == (3, 13):
        # Three forms in four patch releases: 3.13.3 took any keyword, 3.13.4 named two of them again.
        named = {parameter for parameter, _, _ in signature}
        assert {parameter for parameter, _, _ in parameters(theirs)} <= named
        return
    wanted = parameters(theirs)
    # more keywords than this version's asyncio has are welcome: a newer one may know them
    names = {entry[0] for entry in wanted}
    extra = [entry for entry in signature if entry[0] not in names]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY and not required for _, kind, required in extra)
    assert [entry for entry in signature if entry[0] in names] == wanted


COROUTINES = [
    name for name in LOOP_METHODS if inspect.iscoroutinefunction(getattr(asyncio.SelectorEventLoop, name))
]


@pytest.mark.parametrize("name", COROUTINES)
def test_every_loop_method_is_a_coroutine_function_where_asyncios_is(loop, name):
    ours = getattr(type(loop), name)
    if not inspect.iscoroutinefunction(ours):
        # a native one gives an awaitable, which the tests of its subject await
        assert not inspect.isgeneratorfunction(ours)
        assert not inspect.isasyncgenfunction(ours)


def test_stream_transports_have_asyncios_methods(run, kind, tls):
    async def main() -> None:
        async with connected(kind, tls=tls) as pair:
            cls = type(pair.client_transport)
            different = {}
            for name in public_methods(asyncio.Transport):
                ours, theirs = parameters(getattr(cls, name)), parameters(getattr(asyncio.Transport, name))
                names = [entry[0] for entry in ours]
                if names != [entry[0] for entry in theirs]:
                    different[name] = (ours, theirs)
            assert different == {}

    run(main())


def test_datagram_transports_have_asyncios_methods(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        different = {}
        for name in public_methods(asyncio.DatagramTransport):
            ours = parameters(getattr(type(transport), name))
            theirs = parameters(getattr(asyncio.DatagramTransport, name))
            if [entry[0] for entry in ours] != [entry[0] for entry in theirs]:
                different[name] = (ours, theirs)
        transport.close()
        await turns(2)
        assert different == {}

    run(main())


def test_handles_have_asyncios_methods(loop):
    handle, timer = loop.call_soon(print), loop.call_later(5, print)
    for ours, theirs in ((handle, asyncio.Handle), (timer, asyncio.TimerHandle)):
        for name in public_methods(theirs):
            assert parameters(getattr(type(ours), name)) == parameters(getattr(theirs, name))
    handle.cancel()
    timer.cancel()


# --- classes ----


def test_a_loop_is_what_it_says(loop):
    for base in (asyncio.AbstractEventLoop, asyncio.BaseEventLoop, asyncio.SelectorEventLoop):
        assert isinstance(loop, base)
    assert weakref.ref(loop)() is loop
    assert "running=False" in repr(loop)
    assert "closed=False" in repr(loop)
    loop.attribute = 5  # users hang their own things on loops
    assert loop.attribute == 5
    assert hash(loop) == hash(loop)
    assert {loop: 1}[loop] == 1
    loop.close()
    assert "closed=True" in repr(loop)


def test_a_loop_can_be_subclassed(loop_factory):
    loop = loop_factory()
    cls = type(loop)
    loop.close()

    class Mine(cls):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def call_soon(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().call_soon(*args, **kwargs)

        def time(self) -> float:
            return super().time()

    mine = Mine()
    try:
        assert mine.run_until_complete(asyncio.sleep(0.001, "subclass")) == "subclass"
        assert mine.calls >= 1
    finally:
        mine.close()


def test_handles_are_what_they_say(loop):
    handle, timer, safe = loop.call_soon(print), loop.call_later(5, print), loop.call_soon_threadsafe(print)
    for each in (handle, timer, safe):
        assert isinstance(each, asyncio.Handle)
        assert weakref.ref(each)() is each
        assert repr(each)
        each.cancel()
        assert repr(each)
    assert isinstance(timer, asyncio.TimerHandle)
    assert not isinstance(handle, asyncio.TimerHandle)


def test_servers_are_what_they_say(run, unix_path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for server in (
            await loop.create_server(Echo, "127.0.0.1", 0),
            await loop.create_unix_server(Echo, unix_path),
        ):
            assert isinstance(server, asyncio.Server)
            assert isinstance(server, asyncio.AbstractServer)
            assert weakref.ref(server)() is server
            assert repr(server)
            assert isinstance(server.sockets, (list, tuple))
            server.close()
            await within(server.wait_closed())

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "udp", "read pipe", "write pipe"])
def test_a_transport_keeps_what_a_program_hangs_on_it(run, tls, kind):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            if kind in ("tcp", "unix", "tls"):
                transport: Any = (await stack.enter_async_context(connected(kind, tls=tls))).client_transport
            elif kind == "udp":
                transport, _ = await loop.create_datagram_endpoint(
                    asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
                )
                stack.callback(transport.close)
            else:
                reading, writing = os.pipe()
                with open(reading, "rb", 0) as reader, open(writing, "wb", 0) as writer:
                    if kind == "read pipe":
                        transport, _ = await loop.connect_read_pipe(asyncio.Protocol, reader)
                    else:
                        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, writer)
                    transport.close()
                    await turns(3)
            transport.user = "kept"
            assert vars(transport)["user"] == "kept"
            assert vars(transport) is transport.__dict__
            vars(transport)["other"] = transport  # a cycle the collector has to find
            assert transport.other is transport
            transport.__dict__ = {**vars(transport), "user": "replaced"}
            assert transport.user == "replaced"
            with pytest.raises(TypeError):
                transport.__dict__ = 5
            del transport.user
            assert not hasattr(transport, "user")

    run(main())


def test_native_types_refuse_to_be_made_by_hand(loop, run):
    async def main() -> list[type]:
        async with connected("tcp") as pair:
            return [type(pair.client_transport)]

    types = [type(loop.call_soon(print)), type(loop.call_later(1, print)), *run(main())]
    for cls in types:
        if cls.__module__.startswith("asyncio"):
            continue
        # garbage must be refused with an exception, and what refuses must not crash when collected
        for arguments in ((), (1, 2, 3), (None,) * 6):
            try:
                made = cls(*arguments)
            except (TypeError, ValueError, AttributeError):
                continue
            repr(made)


def test_native_types_can_be_walked_through(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        handle = loop.call_soon(int)
        async with connected("tcp") as pair:
            for each in (loop, handle, pair.client_transport):
                assert str(each)
                assert isinstance(dir(each), list)
                assert type(each).__doc__ is None or isinstance(type(each).__doc__, str)
                assert type(each).__module__.split(".")[0] in ("zloop", "asyncio")

    run(main())


def test_get_extra_info_of_sockets_is_asyncios_class(run):
    async def main() -> None:
        async with connected("tcp") as pair:
            sock = pair.client_transport.get_extra_info("socket")
            assert isinstance(sock, asyncio.trsock.TransportSocket)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs came with 3.14")
def test_call_graphs(run):
    async def main() -> None:
        async def inner() -> Any:
            await asyncio.sleep(0)
            return asyncio.capture_call_graph(), asyncio.format_call_graph()

        async def outer() -> Any:
            return await asyncio.ensure_future(inner())

        graph, text = await asyncio.ensure_future(outer())
        assert isinstance(graph, asyncio.FutureCallGraph)
        assert "inner" in text
        assert "outer" in text

    run(main())


def test_asyncio_works_with_log_protocols_of_a_hundred_kinds(run):
    """Protocols need not derive from anything: duck typing is asyncio's contract."""

    class Duck:
        def __init__(self) -> None:
            self.log = Log()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.log, name)

    async def main() -> None:
        async with connected("tcp", server=Duck) as pair:
            pair.client_transport.write(b"quack")
            assert await pair.server.log.got(5) == b"quack"

    run(main())
