//! add_reader, add_writer and their kin, public and internal.

const std = @import("std");
const config = @import("config");
const core = @import("core");
const c = @import("c.zig");
const py = @import("py.zig");
const args = @import("args.zig");
const fd_watch = @import("fd_watch.zig");
const handle = @import("handle.zig");
const loop_type = @import("loop_type.zig");
const Source = @import("source.zig").Source;

const Object = py.Object;
const LoopFields = loop_type.Fields;

/// A descriptor number from an int or an object with `fileno()`, with the errors of `selectors`.
pub fn descriptor(given: *Object) py.Error!core.sys.fd_t {
    const fd = c.PyObject_AsFileDescriptor(given);
    if (fd >= 0) return fd;
    if (py.matches(c.PyExc_TypeError)) {
        c.PyErr_Clear();
        return convertible(given) orelse py.raiseFormat(c.PyExc_ValueError, "Invalid file object: %R", .{given});
    }
    return error.Python;
}

/// As in `selectors`, `fileno()` may give anything that `int()` takes.
fn convertible(given: *Object) ?core.sys.fd_t {
    const number = number: {
        const method = c.PyObject_GetAttrString(given, "fileno") orelse break :number null;
        defer py.decref(method);
        const result = c.PyObject_CallNoArgs(method) orelse break :number null;
        defer py.decref(result);
        break :number c.PyNumber_Long(result);
    };
    defer py.xdecref(number);
    const fd = if (number) |n| c.PyLong_AsLong(n) else -1;
    if (c.PyErr_Occurred() != null) c.PyErr_Clear();
    return if (fd < 0) null else std.math.cast(core.sys.fd_t, fd);
}

/// asyncio's guard for descriptors that a live transport owns. One that is closing is live while it
/// still has bytes to send: asyncio would let both use the descriptor, here a number has one watch.
pub fn ensureNoTransport(loop: *LoopFields, given: *Object) py.Error!core.sys.fd_t {
    const fd = try descriptor(given);
    const watch = loop.core.watches.find(fd) orelse return fd;
    const source: *Source = .ofWatch(watch);
    if (!source.vtable.is_transport) return fd;
    const transport = py.newRef(source.object);
    defer py.decref(transport);
    const closing = try py.callMethod(transport, loop.state.name(.is_closing), .{});
    defer py.decref(closing);
    if (try py.isTrue(closing) and !(source.watch.armed.write and loop.core.isKnown(&source.watch))) return fd;
    return py.raiseFormat(c.PyExc_RuntimeError, "File descriptor %R is used by transport %R", .{ given, transport });
}

/// Of the private pair only, as in asyncio.
const takes_context = config.py_minor >= 15;
const context_parameter = if (takes_context) ", context=None" else "";

fn Add(comptime name: [:0]const u8, comptime direction: fd_watch.Direction) type {
    return struct {
        fn public(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
            const loop = loop_type.of(object);
            const parsed = try args.Callback.parse(name, "fd", argv, names, loop.state.name(.context));
            const fd = try ensureNoTransport(loop, parsed.leading.?);
            if (parsed.context != null) return unexpectedContext();
            py.decref(try register(loop, fd, parsed));
            return py.newNone();
        }

        fn internal(object: *Object, argv: []const *Object, names: ?*Object) py.Error!*Object {
            const loop = loop_type.of(object);
            const parsed = try args.Callback.parse("_" ++ name, "fd", argv, names, loop.state.name(.context));
            if (!takes_context and parsed.context != null) return unexpectedContext();
            return register(loop, try descriptor(parsed.leading.?), parsed);
        }

        fn unexpectedContext() py.Error {
            return py.raise(c.PyExc_TypeError, name ++ "() got an unexpected keyword argument 'context'");
        }

        fn register(loop: *LoopFields, fd: core.sys.fd_t, parsed: args.Callback) py.Error!*Object {
            try loop.checkUsable();
            const scheduled = try handle.create(loop, .soon, parsed);
            errdefer py.decref(scheduled);
            try handle.makeLasting(scheduled);
            try fd_watch.add(loop, fd, direction, scheduled, parsed.leading);
            return scheduled;
        }
    };
}

