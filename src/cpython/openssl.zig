//! The OpenSSL that the running interpreter's `_ssl` uses, found at run time.
//!
//! Nothing is linked: the functions are looked up in the very library that `_ssl` has loaded, by way
//! of `_ssl`'s own file, whose dependencies the dynamic linker searches in order. A `_ssl` that is
//! part of the interpreter's binary is accepted only if the functions lie in that binary too.
//!
//! Before anything is trusted, `probe` takes the `SSL*` out of a throw-away SSLObject and checks it
//! from several sides; any doubt means "not available", and TLS runs on asyncio's sslproto then.
//! The result is kept in the module's state, the table for as long as the process lives.

const std = @import("std");
const c = @import("c.zig");
const py = @import("py.zig");
const tls_bio = @import("tls_bio.zig");
const State = @import("state.zig").State;

const Object = py.Object;

pub const Ssl = opaque {};
pub const Context = opaque {};
pub const Bio = opaque {};
pub const BioMethod = opaque {};

/// Field names are symbol names.
pub const Table = struct {
    SSL_read_ex: *const fn (*Ssl, [*]u8, usize, *usize) callconv(.c) c_int,
    SSL_write_ex: *const fn (*Ssl, [*]const u8, usize, *usize) callconv(.c) c_int,
    SSL_get_error: *const fn (*const Ssl, c_int) callconv(.c) c_int,
    SSL_pending: *const fn (*const Ssl) callconv(.c) c_int,
    SSL_has_pending: *const fn (*const Ssl) callconv(.c) c_int,
    SSL_shutdown: *const fn (*Ssl) callconv(.c) c_int,
    SSL_in_init: *const fn (*const Ssl) callconv(.c) c_int,
    SSL_set_bio: *const fn (*Ssl, ?*Bio, ?*Bio) callconv(.c) void,
    SSL_get_rbio: *const fn (*const Ssl) callconv(.c) ?*Bio,
    SSL_get_ex_data: *const fn (*const Ssl, c_int) callconv(.c) ?*anyopaque,
    SSL_get_SSL_CTX: *const fn (*const Ssl) callconv(.c) ?*Context,
    SSL_get_ssl_method: *const fn (*const Ssl) callconv(.c) ?*const anyopaque,
    SSL_ctrl: *const fn (*Ssl, c_int, c_long, ?*anyopaque) callconv(.c) c_long,
    TLS_client_method: *const fn () callconv(.c) ?*const anyopaque,
    BIO_meth_new: *const fn (c_int, [*:0]const u8) callconv(.c) ?*BioMethod,
    BIO_meth_set_write_ex: *const fn (*BioMethod, tls_bio.WriteFn) callconv(.c) c_int,
    BIO_meth_set_read_ex: *const fn (*BioMethod, tls_bio.ReadFn) callconv(.c) c_int,
    BIO_meth_set_ctrl: *const fn (*BioMethod, tls_bio.CtrlFn) callconv(.c) c_int,
    BIO_new: *const fn (*const BioMethod) callconv(.c) ?*Bio,
    BIO_free: *const fn (*Bio) callconv(.c) c_int,
    BIO_up_ref: *const fn (*Bio) callconv(.c) c_int,
    BIO_set_init: *const fn (*Bio, c_int) callconv(.c) void,
    BIO_set_data: *const fn (*Bio, ?*anyopaque) callconv(.c) void,
    BIO_get_data: *const fn (*Bio) callconv(.c) ?*anyopaque,
    BIO_set_flags: *const fn (*Bio, c_int) callconv(.c) void,
    BIO_clear_flags: *const fn (*Bio, c_int) callconv(.c) void,
    BIO_s_mem: *const fn () callconv(.c) ?*const anyopaque,
    ERR_peek_error: *const fn () callconv(.c) c_ulong,
    ERR_clear_error: *const fn () callconv(.c) void,
    OpenSSL_version_num: *const fn () callconv(.c) c_ulong,
    OpenSSL_version: *const fn (c_int) callconv(.c) ?[*:0]const u8,

    /// Functions report failure through a queue of the thread, which must be empty beforehand for
    /// `SSL_get_error` to be right. Others may have left something there.
    pub inline fn clearErrors(self: *const Table) void {
        if (self.ERR_peek_error() != 0) {
            @branchHint(.cold);
            self.ERR_clear_error();
        }
    }
};

