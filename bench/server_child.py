"""A server on one loop, in a process of its own: prints its port as JSON and serves until it is ended."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import threading

from bench import loops
from bench.shapes import SHAPES, Listener


def end_with_parent() -> None:
    """Standard input is a pipe from the parent: its end means that nobody is left to end this process."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def announce(port: int) -> None:
    print(json.dumps({"port": port}), flush=True)


async def serve(options: argparse.Namespace) -> None:
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
    server = await SHAPES[options.shape](options.size, Listener(options.unix, context))
    announce(0 if options.unix else server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
    await asyncio.Event().wait()


def main() -> None:
    command_line = argparse.ArgumentParser(description=__doc__)
    command_line.add_argument("--loop", required=True)
    command_line.add_argument("--shape", choices=[*SHAPES, "none"], default="proto")
    command_line.add_argument("--size", type=int, default=1024)
    command_line.add_argument("--unix")
    command_line.add_argument("--certificate")
    command_line.add_argument("--key")
    options = command_line.parse_args()
    end_with_parent()
    loop = loops.current_loop_factory(options.loop)()
    if options.shape == "none":
        loop.call_soon(announce, 0)
        loop.run_forever()
    else:
        loop.run_until_complete(serve(options))


if __name__ == "__main__":
    main()