/// A socket that has been closed has no number left to look for. asyncio looks for the object itself.
fn isClosedFile(loop: *LoopFields, given: *Object) py.Error!bool {
    if (c.PyObject_HasAttrString(given, "fileno") == 0) return false;
    const number = try py.callMethod(given, loop.state.name(.fileno), .{});
    defer py.decref(number);
    const fd = c.PyLong_AsLong(number);
    if (fd == -1 and c.PyErr_Occurred() != null) {
        c.PyErr_Clear();
        return false;
    }
    return fd < 0;
}

fn Remove(comptime direction: fd_watch.Direction) type {
    return struct {
        fn public(object: *Object, fd_object: *Object) py.Error!*Object {
            const loop = loop_type.of(object);
            if (try isClosedFile(loop, fd_object)) return ofClosed(loop, fd_object);
            const fd = try ensureNoTransport(loop, fd_object);
            if (loop.closed) return py.newBool(false);
            return py.newBool(try fd_watch.remove(loop, fd, direction));
        }

        fn internal(object: *Object, fd_object: *Object) py.Error!*Object {
            const loop = loop_type.of(object);
            if (loop.closed) return py.newBool(false);
            const fd = c.PyObject_AsFileDescriptor(fd_object);
            if (fd < 0) {
                c.PyErr_Clear();
                return ofClosed(loop, fd_object);
            }
            return py.newBool(try fd_watch.remove(loop, fd, direction));
        }

        fn ofClosed(loop: *LoopFields, file: *Object) py.Error!*Object {
            const fd = fd_watch.numberOfClosed(loop, file) orelse return py.newBool(false);
            return py.newBool(try fd_watch.remove(loop, fd, direction));
        }
    };
}

fn ensureNoTransportMethod(object: *Object, given: *Object) py.Error!*Object {
    _ = try ensureNoTransport(loop_type.of(object), given);
    return py.newNone();
}

/// What a descriptor is watched for, as the event mask of `selectors`; 0 for nothing.
fn watchedEvents(object: *Object, given: *Object) py.Error!*Object {
    const loop = loop_type.of(object);
    const watch = loop.core.watches.find(try descriptor(given)) orelse return py.newInt(0);
    return py.newInt(@as(c_int, @intFromBool(watch.armed.read)) | @as(c_int, @intFromBool(watch.armed.write)) << 1);
}

const AddReader = Add("add_reader", .read);
const AddWriter = Add("add_writer", .write);
const RemoveReader = Remove(.read);
const RemoveWriter = Remove(.write);

pub const methods = [_]c.PyMethodDef{
    py.Method.keywords("add_reader", AddReader.public, "add_reader($self, fd, callback, *args)\n--\n\nasyncio.loop.add_reader()."),
    py.Method.keywords("add_writer", AddWriter.public, "add_writer($self, fd, callback, *args)\n--\n\nasyncio.loop.add_writer()."),
    py.Method.oneArg("remove_reader", RemoveReader.public, "remove_reader($self, fd)\n--\n\nasyncio.loop.remove_reader()."),
    py.Method.oneArg("remove_writer", RemoveWriter.public, "remove_writer($self, fd)\n--\n\nasyncio.loop.remove_writer()."),
    py.Method.keywords("_add_reader", AddReader.internal, "_add_reader($self, fd, callback, *args" ++ context_parameter ++ ")\n--\n\nadd_reader without the transport check; gives the handle."),
    py.Method.keywords("_add_writer", AddWriter.internal, "_add_writer($self, fd, callback, *args" ++ context_parameter ++ ")\n--\n\nadd_writer without the transport check; gives the handle."),
    py.Method.oneArg("_remove_reader", RemoveReader.internal, "_remove_reader($self, fd)\n--\n\nWhether there was a reader."),
    py.Method.oneArg("_remove_writer", RemoveWriter.internal, "_remove_writer($self, fd)\n--\n\nWhether there was a writer."),
    py.Method.oneArg("_ensure_fd_no_transport", ensureNoTransportMethod, "_ensure_fd_no_transport($self, fd)\n--\n\nRaises RuntimeError if a transport owns the descriptor."),
    py.Method.oneArg("_watched_events", watchedEvents, "_watched_events($self, fd)\n--\n\nThe selectors event mask the descriptor is watched for."),
};
