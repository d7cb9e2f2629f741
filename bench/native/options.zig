//! Command lines of the form `--name value`, parsed into a struct whose field names are the option names.
//! A field of type bool is a flag; underscores in a field are dashes on the command line.

const std = @import("std");
const sys = @import("sys.zig");

pub fn parse(comptime Options: type, arguments: *std.process.Args.Iterator) Options {
    var options: Options = .{};
    while (arguments.next()) |argument| {
        if (!std.mem.startsWith(u8, argument, "--")) sys.fatal("unexpected argument {s}", .{argument});
        if (!setField(Options, &options, argument[2..], arguments)) sys.fatal("unknown option {s}", .{argument});
    }
    return options;
}

fn setField(comptime Options: type, options: *Options, name: []const u8, rest: *std.process.Args.Iterator) bool {
    const info = @typeInfo(Options).@"struct";
    inline for (info.field_names, info.field_types) |field_name, Field| {
        if (nameMatches(field_name, name)) {
            if (Field == bool) {
                @field(options, field_name) = true;
                return true;
            }
            const text = rest.next() orelse sys.fatal("--{s} needs a value", .{name});
            @field(options, field_name) = parseValue(Field, name, text);
            return true;
        }
    }
    return false;
}

fn nameMatches(field_name: []const u8, name: []const u8) bool {
    if (field_name.len != name.len) return false;
    for (field_name, name) |a, b| if (a != b and !(a == '_' and b == '-')) return false;
    return true;
}

fn parseValue(comptime Field: type, name: []const u8, text: [:0]const u8) Field {
    return switch (Field) {
        ?[:0]const u8, [:0]const u8 => text,
        f64 => std.fmt.parseFloat(f64, text) catch sys.fatal("--{s}: not a number: {s}", .{ name, text }),
        else => std.fmt.parseInt(Field, text, 10) catch sys.fatal("--{s}: not a number: {s}", .{ name, text }),
    };
}
