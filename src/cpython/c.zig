//! The part of CPython's C API that zloop uses, declared by hand.
//!
//! Translating Python.h costs minutes on a cold machine and yields broken declarations on 3.13 and
//! later; these few lines cost nothing and are the same on every LP64 system. Layouts that are
//! relied on (object header, bytes) are verified against the running interpreter at import, see
//! `layout.zig`. This file declares and nothing else.

const config = @import("config");

pub const Ssize = isize;

/// The object header. Its first words count references, in a form that differs by version;
/// `py.zig` is the only reader.
pub const PyObject = if (config.gil_disabled) extern struct {
    ob_tid: usize,
    ob_flags: u16,
    ob_mutex: u8,
    ob_gc_bits: u8,
    ob_ref_local: u32,
    ob_ref_shared: isize,
    ob_type: *PyTypeObject,
} else extern struct {
    ob_refcnt: isize,
    ob_type: *PyTypeObject,
};

pub const PyVarObject = extern struct {
    ob_base: PyObject,
    ob_size: Ssize,
};

/// Opaque but for its header: every type of ours is a heap type made from a spec.
pub const PyTypeObject = extern struct {
    ob_base: PyVarObject,
};

pub const PyBytesObject = extern struct {
    ob_base: PyVarObject,
    ob_shash: Ssize,
    ob_sval: [1]u8,
};

pub const PyCFunction = *const anyopaque;
pub const visitproc = *const fn (?*PyObject, ?*anyopaque) callconv(.c) c_int;

pub const PyMethodDef = extern struct {
    ml_name: ?[*:0]const u8 = null,
    ml_meth: ?PyCFunction = null,
    ml_flags: c_int = 0,
    ml_doc: ?[*:0]const u8 = null,
};

pub const PyGetSetDef = extern struct {
    name: ?[*:0]const u8 = null,
    get: ?*const fn (*PyObject, ?*anyopaque) callconv(.c) ?*PyObject = null,
    set: ?*const fn (*PyObject, ?*PyObject, ?*anyopaque) callconv(.c) c_int = null,
    doc: ?[*:0]const u8 = null,
    closure: ?*anyopaque = null,
};

pub const PyMemberDef = extern struct {
    name: ?[*:0]const u8 = null,
    type: c_int = 0,
    offset: Ssize = 0,
    flags: c_int = 0,
    doc: ?[*:0]const u8 = null,
};

pub const PyType_Slot = extern struct { slot: c_int = 0, pfunc: ?*const anyopaque = null };

pub const PyType_Spec = extern struct {
    name: [*:0]const u8,
    basicsize: c_int,
    itemsize: c_int = 0,
    flags: c_uint,
    slots: [*]const PyType_Slot,
};

pub const PyModuleDef_Slot = extern struct { slot: c_int = 0, value: ?*const anyopaque = null };

pub const PyModuleDef_Base = extern struct {
    ob_base: PyObject,
    m_init: ?*anyopaque,
    m_index: Ssize,
    m_copy: ?*PyObject,
};

pub const PyModuleDef = extern struct {
    m_base: PyModuleDef_Base,
    m_name: [*:0]const u8,
    m_doc: ?[*:0]const u8,
    m_size: Ssize,
    m_methods: ?[*]const PyMethodDef,
    m_slots: ?[*]const PyModuleDef_Slot,
    m_traverse: ?*const fn (*PyObject, visitproc, ?*anyopaque) callconv(.c) c_int,
    m_clear: ?*const fn (*PyObject) callconv(.c) c_int,
    m_free: ?*const fn (?*anyopaque) callconv(.c) void,
};

pub const Py_buffer = extern struct {
    buf: ?[*]u8,
    obj: ?*PyObject,
    len: Ssize,
    itemsize: Ssize,
    readonly: c_int,
    ndim: c_int,
    format: ?[*:0]u8,
    shape: ?[*]Ssize,
    strides: ?[*]Ssize,
    suboffsets: ?[*]Ssize,
    internal: ?*anyopaque,
};

pub const METH_VARARGS = 0x0001;
pub const METH_KEYWORDS = 0x0002;
pub const METH_NOARGS = 0x0004;
pub const METH_O = 0x0008;
pub const METH_FASTCALL = 0x0080;

