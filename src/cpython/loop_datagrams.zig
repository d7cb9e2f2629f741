//! The loop's method that makes datagram transports; asyncio's create_datagram_endpoint ends here.

const c = @import("c.zig");
const py = @import("py.zig");
const datagram = @import("datagram.zig");

pub const methods = [_]c.PyMethodDef{
    py.Method.keywords("_make_datagram_transport", datagram.make, "_make_datagram_transport($self, sock, protocol, address=None, waiter=None, extra=None)\n--\n\nA DatagramTransport over a socket, which it owns from now on."),
};
