pub const Kernel = struct {};