pub const Py_TPFLAGS_DISALLOW_INSTANTIATION = 1 << 7;
pub const Py_TPFLAGS_IMMUTABLETYPE = 1 << 8;
pub const Py_TPFLAGS_BASETYPE = 1 << 10;
pub const Py_TPFLAGS_HAVE_GC = 1 << 14;
pub const Py_TPFLAGS_DEFAULT = 1 << 18;

pub const Py_tp_dealloc = 52;
pub const Py_tp_doc = 56;
pub const Py_tp_members = 72;
pub const Py_tp_getset = 73;
pub const Py_tp_methods = 64;
pub const Py_tp_new = 65;
pub const Py_tp_repr = 66;
pub const Py_tp_setattro = 69;
pub const Py_tp_traverse = 71;
pub const Py_tp_clear = 51;
pub const Py_tp_finalize = 80;
pub const Py_tp_iter = 62;
pub const Py_tp_iternext = 63;
pub const Py_am_await = 77;

pub const Py_mod_exec = 2;
pub const Py_mod_multiple_interpreters = 3;
pub const Py_mod_gil = 4;
/// Values of the two slots above, as pointers.
pub const Py_MOD_PER_INTERPRETER_GIL_SUPPORTED: *const anyopaque = @ptrFromInt(2);
pub const Py_MOD_GIL_NOT_USED: *const anyopaque = @ptrFromInt(1);

pub const T_PYSSIZET = 19;
pub const READONLY = 1;

pub const Py_LT = 0;
pub const Py_EQ = 2;

pub const PyBUF_SIMPLE = 0;
pub const PyBUF_WRITABLE = 1;

pub extern var PyBytes_Type: PyTypeObject;
pub extern var PyCFunction_Type: PyTypeObject;
pub extern var PyContext_Type: PyTypeObject;
pub extern var PyFunction_Type: PyTypeObject;
pub extern var PyByteArray_Type: PyTypeObject;
pub extern var PyMemoryView_Type: PyTypeObject;
pub extern var PyTuple_Type: PyTypeObject;
pub extern var PyBool_Type: PyTypeObject;
pub extern var PyFloat_Type: PyTypeObject;
pub extern var PyTraceBack_Type: PyTypeObject;
pub extern var PyType_Type: PyTypeObject;
pub extern var PyUnicode_Type: PyTypeObject;
pub extern var PySuper_Type: PyTypeObject;
pub extern var PyLong_Type: PyTypeObject;
pub extern var _Py_NoneStruct: PyObject;
pub extern var _Py_TrueStruct: PyObject;
pub extern var _Py_FalseStruct: PyObject;
pub extern var _Py_NotImplementedStruct: PyObject;

pub extern var PyExc_AssertionError: *PyObject;
pub extern var PyExc_BaseException: *PyObject;
pub extern var PyExc_ConnectionAbortedError: *PyObject;
pub extern var PyExc_ConnectionResetError: *PyObject;
pub extern var PyExc_Exception: *PyObject;
pub extern var PyExc_MemoryError: *PyObject;
pub extern var PyExc_ConnectionError: *PyObject;
pub extern var PyExc_BrokenPipeError: *PyObject;
pub extern var PyExc_BlockingIOError: *PyObject;
pub extern var PyExc_BufferError: *PyObject;
pub extern var PyExc_ImportError: *PyObject;
pub extern var PyExc_InterruptedError: *PyObject;
pub extern var PyExc_KeyboardInterrupt: *PyObject;
pub extern var PyExc_NotImplementedError: *PyObject;
pub extern var PyExc_OSError: *PyObject;
pub extern var PyExc_OverflowError: *PyObject;
pub extern var PyExc_ResourceWarning: *PyObject;
pub extern var PyExc_RuntimeError: *PyObject;
pub extern var PyExc_RuntimeWarning: *PyObject;
pub extern var PyExc_StopIteration: *PyObject;
pub extern var PyExc_SystemError: *PyObject;
pub extern var PyExc_SystemExit: *PyObject;
pub extern var PyExc_TypeError: *PyObject;
pub extern var PyExc_ValueError: *PyObject;

