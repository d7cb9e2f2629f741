//! Development only: the core's tests and the check that everything compiles for every supported system.
//! An installed zloop is built by build_tools/engine.py, which needs no build runner.
//!
//!     zig build test [-Doptimize=safe] [-Dtest-filter=TEXT]
//!     zig build check

const std = @import("std");
const builtin = @import("builtin");

comptime {
    const wanted: std.SemanticVersion = .{ .major = 0, .minor = 17, .patch = 1 };
    if (builtin.zig_version.order(wanted) != .eq) {
        @compileError("zloop is built with Zig 0.17.1: python -m pip install ziglang==0.17.1");
    }
}

/// One triple a line; build_tools/check_targets.py reads the same list.
const triples = @embedFile("build_tools/targets.txt");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const filters = b.option([]const []const u8, "test-filter", "Run only tests whose name contains this") orelse &.{};

    const core_tests = b.addTest(.{ .root_module = coreModule(b, target, optimize), .filters = filters });
    const test_step = b.step("test", "Run the core's tests");
    test_step.dependOn(&b.addRunArtifact(core_tests).step);

    const check_step = b.step("check", "Compile the core's tests and the engine for every supported system");
    var lines = std.mem.tokenizeScalar(u8, triples, '\n');
    while (lines.next()) |triple| {
        const query = std.Build.parseTargetQuery(.{ .arch_os_abi = triple }) catch @panic("bad line in targets.txt");
        const system = b.resolveTargetQuery(query);
        check_step.dependOn(&b.addTest(.{ .root_module = coreModule(b, system, .debug) }).step);
        check_step.dependOn(&engine(b, system).step);
    }
    b.default_step = test_step;
}

fn coreModule(b: *std.Build, target: std.Build.ResolvedTarget, optimize: std.lang.OptimizeMode) *std.Build.Module {
    return b.createModule(.{
        .root_source_file = b.path("src/core/root.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
    });
}

/// The extension as build_tools/engine.py makes it, for one Python version: a check of types, never installed.
fn engine(b: *std.Build, target: std.Build.ResolvedTarget) *std.Build.Step.Compile {
    const config = b.addWriteFiles().add("config.zig",
        \\pub const py_major: u32 = 3;
        \\pub const py_minor: u32 = 13;
        \\pub const gil_disabled: bool = false;
        \\pub const py_debug: bool = false;
        \\pub const zloop_version: []const u8 = "0";
        \\pub const backend = .native;
        \\
    );
    const module = b.createModule(.{
        .root_source_file = b.path("src/cpython/module.zig"),
        .target = target,
        .optimize = .debug,
        .link_libc = true,
        .imports = &.{
            .{ .name = "core", .module = coreModule(b, target, .debug) },
            .{ .name = "config", .module = b.createModule(.{ .root_source_file = config }) },
        },
    });
    const library = b.addLibrary(.{ .name = "_engine", .linkage = .dynamic, .root_module = module });
    library.linker_allow_shlib_undefined = true;
    return library;
}
