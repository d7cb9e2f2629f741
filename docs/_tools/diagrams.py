"""Draw the diagrams of the documentation: `python docs/_tools/diagrams.py` writes docs/assets/*.svg.

A diagram is a column of boxes, narrow enough for a phone. Each box names something in the code, the file it
is in and what happens there; tests look every name up in its file, so a diagram cannot describe what is not
there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = ROOT / "docs" / "assets"

WIDTH_PX, BOX_PX, INDENT_PX, PADDING_PX = 460, 428, 24, 10
LINE_PX, GAP_PX, MARGIN_PX = 17, 22, 16
TEXT_WIDTH_PX = 7.0
"""Average width of a character of the text; estimated, as no font is at hand."""


@dataclass(frozen=True)
class Kind:
    label: str
    fill: str
    stroke: str


PROGRAM = Kind("your program", "#eef2f6", "#64748b")
ASYNCIO = Kind("asyncio of this Python", "#e3f0fb", "#2f6fa8")
PYTHON = Kind("Python edge, python/zloop", "#e6f4ea", "#2e7d4f")
ADAPTER = Kind("CPython adapter, src/cpython", "#fff0e0", "#b8620a")
CORE = Kind("core, src/core", "#fbe6e0", "#b23c17")
KERNEL = Kind("kernel", "#e4e4e7", "#3f3f46")


@dataclass(frozen=True)
class Box:
    kind: Kind
    name: str
    """As the code has it; several are separated by commas."""
    file: str
    """Where the names are, or empty for what is not in this repository."""
    text: str
    inside: int = 0
    """How deep it lies in the box above."""
    arrow: str | None = ""
    """What goes from here to the next box; None: nothing does."""

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.name.split(",")]


@dataclass(frozen=True)
class Diagram:
    name: str
    title: str
    boxes: list[Box]
    back: str = ""
    """Words on an arrow from the last box to the first."""


LOOP = "src/core/loop.zig"
HOST = "src/cpython/loop_type.zig"
WRITE = "src/cpython/stream_write.zig"
READ = "src/cpython/stream_read.zig"
CLOSE = "src/cpython/stream_close.zig"
LISTENER = "src/cpython/listener.zig"
TLS_IN = "src/cpython/tls_read.zig"
TLS_OUT = "src/cpython/tls_write.zig"
SCHEDULE = "src/cpython/loop_schedule.zig"

TURN = Diagram(
    "turn",
    "One turn of the loop",
    [
        Box(CORE, "inbox.drainInto", LOOP, "What other threads posted goes behind the ready queue."),
        Box(ADAPTER, "idle", HOST, "Only with nothing ready: shared contexts are let go."),
        Box(CORE, "timeoutNs", LOOP, "0 if work is ready, else until the earliest timer, else for ever."),
        Box(
            CORE,
            "mustPoll",
            LOOP,
            "With work ready, not if no descriptor is watched or the last poll is fresh.",
        ),
        Box(CORE, "poll", LOOP, "Readiness of descriptors; at most 512 events.", arrow=None),
        Box(ADAPTER, "beforeWait", HOST, "PyEval_SaveThread: the GIL is released.", 1, arrow=None),
        Box(
            KERNEL,
            "reactor.wait",
            LOOP,
            "epoll or kqueue: the only place where the loop sleeps.",
            1,
            arrow=None,
        ),
        Box(ADAPTER, "afterWait", HOST, "The GIL is taken again.", 1, arrow=None),
        Box(
            CORE,
            "watches.resolve",
            LOOP,
            "Events whose generation is not the armed one are dropped.",
            1,
            arrow=None,
        ),
        Box(ADAPTER, "queueWatch", HOST, "Each source that is ready joins the ready queue.", 1),
        Box(CORE, "collectDue", LOOP, "Timers that are due join the ready queue, the earliest first."),
        Box(CORE, "runReady", LOOP, "Runs what is in the queue now, and nothing that it adds.", arrow=None),
        Box(ADAPTER, "runPlain", HOST, "A handle, a ready source or a step.", 1),
        Box(ADAPTER, "turnDone", HOST, "Everything that was ready has run.", arrow=None),
        Box(ADAPTER, "flushDirty", WRITE, "What callbacks wrote leaves; earlier if they run for long.", 1),
    ],
    back="until stop()",
)

LAYERS = Diagram(
    "layers",
    "The layers",
    [
        Box(PROGRAM, "asyncio.run", "", "Coroutines, protocols, libraries, servers.", arrow="asyncio's API"),
        Box(
            PYTHON,
            "Loop",
            "python/zloop/_loop.py",
            "Once per loop, connection or failure. It has two bases:",
            arrow=None,
        ),
        Box(
            ASYNCIO,
            "asyncio.SelectorEventLoop",
            "python/zloop/_loop.py",
            "Behind: create_connection, Server, start_tls's checks, shutdown, exception handlers.",
            1,
            arrow=None,
        ),
        Box(
            ADAPTER,
            "_engine.Loop",
            HOST,
            "In front, once per callback, packet or object: handles, timers, transports, listeners.",
            1,
            arrow="is the host of",
        ),
        Box(CORE, "LoopOver", LOOP, "Ready queue, timers, watches, inbox. Knows no Python.", arrow="asks"),
        Box(CORE, "Reactor", "src/core/reactor.zig", "epoll on Linux, kqueue on macOS and the BSDs."),
        Box(KERNEL, "kernel", "", "Readiness, sockets, pipes, children.", arrow=None),
    ],
)

CONNECTION = Diagram(
    "connection",
    "A connection of a server",
    [
        Box(ASYNCIO, "create_server", "", "Addresses, sockets, bind, listen, asyncio.Server."),
        Box(ADAPTER, "startServing", LISTENER, "A Listener is armed for reading.", arrow="a client"),
        Box(ADAPTER, "batch.begin", LISTENER, "One, or twice as many as the poll before; 128 at most."),
        Box(ADAPTER, "acceptPlain", LISTENER, "Calls the protocol factory."),
        Box(ADAPTER, "create", "src/cpython/stream.zig", "A StreamTransport owns the descriptor."),
        Box(ADAPTER, "start", CLOSE, "connection_made, then reading is armed."),
        Box(ADAPTER, "ready", READ, "One read a turn, as the protocol takes it."),
        Box(ADAPTER, "write", WRITE, "Bytes are queued; bytes objects are not copied."),
        Box(ADAPTER, "flushDirty", WRITE, "One system call by the end of the turn."),
        Box(ADAPTER, "closeTransport", CLOSE, "No more reading; the queue still leaves."),
        Box(ADAPTER, "connectionLost", CLOSE, "In a later turn: connection_lost, once."),
        Box(ADAPTER, "releaseDescriptor", CLOSE, "Out of the kernel and the table, closed."),
    ],
)

TLS_READ = Diagram(
    "tls-read",
    "A TLS record comes in",
    [
        Box(KERNEL, "recv", READ, "Ciphertext into the loop's read buffer."),
        Box(ADAPTER, "readTls", READ, "The StreamTransport below hands it up, uncopied."),
        Box(ADAPTER, "received", TLS_IN, "Channel.in is lent to OpenSSL for this call."),
        Box(ADAPTER, "decrypt", TLS_IN, "SSL_read_ex until all that came is used."),
        Box(ADAPTER, "deliver", TLS_IN, "One delivery holds all that has come."),
        Box(PROGRAM, "data_received", "", "Or get_buffer, or a StreamReader's buffer.", arrow=None),
    ],
)

TLS_WRITE = Diagram(
    "tls-write",
    "A TLS record goes out",
    [
        Box(PROGRAM, "transport.write", "", "Plaintext."),
        Box(ADAPTER, "write", TLS_OUT, "Of the SSLTransport."),
        Box(ADAPTER, "encrypt", TLS_OUT, "SSL_write_ex; without room it waits in backlog."),
        Box(ADAPTER, "Channel", "src/cpython/tls_bio.zig", "Records of one callback gather in its out."),
        Box(ADAPTER, "sendNow", TLS_OUT, "When the callback returns."),
        Box(ADAPTER, "sendBorrowed", WRITE, "The stream below; what is refused waits there."),
        Box(KERNEL, "send", WRITE, "One call.", arrow=None),
    ],
)

THREADS = Diagram(
    "threads",
    "Another thread wakes the loop",
    [
        Box(PROGRAM, "call_soon_threadsafe", SCHEDULE, "In any thread."),
        Box(
            ADAPTER,
            "postFromAnyThread",
            SCHEDULE,
            "Holding the GIL, straight to the ready queue; in a free-threaded build to the inbox.",
        ),
        Box(CORE, "wake", LOOP, "Asks the kernel only if the loop waits: once for a batch.", arrow="ends"),
        Box(KERNEL, "reactor.wait", LOOP, "In the loop's thread, without the GIL."),
        Box(CORE, "runReady", LOOP, "The whole batch, in order.", arrow=None),
    ],
)

DIAGRAMS = [LAYERS, TURN, CONNECTION, TLS_READ, TLS_WRITE, THREADS]


def wrapped(text: str, width_px: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) * TEXT_WIDTH_PX > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw(diagram: Diagram) -> str:
    body: list[str] = []
    back_px = 20 if diagram.back else 0
    left = MARGIN_PX + back_px
    y = MARGIN_PX
    first = last = 0
    for number, box in enumerate(diagram.boxes):
        x = left + box.inside * INDENT_PX
        width = BOX_PX - box.inside * INDENT_PX - back_px
        lines = wrapped(box.text, width - 2 * PADDING_PX)
        height = 2 * PADDING_PX + LINE_PX * (1 + len(lines)) - 4
        first = first or y + height // 2
        last = y + height // 2
        body.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{box.kind.fill}" '
            f'stroke="{box.kind.stroke}"/>'
        )
        row = y + PADDING_PX + 11
        body.append(text(x + PADDING_PX, row, box.name, 'class="name"'))
        where = box.file.rpartition("/")[2] if box.file else ""
        body.append(text(x + width - PADDING_PX, row, where, 'class="file" text-anchor="end"'))
        for line in lines:
            row += LINE_PX
            body.append(text(x + PADDING_PX, row, line))
        y += height
        if number < len(diagram.boxes) - 1:
            following = diagram.boxes[number + 1]
            if box.arrow is None:
                y += 4
                continue
            middle = left + following.inside * INDENT_PX + 34
            body.append(arrow(middle, y, y + GAP_PX))
            if box.arrow:
                body.append(text(middle + 10, y + GAP_PX - 7, box.arrow, 'class="file"'))
            y += GAP_PX
    if diagram.back:
        edge = MARGIN_PX + 4
        path = f"M {left} {last} H {edge} V {first} H {left - 2}"
        body.append(f'<path d="{path}" fill="none" stroke="#3f3f46" marker-end="url(#head)"/>')
        middle = (first + last) // 2
        turned = f'class="file" text-anchor="middle" transform="rotate(-90 {edge - 5} {middle})"'
        body.append(text(edge - 5, middle, diagram.back, turned))
    y += 12
    body += legend(diagram, y)
    y += LINE_PX * ((len(kinds(diagram)) + 1) // 2)
    height = y + MARGIN_PX - 4
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{height}" '
            f'viewBox="0 0 {WIDTH_PX} {height}" role="img" font-size="12.5" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">',
            f"<title>{escape(diagram.title)}</title>",
            "<style>.name{font:600 13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}"
            ".file{fill:#52525b;font-size:11.5px}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#3f3f46"/></marker></defs>',
            f'<rect width="{WIDTH_PX}" height="{height}" rx="6" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def kinds(diagram: Diagram) -> list[Kind]:
    return list(dict.fromkeys(box.kind for box in diagram.boxes))


def legend(diagram: Diagram, y: float) -> list[str]:
    parts = []
    for number, kind in enumerate(kinds(diagram)):
        x = MARGIN_PX + (number % 2) * 215
        row = y + LINE_PX * (number // 2)
        parts.append(
            f'<rect x="{x}" y="{row}" width="11" height="11" fill="{kind.fill}" stroke="{kind.stroke}"/>'
        )
        parts.append(text(x + 18, row + 10, kind.label, 'class="file"'))
    return parts


def arrow(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom - 1}" stroke="#3f3f46" marker-end="url(#head)"/>'


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x}" y="{y}" {attributes}>{escape(content)}</text>'


def main() -> int:
    ASSETS.mkdir(exist_ok=True)
    for diagram in DIAGRAMS:
        (ASSETS / f"{diagram.name}.svg").write_text(draw(diagram), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
