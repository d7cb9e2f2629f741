//! The loop's methods that make stream transports, listeners and pipe transports; asyncio's
//! create_connection, create_server, start_tls and connect_read_pipe end here.

const config = @import("config");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const listener = @import("listener.zig");
const loop_fds = @import("loop_fds.zig");
const loop_type = @import("loop_type.zig");
const pipe_read = @import("pipe_read.zig");
const pipe_write = @import("pipe_write.zig");
const stream = @import("stream.zig");
const stream_close = @import("stream_close.zig");
const tls = @import("tls.zig");

const Object = py.Object;

/// Since 3.15 asyncio hands a connection's context on, which its callbacks share.
const takes_context = config.py_minor >= 15;
const parameters = [_][:0]const u8{ "sock", "protocol", "waiter", "extra", "server" } ++
    if (takes_context) [_][:0]const u8{"context"} else [_][:0]const u8{};
const signature = "_make_socket_transport($self, sock, protocol, waiter=None, *, extra=None, server=None" ++
    (if (takes_context) ", context=None" else "") ++ ")\n--\n\nA StreamTransport over a connected socket, which it owns from now on.";

fn makeSocketTransport(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const slots = try args.parse("_make_socket_transport", &parameters, .{ .required = 2, .positional_max = 3 }, argv, names);
    try loop.checkUsable();
    const sock = slots[0].?;
    const context = if (takes_context) args.given(slots[5]) else null;
    if (context) |given| try py.checkContext(given);
    const fd = try loop_fds.ensureNoTransport(loop, sock);
    core.sys.setNoDelay(fd);
    const made = try stream.create(loop, slots[1].?, .{
        .fd = fd,
        .sock = sock,
        .context = context,
        .extra = args.given(slots[3]),
        .server = args.given(slots[4]),
        .waiter = args.given(slots[2]),
    });
    errdefer py.decref(made);
    try stream.keepPeerName(stream.of(made));
    try stream_close.queueStep(stream.of(made));
    return made;
}

pub const methods = [_]c.PyMethodDef{
    py.Method.keywords("_read_pipe", pipe_read.make, "_read_pipe($self, pipe, fd, protocol, waiter, extra, restores_mode, watches_peer)\n--\n\nA ReadPipeTransport, which owns the pipe from now on."),
    py.Method.keywords("_write_pipe", pipe_write.make, "_write_pipe($self, pipe, fd, protocol, waiter, extra, restores_mode, watches_peer)\n--\n\nA WritePipeTransport, which owns the pipe from now on."),
    py.Method.args("_make_tls_transport", tls.makeSSLTransport, "_make_tls_transport($self, protocol, sslcontext, waiter, server_side, server_hostname, call_connection_made, writing_paused, handshake_timeout, shutdown_timeout, /)\n--\n\nA SSLTransport, to be made the protocol of a StreamTransport; None if the direct engine cannot serve this context."),
    py.Method.noArgs("_tls_unavailable", tls.tlsUnavailable, "_tls_unavailable($self)\n--\n\nWhy the direct TLS engine cannot run here; None if it can."),
    py.Method.keywords("_make_socket_transport", makeSocketTransport, signature),
    listener.method,
};
