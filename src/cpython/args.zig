//! Arguments of methods called by vectorcall, with CPython's error messages.

const c = @import("c.zig");
const py = @import("py.zig");

const Object = py.Object;

/// Sorts positional and keyword arguments into one slot per parameter, null where not given.
/// `argv` holds the positional values, then those of `names`.
pub fn parse(
    comptime function: [:0]const u8,
    comptime parameters: []const [:0]const u8,
    comptime options: struct { required: usize = 0, positional_max: ?usize = null },
    argv: []const *Object,
    names: ?*Object,
) py.Error![parameters.len]?*Object {
    var slots: [parameters.len]?*Object = @splat(null);
    const keyword_count = if (names) |n| py.tupleSize(n) else 0;
    const positional = argv[0 .. argv.len - keyword_count];
    const positional_max = options.positional_max orelse parameters.len;
    if (positional.len > positional_max) {
        return py.raiseFormat(c.PyExc_TypeError, function ++ "() takes at most %zd positional arguments (%zd given)", .{
            @as(c.Ssize, positional_max), @as(c.Ssize, @intCast(positional.len)),
        });
    }
    for (positional, 0..) |value, i| slots[i] = value;
    try fillNamed(function, parameters, &slots, argv[positional.len..], names);
    inline for (parameters[0..options.required], 0..) |parameter, i| {
        if (slots[i] == null) {
            return py.raise(c.PyExc_TypeError, function ++ "() missing required argument: '" ++ parameter ++ "'");
        }
    }
    return slots;
}

/// `values` are those of `names`, in its order.
fn fillNamed(
    comptime function: [:0]const u8,
    comptime parameters: []const [:0]const u8,
    slots: *[parameters.len]?*Object,
    values: []const *Object,
    names: ?*Object,
) py.Error!void {
    for (values, 0..) |value, k| {
        const name = py.tupleItemBorrowed(names.?, k);
        const index = inline for (parameters, 0..) |parameter, i| {
            if (c.PyUnicode_CompareWithASCIIString(name, parameter) == 0) break i;
        } else return py.raiseFormat(c.PyExc_TypeError, function ++ "() got an unexpected keyword argument '%U'", .{name});
        if (slots[index] != null) {
            return py.raiseFormat(c.PyExc_TypeError, function ++ "() got multiple values for argument '%U'", .{name});
        }
        slots[index] = value;
    }
}

/// `None` and "not given" are the same for most asyncio parameters.
pub fn given(slot: ?*Object) ?*Object {
    const object = slot orelse return null;
    return if (object == py.none()) null else object;
}

/// `[leading,] callback, *args, context=None`: what every scheduling method takes.
pub const Callback = struct {
    leading: ?*Object = null,
    callback: *Object,
    args: []const *Object,
    context: ?*Object = null,

    pub inline fn parse(
        comptime function: [:0]const u8,
        comptime leading_name: ?[:0]const u8,
        argv: []const *Object,
        names: ?*Object,
        context_name: *Object,
    ) py.Error!Callback {
        const leading_count = if (leading_name == null) 0 else 1;
        // Positional arguments, perhaps with `context=`: how asyncio's own tasks and futures call.
        const context_given = if (names) |n| py.tupleSize(n) == 1 and py.tupleItemBorrowed(n, 0) == context_name else false;
        const positional = argv[0 .. argv.len - @intFromBool(context_given)];
        if ((names == null or context_given) and positional.len > leading_count) {
            return .{
                .leading = if (leading_count == 1) argv[0] else null,
                .callback = positional[leading_count],
                .args = positional[leading_count + 1 ..],
                .context = if (context_given) given(argv[argv.len - 1]) else null,
            };
        }
        return parseNamed(function, leading_name, argv, names);
    }

    fn parseNamed(
        comptime function: [:0]const u8,
        comptime leading_name: ?[:0]const u8,
        argv: []const *Object,
        names: ?*Object,
    ) py.Error!Callback {
        const leading: []const [:0]const u8 = if (leading_name) |name| &.{name} else &.{};
        const parameters = leading ++ .{ "callback", "context" };
        const leading_count = parameters.len - 2;
        const name_count = if (names) |n| py.tupleSize(n) else 0;
        const positional = argv[0 .. argv.len - name_count];
        var slots: [parameters.len]?*Object = @splat(null);
        inline for (0..leading_count + 1) |i| {
            if (i < positional.len) slots[i] = positional[i];
        }
        try fillNamed(function, parameters, &slots, argv[positional.len..], names);
        inline for (0..leading_count + 1) |i| {
            if (slots[i] == null) {
                return py.raise(c.PyExc_TypeError, function ++ "() missing 1 required positional argument: '" ++ parameters[i] ++ "'");
            }
        }
        return .{
            .leading = if (leading_count == 1) slots[0] else null,
            .callback = slots[leading_count].?,
            .args = positional[@min(positional.len, leading_count + 1)..],
            .context = given(slots[leading_count + 1]),
        };
    }
};