pub const error_ssl = 1;
pub const error_want_read = 2;
pub const error_want_write = 3;
pub const error_zero_return = 6;

const ctrl_mode = 33;
const mode_release_buffers = 0x10;
/// The first version with all of the above; the end is the first that nobody has seen.
const version_min = 0x1010100f;
const version_end = 0x50000000;

/// Whether the direct engine can run, and with what.
pub const Availability = struct {
    known: bool = false,
    /// Why not. Null once `known` if it can.
    reason: ?[*:0]const u8 = null,
    table: Table = undefined,
    bio_method: *BioMethod = undefined,
};

/// The table, or null if TLS has to run on asyncio's sslproto.
pub fn get(state: *State) py.Error!?*const Table {
    if (!state.openssl.known) {
        @branchHint(.cold);
        state.openssl.reason = try probe(state);
        state.openssl.known = true;
    }
    return if (state.openssl.reason == null) &state.openssl.table else null;
}

/// Tries everything once; the answer is why it does not work, null if it does.
fn probe(state: *State) py.Error!?[*:0]const u8 {
    const reason = attempt(state) catch |err| {
        if (py.isExit() or py.matches(c.PyExc_MemoryError)) return err;
        c.PyErr_Clear();
        return "an object of the ssl module is not what it is expected to be";
    };
    return reason;
}

fn attempt(state: *State) py.Error!?[*:0]const u8 {
    const module = c.PyImport_ImportModule("_ssl") orelse {
        if (!py.matches(c.PyExc_ImportError)) return error.Python;
        c.PyErr_Clear();
        return "this Python has no ssl module";
    };
    defer py.decref(module);
    if (try resolve(module, &state.openssl.table)) |reason| return reason;
    const table = &state.openssl.table;
    const version = table.OpenSSL_version_num();
    if (version < version_min or version >= version_end) return "this version of OpenSSL is not known";
    const text = std.mem.span(table.OpenSSL_version(0) orelse return "OpenSSL does not tell its version");
    if (!std.mem.startsWith(u8, text, "OpenSSL ")) return "the TLS library is not OpenSSL";
    if (!tls_bio.install(table)) return "another OpenSSL is in use in this process";
    try importObjects(state, module);
    if (try verify(state)) |reason| return reason;
    return null;
}

/// Finds all functions, or says why not.
fn resolve(module: *Object, table: *Table) py.Error!?[*:0]const u8 {
    const file = c.PyObject_GetAttrString(module, "__file__");
    defer py.xdecref(file);
    var handle: ?*anyopaque = null;
    if (file) |path_object| {
        var length: c.Ssize = 0;
        const path = c.PyUnicode_AsUTF8AndSize(path_object, &length) orelse return error.Python;
        // The handle stays open: it keeps the library where its functions are.
        handle = std.c.dlopen(@ptrCast(path), dlopen_flags) orelse return "the library of _ssl cannot be opened again";
    } else {
        c.PyErr_Clear();
        // Null means the whole program's symbols.
        handle = std.c.dlopen(null, .{ .LAZY = true }) orelse return "the symbols of this program cannot be looked up";
    }
    inline for (@typeInfo(Table).@"struct".field_names) |name| {
        const symbol = std.c.dlsym(handle, name) orelse return "_ssl does not share its OpenSSL: " ++ name ++ " was not found";
        @field(table, name) = @ptrCast(@alignCast(symbol));
    }
    if (file == null and !isInterpreters(@ptrCast(table.SSL_read_ex))) return "OpenSSL's functions are not those of the interpreter";
    return null;
}