pub extern fn Py_IncRef(?*PyObject) void;
pub extern fn Py_DecRef(?*PyObject) void;
pub extern fn _Py_Dealloc(*PyObject) void;
pub extern fn _Py_NewReference(*PyObject) void;

pub extern fn PyModuleDef_Init(*PyModuleDef) ?*PyObject;
pub extern fn PyModule_GetState(*PyObject) ?*anyopaque;
pub extern fn PyModule_AddObjectRef(*PyObject, [*:0]const u8, *PyObject) c_int;
pub extern fn PyModule_AddStringConstant(*PyObject, [*:0]const u8, [*:0]const u8) c_int;
pub extern fn PyModule_AddIntConstant(*PyObject, [*:0]const u8, c_long) c_int;
pub extern fn PyType_FromModuleAndSpec(*PyObject, *const PyType_Spec, ?*PyObject) ?*PyObject;
pub extern fn PyType_GetModuleState(*PyTypeObject) ?*anyopaque;
pub extern fn PyType_IsSubtype(*PyTypeObject, *PyTypeObject) c_int;
pub extern fn PyType_GenericAlloc(*PyTypeObject, Ssize) ?*PyObject;
pub extern fn PyImport_ImportModule([*:0]const u8) ?*PyObject;

pub extern fn PyObject_Malloc(usize) ?*anyopaque;
pub extern fn PyObject_Free(*anyopaque) void;
pub extern fn PyObject_Init(*PyObject, *PyTypeObject) *PyObject;
pub extern fn _PyObject_GC_New(*PyTypeObject) ?*PyObject;
pub extern fn PyObject_GC_Track(*PyObject) void;
pub extern fn PyObject_GC_UnTrack(*PyObject) void;
pub extern fn PyObject_GC_Del(*PyObject) void;
pub extern fn PyObject_ClearWeakRefs(*PyObject) void;
pub extern fn PyObject_CallFinalizerFromDealloc(*PyObject) c_int;

pub extern fn PyObject_GetAttr(*PyObject, *PyObject) ?*PyObject;
pub extern fn PyObject_SetAttr(*PyObject, *PyObject, ?*PyObject) c_int;
pub extern fn PyObject_GenericSetAttr(*PyObject, *PyObject, ?*PyObject) c_int;
pub extern fn PyObject_GenericGetDict(*PyObject, ?*anyopaque) callconv(.c) ?*PyObject;
pub extern fn PyObject_GenericSetDict(*PyObject, ?*PyObject, ?*anyopaque) callconv(.c) c_int;
pub extern fn PyObject_GetAttrString(*PyObject, [*:0]const u8) ?*PyObject;
pub extern fn PyObject_HasAttrString(*PyObject, [*:0]const u8) c_int;
pub extern fn PyObject_GetItem(*PyObject, *PyObject) ?*PyObject;
pub extern fn PyObject_IsTrue(*PyObject) c_int;
pub extern fn PyObject_IsInstance(*PyObject, *PyObject) c_int;
pub extern fn PyObject_Repr(*PyObject) ?*PyObject;
pub extern fn PyObject_GetIter(*PyObject) ?*PyObject;
pub extern fn PyIter_Next(*PyObject) ?*PyObject;
pub extern fn PyObject_Size(*PyObject) Ssize;
pub extern fn PyObject_RichCompareBool(*PyObject, *PyObject, c_int) c_int;
pub extern fn PyObject_AsFileDescriptor(*PyObject) c_int;
pub extern fn PyCallable_Check(*PyObject) c_int;

pub extern fn PyObject_VectorcallMethod(*PyObject, [*]const ?*PyObject, usize, ?*PyObject) ?*PyObject;
pub extern fn PyObject_CallNoArgs(*PyObject) ?*PyObject;
pub extern fn PyObject_Call(*PyObject, *PyObject, ?*PyObject) ?*PyObject;

pub extern fn PyContext_CopyCurrent() ?*PyObject;
pub extern fn PyContext_Enter(*PyObject) c_int;
pub extern fn PyContext_Exit(*PyObject) c_int;

