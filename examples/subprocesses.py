"""Child processes: output, a conversation over pipes, an exit code, a signal."""

import asyncio
from asyncio.subprocess import PIPE

import zloop


async def main() -> None:
    process = await asyncio.create_subprocess_exec("echo", "from a child", stdout=PIPE)
    output, _ = await process.communicate()
    print("it said:", output.decode().strip())

    process = await asyncio.create_subprocess_shell(
        "while read line; do echo got $line; done", stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for word in ("one", "two"):
        process.stdin.write(word.encode() + b"\n")
        print((await process.stdout.readline()).decode().strip())
    process.stdin.close()
    print("exit code", await process.wait())

    process = await asyncio.create_subprocess_exec("sleep", "60")
    process.terminate()
    print("ended by signal", -await process.wait())


zloop.run(main())