const dlopen_flags: std.c.RTLD = flags: {
    var flags: std.c.RTLD = .{ .LAZY = true };
    if (@hasField(std.c.RTLD, "NOLOAD")) flags.NOLOAD = true;
    break :flags flags;
};

const DlInfo = extern struct {
    fname: ?[*:0]const u8,
    fbase: ?*anyopaque,
    sname: ?[*:0]const u8,
    saddr: ?*anyopaque,
};
extern "c" fn dladdr(*const anyopaque, *DlInfo) c_int;

/// Whether a function lies in the same binary as the interpreter's.
fn isInterpreters(function: *const anyopaque) bool {
    var theirs: DlInfo = undefined;
    var own: DlInfo = undefined;
    if (dladdr(function, &theirs) == 0 or dladdr(@ptrCast(&c.Py_IncRef), &own) == 0) return false;
    return theirs.fbase == own.fbase;
}

fn importObjects(state: *State, module: *Object) py.Error!void {
    const ssl = try py.check(c.PyImport_ImportModule("ssl"));
    defer py.decref(ssl);
    state.ssl_object_type = try py.check(c.PyObject_GetAttrString(ssl, "SSLObject"));
    state.ssl_socket_type = @ptrCast(try py.check(c.PyObject_GetAttrString(module, "_SSLSocket")));
    state.ssl_error = try py.check(c.PyObject_GetAttrString(ssl, "SSLError"));
    state.ssl_certificate_error = try py.check(c.PyObject_GetAttrString(ssl, "CertificateError"));
    state.ssl_want_read_error = try py.check(c.PyObject_GetAttrString(ssl, "SSLWantReadError"));
    state.ssl_syscall_error = try py.check(c.PyObject_GetAttrString(ssl, "SSLSyscallError"));
    const memory_bio = try py.check(c.PyObject_GetAttrString(ssl, "MemoryBIO"));
    defer py.decref(memory_bio);
    // `wrap_bio` wants two; ours replace them at once, so one pair serves every connection. The same for both
    // would not do: `_ssl` counts a reference to each, OpenSSL takes one for both, and the count would overflow.
    state.ssl_unused_bio = try py.call(memory_bio, .{});
    state.ssl_unused_bio_out = try py.call(memory_bio, .{});
    state.ssl_handshake_timeout = try py.newFloat(60);
    state.ssl_shutdown_timeout = try py.newFloat(30);
    state.wrap_bio_kwnames = try py.newTuple(.{ state.name(.server_side), state.name(.server_hostname) });
}

/// The machine words of an object behind its header.
fn wordsOf(object: *Object) [*]const usize {
    const bytes: [*]const u8 = @ptrCast(object);
    return @ptrCast(@alignCast(bytes + @sizeOf(c.PyObject)));
}

/// The `SSL*` of an SSLObject, or null if it is not laid out as all versions so far: a reference to
/// a socket (null for an SSLObject), the `SSL*`, the context. `SSL*` and object know each other.
/// A program can take the owner away from the SSLObject, so whoever uses the pointer holds it.
pub fn pointerOf(state: *State, table: *const Table, ssl_object: *Object, context: *Object) py.Error!?Found {
    const inner = try py.getAttr(ssl_object, state.name(._sslobj));
    const ssl = pointerIn(state, table, inner, context) orelse {
        py.decref(inner);
        return null;
    };
    return .{ .ssl = ssl, .owner = inner };
}

pub const Found = struct {
    ssl: *Ssl,
    /// A new reference.
    owner: *Object,
};

fn pointerIn(state: *State, table: *const Table, inner: *Object, context: *Object) ?*Ssl {
    if (!py.isExact(inner, state.ssl_socket_type)) return null;
    const words = wordsOf(inner);
    if (words[0] != 0 or words[2] != @intFromPtr(context)) return null;
    if (words[1] == 0 or words[1] % @alignOf(usize) != 0) return null;
    const ssl: *Ssl = @ptrFromInt(words[1]);
    if (table.SSL_get_ex_data(ssl, 0) != @as(*anyopaque, @ptrCast(inner))) return null;
    return ssl;
}

