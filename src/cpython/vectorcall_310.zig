//! `PyObject_Vectorcall` for CPython 3.10, which exports only the variant that takes its keywords as
//! a dict. Without keywords both are the same call.

const c = @import("c.zig");
const py = @import("py.zig");

const Object = py.Object;

pub fn call(callable: *Object, args: ?[*]const ?*Object, count_and_flag: usize, names: ?*Object) ?*Object {
    const keyword_names = names orelse return c.PyObject_VectorcallDict(callable, args, count_and_flag, null);
    const keywords = c.PyDict_New() orelse return null;
    defer py.decref(keywords);
    const positional_count = count_and_flag & ~py.arguments_offset;
    for (0..py.tupleSize(keyword_names)) |i| {
        const name = py.tupleItemBorrowed(keyword_names, i);
        if (c.PyDict_SetItem(keywords, name, args.?[positional_count + i].?) < 0) return null;
    }
    return c.PyObject_VectorcallDict(callable, args, count_and_flag, keywords);
}
