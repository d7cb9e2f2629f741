//! Unit tests of the benchmark programs: `python -m ziglang test -lc bench/native/test.zig`.

test {
    _ = @import("histogram.zig");
    _ = @import("load_stream.zig");
    _ = @import("response.zig");
}