pub extern fn PyErr_Occurred() ?*PyObject;
pub extern fn PyErr_Clear() void;
pub extern fn PyErr_NoMemory() ?*PyObject;
pub extern fn PyErr_SetString(*PyObject, [*:0]const u8) void;
pub extern fn PyErr_SetObject(*PyObject, *PyObject) void;
pub extern fn PyErr_SetNone(*PyObject) void;
pub extern fn PyErr_Format(*PyObject, [*:0]const u8, ...) ?*PyObject;
pub extern fn PyErr_Fetch(*?*PyObject, *?*PyObject, *?*PyObject) void;
pub extern fn PyErr_Restore(?*PyObject, ?*PyObject, ?*PyObject) void;
pub extern fn PyErr_NormalizeException(*?*PyObject, *?*PyObject, *?*PyObject) void;
pub extern fn PyErr_ExceptionMatches(*PyObject) c_int;
pub extern fn PyErr_GivenExceptionMatches(*PyObject, *PyObject) c_int;
pub extern fn PyErr_WriteUnraisable(?*PyObject) void;
pub extern fn PyErr_CheckSignals() c_int;
pub extern fn PyException_SetTraceback(*PyObject, *PyObject) c_int;

pub extern fn PyEval_SaveThread() *anyopaque;
pub extern fn PyEval_RestoreThread(*anyopaque) void;
pub extern fn PyThread_get_thread_ident() c_ulong;
pub extern fn PyThreadState_SetAsyncExc(thread_id: c_ulong, exception: ?*PyObject) c_int;
pub extern fn PyThread_allocate_lock() ?*anyopaque;
pub extern fn PyThread_free_lock(*anyopaque) void;
pub extern fn PyThread_acquire_lock(*anyopaque, wait: c_int) c_int;
pub extern fn PyThread_acquire_lock_timed(*anyopaque, microseconds: c_longlong, interruptible: c_int) c_int;
pub extern fn PyThread_release_lock(*anyopaque) void;
pub const PY_LOCK_ACQUIRED = 1;
// Since 3.13; used by free-threaded builds only.
pub extern fn PyCriticalSection_Begin(section: *anyopaque, object: *PyObject) void;
pub extern fn PyCriticalSection_End(section: *anyopaque) void;

pub extern fn PyBytes_FromStringAndSize(?[*]const u8, Ssize) ?*PyObject;
pub extern fn _PyBytes_Resize(*?*PyObject, Ssize) c_int;
pub extern fn PyByteArray_Resize(*PyObject, Ssize) c_int;
pub extern fn PyByteArray_AsString(*PyObject) [*]u8;
pub extern fn PyByteArray_Size(*PyObject) Ssize;
pub extern fn PyObject_GetBuffer(*PyObject, *Py_buffer, c_int) c_int;
pub extern fn PyBuffer_Release(*Py_buffer) void;
pub extern fn PyBuffer_IsContiguous(*const Py_buffer, u8) c_int;
pub extern fn PyBuffer_ToContiguous(*anyopaque, *const Py_buffer, Ssize, u8) c_int;

pub extern fn PyUnicode_FromString([*:0]const u8) ?*PyObject;
pub extern fn PyUnicode_FromStringAndSize([*]const u8, Ssize) ?*PyObject;
pub extern fn PyUnicode_FromFormat([*:0]const u8, ...) ?*PyObject;
pub extern fn PyUnicode_InternFromString([*:0]const u8) ?*PyObject;
pub extern fn PyUnicode_CompareWithASCIIString(*PyObject, [*:0]const u8) c_int;
pub extern fn PyUnicode_AsUTF8AndSize(*PyObject, *Ssize) ?[*]const u8;
pub extern fn PyUnicode_EncodeFSDefault(*PyObject) ?*PyObject;
pub extern fn PyUnicode_DecodeFSDefaultAndSize([*]const u8, Ssize) ?*PyObject;