/// Checks on a throw-away object that pointers are where they are expected, that `_ssl` and the
/// table are the same library, and that a handshake speaks through a BIO of ours.
fn verify(state: *State) py.Error!?[*:0]const u8 {
    const table = &state.openssl.table;
    const ssl_module = try py.check(c.PyImport_ImportModule("ssl"));
    defer py.decref(ssl_module);
    const context_type = try py.check(c.PyObject_GetAttrString(ssl_module, "SSLContext"));
    defer py.decref(context_type);
    const protocol = try py.check(c.PyObject_GetAttrString(ssl_module, "PROTOCOL_TLS_CLIENT"));
    defer py.decref(protocol);
    const context = try py.call(context_type, .{protocol});
    defer py.decref(context);
    const host = try py.check(c.PyUnicode_FromString("localhost"));
    defer py.decref(host);
    const ssl_object = try wrap(state, context, false, host);
    defer py.decref(ssl_object);
    if (!py.isExact(ssl_object, @ptrCast(state.ssl_object_type))) return "ssl.SSLObject is not itself";
    const found = (try pointerOf(state, table, ssl_object, context)) orelse return "the layout of _ssl's objects is not known";
    defer py.decref(found.owner);
    const ssl = found.ssl;

    if (@intFromPtr(table.SSL_get_SSL_CTX(ssl)) != wordsOf(context)[0]) return "the layout of _ssl's contexts is not known";
    if (table.SSL_get_ssl_method(ssl) != table.TLS_client_method()) return "_ssl uses another libssl than the one found";
    const bio = table.SSL_get_rbio(ssl) orelse return "the SSL object has no BIO";
    if (@intFromPtr(bio) != wordsOf(state.ssl_unused_bio)[0]) return "the layout of _ssl's BIOs is not known";
    const memory_method = @intFromPtr(table.BIO_s_mem());
    const words: *const [2]usize = @ptrCast(@alignCast(bio));
    if (words[0] != memory_method and words[1] != memory_method) return "_ssl uses another libcrypto than the one found";

    state.openssl.bio_method = tls_bio.newMethod(table) orelse return "a BIO method cannot be made";
    var channel: tls_bio.Channel = .{};
    defer channel.deinit();
    const own = tls_bio.attach(table, state.openssl.bio_method, ssl, &channel) orelse return "a BIO cannot be made";
    defer tls_bio.detach(table, own);
    if (py.callMethod(ssl_object, state.name(.do_handshake), .{})) |result| {
        py.decref(result);
        return "a handshake without a peer succeeded";
    } else |err| {
        if (!py.matches(state.ssl_want_read_error)) return err;
        c.PyErr_Clear();
    }
    const handshake_record = 0x16;
    if (channel.out.items.len < 16 or channel.out.items[0] != handshake_record) return "a handshake does not speak through the BIO";
    return null;
}

/// `context.wrap_bio(…)`, as asyncio calls it.
pub fn wrap(state: *State, context: *Object, server_side: bool, server_hostname: *Object) py.Error!*Object {
    const stack = [_]?*Object{ null, context, state.ssl_unused_bio, state.ssl_unused_bio_out, py.boolBorrowed(server_side), server_hostname };
    const offset: usize = @as(usize, 1) << (@bitSizeOf(usize) - 1);
    return py.check(c.PyObject_VectorcallMethod(state.name(.wrap_bio), stack[1..].ptr, 3 | offset, state.wrap_bio_kwnames));
}

/// Lets OpenSSL give its record buffers back whenever they are empty: an idle connection holds none.
pub fn releaseBuffersWhenIdle(table: *const Table, ssl: *Ssl) void {
    _ = table.SSL_ctrl(ssl, ctrl_mode, mode_release_buffers, null);
}