pub extern fn PyLong_FromLong(c_long) ?*PyObject;
pub extern fn PyLong_FromSsize_t(Ssize) ?*PyObject;
pub extern fn PyLong_FromUnsignedLong(c_ulong) ?*PyObject;
pub extern fn PyLong_FromUnsignedLongLong(c_ulonglong) ?*PyObject;
pub extern fn PyLong_AsLong(*PyObject) c_long;
pub extern fn PyLong_AsSsize_t(*PyObject) Ssize;
pub extern fn PyLong_AsUnsignedLong(*PyObject) c_ulong;
pub extern fn PyFloat_FromDouble(f64) ?*PyObject;
pub extern fn PyFloat_AsDouble(*PyObject) f64;
pub extern fn PyNumber_Add(*PyObject, *PyObject) ?*PyObject;
pub extern fn PyNumber_Long(*PyObject) ?*PyObject;
pub extern fn PyNumber_Index(*PyObject) ?*PyObject;
pub extern fn PyBool_FromLong(c_long) ?*PyObject;

pub extern fn PyTuple_New(Ssize) ?*PyObject;
pub extern fn PyTuple_SetItem(*PyObject, Ssize, *PyObject) c_int;
pub extern fn PyTuple_GetItem(*PyObject, Ssize) ?*PyObject;
pub extern fn PyTuple_Size(*PyObject) Ssize;
pub extern fn PyTuple_Pack(Ssize, ...) ?*PyObject;
pub extern fn PyList_New(Ssize) ?*PyObject;
pub extern fn PyList_Append(*PyObject, *PyObject) c_int;
pub extern fn PyDict_New() ?*PyObject;
pub extern fn PyModule_GetDict(*PyObject) *PyObject;
pub extern fn PyCFunction_GetSelf(*PyObject) ?*PyObject;
pub extern fn PyFunction_GetCode(*PyObject) ?*PyObject;
pub const PyDict_WatchCallback = *const fn (c_int, *PyObject, ?*PyObject, ?*PyObject) callconv(.c) c_int;
pub extern fn PyDict_AddWatcher(PyDict_WatchCallback) c_int;
pub extern fn PyDict_ClearWatcher(c_int) c_int;
pub extern fn PyDict_Watch(c_int, *PyObject) c_int;
pub extern fn PyDict_Unwatch(c_int, *PyObject) c_int;
pub extern fn PyDict_GetItemWithError(*PyObject, *PyObject) ?*PyObject;
pub extern fn PyDict_SetItem(*PyObject, *PyObject, *PyObject) c_int;
pub extern fn PyDict_Update(*PyObject, *PyObject) c_int;
pub extern fn PyErr_SetFromErrno(*PyObject) ?*PyObject;
pub extern fn PyErr_WarnEx(*PyObject, [*:0]const u8, Ssize) c_int;
pub extern fn PyErr_ResourceWarning(*PyObject, Ssize, [*:0]const u8, ...) c_int;
pub extern fn PyContext_Copy(*PyObject) ?*PyObject;
pub extern fn PyThreadState_Get() *anyopaque;
pub extern fn PyContext_New() ?*PyObject;
pub extern fn PyContextVar_New([*:0]const u8, ?*PyObject) ?*PyObject;
pub extern fn PyContextVar_Set(*PyObject, *PyObject) ?*PyObject;
pub extern fn PyObject_GC_IsTracked(*PyObject) c_int;

/// Public under this name since 3.11.
pub const PyType_GetModuleByDef = if (config.py_minor >= 11) struct {
    extern fn PyType_GetModuleByDef(*PyTypeObject, *PyModuleDef) ?*PyObject;
}.PyType_GetModuleByDef else struct {
    extern fn _PyType_GetModuleByDef(*PyTypeObject, *PyModuleDef) ?*PyObject;
}._PyType_GetModuleByDef;

/// `PyBUF_INDIRECT | PyBUF_FORMAT`: whatever layout the exporter has, read-only.
pub const PyBUF_FULL_RO = 0x0100 | 0x0018 | 0x0004;

/// A header's inline function in 3.10, exported since.
pub const PyObject_Vectorcall = if (config.py_minor >= 11) struct {
    extern fn PyObject_Vectorcall(*PyObject, ?[*]const ?*PyObject, usize, ?*PyObject) ?*PyObject;
}.PyObject_Vectorcall else @import("vectorcall_310.zig").call;

pub extern fn PyObject_VectorcallDict(*PyObject, ?[*]const ?*PyObject, usize, ?*PyObject) ?*PyObject;
