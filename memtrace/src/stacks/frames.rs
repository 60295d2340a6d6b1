//! What a frame is to the reader of a report: their own code, or glue between Go and C. Pure.
//!
//! Works on names as the symbolizer gives them. A stack crosses from Go to C like this, and back:
//!
//! ```text
//! malloc                          C
//! sqlite3_step
//! _cgo_8a3f_Cfunc_sqlite3_step    ┐ the C side of cgo's stub (absent when the call is direct)
//! runtime.asmcgocall              │ changes to the thread's stack
//! runtime.cgocall                 │ glue: folded unless asked for
//! main._Cfunc_sqlite3_step        ┘ the Go side of the stub
//! main.(*server).handle           Go
//! ```
//!
//! Names decide, so nothing here changes a total: a program that names its own function like
//! glue gets it folded in the text report, and nothing else.

use crate::plan::catalogue::{Convention, lookup};
use crate::snapshot::{Name, RangeOwner};

/// What kind of code a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// The program's, or a library's.
    User,
    /// Generated or runtime code that carries a call between Go and C.
    CgoGlue,
    /// The Go runtime's scheduler and stack ends.
    GoRuntime,
}

impl FrameKind {
    /// Whether a report may leave the frame out unless asked for it.
    pub fn is_folded(self) -> bool {
        self != Self::User
    }
}

/// Runtime functions that only carry a call between Go and C.
const GLUE: [&str; 10] = [
    "runtime.cgocall",
    "runtime.asmcgocall",
    "runtime.asmcgocall_landingpad",
    "runtime.asmcgocall_no_g",
    "runtime.cgocallback",
    "runtime.cgocallbackg",
    "runtime.cgocallbackg1",
    "crosscall2",
    "crosscall1",
    "crosscall_amd64",
];

/// Where goroutine and thread stacks begin, and where they change stacks.
const RUNTIME: [&str; 15] = [
    "runtime.goexit",
    "runtime.goexit0",
    "runtime.main",
    "runtime.systemstack",
    "runtime.systemstack_switch",
    "runtime.mcall",
    "runtime.mstart",
    "runtime.mstart0",
    "runtime.mstart1",
    "runtime.morestack",
    "runtime.newstack",
    "runtime.schedule",
    "runtime.rt0_go",
    "_rt0_amd64",
    "_rt0_amd64_linux",
];

/// What kind of code a function of this name is.
pub fn kind_of(function: &str) -> FrameKind {
    let function = function.strip_suffix(".abi0").unwrap_or(function);
    if GLUE.contains(&function) || is_cgo_stub(function) {
        FrameKind::CgoGlue
    } else if RUNTIME.contains(&function) {
        FrameKind::GoRuntime
    } else {
        FrameKind::User
    }
}

/// `_cgo_<hash>_Cfunc_f`, `pkg._Cfunc_f`, `pkg._Cfunc_f.func1`, `_cgoexp_<hash>_f`,
/// `pkg._cgoexpwrap_<hash>_f`, `pkg.f.func1._Cfunc_g` (the linker's names for inlined stubs).
fn is_cgo_stub(function: &str) -> bool {
    let is_hashed = |name: &str, marker: &str| {
        let Some(rest) = name.strip_prefix(marker) else { return false };
        let hash = rest.split('_').next().unwrap_or_default();
        hash.len() >= 8
            && hash.len() < rest.len()
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    // The last path element: package names may hold dots and slashes.
    let local = function.rsplit('/').next().unwrap_or(function);
    is_hashed(local, "_cgo_")
        || is_hashed(local, "_cgoexp_")
        || local.split('.').skip(1).any(|part| {
            part.starts_with("_Cfunc_")
                || part.starts_with("_C2func_")
                || is_hashed(part, "_cgoexpwrap_")
                || is_hashed(part, "_cgoexp_")
        })
}

/// The C function that a Go side of a stub calls: `main._Cfunc_sqlite3_step` → `sqlite3_step`.
pub fn called_c_function(function: &str) -> Option<&str> {
    let local = function.rsplit('/').next().unwrap_or(function);
    local
        .split('.')
        .find_map(|part| part.strip_prefix("_Cfunc_").or_else(|| part.strip_prefix("_C2func_")))
}

/// Whether the memory mapped by this stack is the Go runtime's own, to be told by the Go
/// runtime's books and not counted as native.
///
/// In a cgo binary the runtime maps its heap through libc's `mmap`: `mmap` ← `x_cgo_mmap` (C,
/// nameless in a stripped binary) ← `runtime.callCgoMmap` ← `runtime.mmap.func1` ←
/// `runtime.systemstack` ← `runtime.mmap`. Without cgo it makes the system call itself, in
/// `runtime.sysMmap`. What a Go program maps itself (`syscall.Mmap`) goes through neither.
/// `names` are those of the stack's frames, leaf first.
fn range_is_go_runtimes<'a>(names: impl IntoIterator<Item = &'a Name>) -> bool {
    const OWNERS: [&str; 9] = [
        "x_cgo_mmap",
        "runtime.mmap",
        "runtime.callCgoMmap",
        "runtime.sysMmap",
        "runtime.sysAlloc",
        "runtime.sysAllocOS",
        "runtime.sysReserve",
        "runtime.sysReserveOS",
        "runtime.sysMap",
    ];
    // The owner is the caller of mmap: a frame or two above it. A user's C code, called by Go
    // from a function that the runtime entered through one of these, is far below.
    const FRAMES: usize = 8;
    names.into_iter().take(FRAMES).any(|name| {
        let function = name.function.strip_suffix(".abi0").unwrap_or(&name.function);
        OWNERS.contains(&function)
    })
}

/// Whether a range was mapped by an allocator for itself, judged by the names of the stack in which
/// mmap was called. Inside `malloc` the kernel side knows that; but `free` is left at once there,
/// and glibc's maps a new arena when it is the first call of its thread: the blocks of that arena
/// would be counted twice.
fn range_is_allocators<'a>(names: impl IntoIterator<Item = &'a Name>) -> bool {
    const FRAMES: usize = 16;
    names.into_iter().take(FRAMES).any(|name| {
        lookup(&name.function).is_some_and(|known| known.convention != Convention::Ranged)
    })
}

/// Who mapped a range, where that is neither the program nor one of its libraries. `names` are
/// those of the stack's frames, leaf first.
pub fn range_owner<'a>(
    names: impl IntoIterator<Item = &'a Name, IntoIter: Clone>,
) -> Option<RangeOwner> {
    let names = names.into_iter();
    if range_is_go_runtimes(names.clone()) {
        return Some(RangeOwner::GoRuntime);
    }
    range_is_allocators(names).then_some(RangeOwner::AllocatorInternal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(function: &str) -> Name {
        Name { function: function.to_owned(), file: None, line: None, inlined: false }
    }

    #[test]
    fn the_programs_own_functions_are_not_glue() {
        for function in [
            "malloc",
            "main.main",
            "main.(*server).handle",
            "runtime.mallocgc",
            "runtime.cgocallers",
            "_cgo_panic",
            "_cgo_topofstack",
            "my_cgo_12345678_Cfunc_x",
            "main.notA_Cfunc_x",
            "github.com/mattn/go-sqlite3.(*SQLiteStmt).exec",
            "goCallback",
            "crosscall22",
        ] {
            assert_eq!(kind_of(function), FrameKind::User, "{function}");
        }
    }

    #[test]
    fn every_shape_of_cgo_glue_is_folded() {
        for function in [
            "runtime.cgocall",
            "runtime.asmcgocall",
            "runtime.asmcgocall.abi0",
            "_cgo_2da089302506_Cfunc_c_outer",
            "main._Cfunc_c_outer",
            "main._C2func_c_outer",
            "github.com/mattn/go-sqlite3._Cfunc__sqlite3_step_row_internal",
            "github.com/mattn/go-sqlite3.(*SQLiteStmt).exec.func1._Cfunc_x",
            "_cgoexp_2da089302506_goCallback",
            "main._cgoexpwrap_2da089302506_goCallback",
            "crosscall2",
        ] {
            assert_eq!(kind_of(function), FrameKind::CgoGlue, "{function}");
        }
        for function in ["runtime.goexit", "runtime.goexit.abi0", "runtime.systemstack"] {
            assert_eq!(kind_of(function), FrameKind::GoRuntime, "{function}");
        }
    }

    #[test]
    fn a_stub_tells_the_c_function_that_it_calls() {
        assert_eq!(called_c_function("main._Cfunc_sqlite3_step"), Some("sqlite3_step"));
        let stub = "github.com/mattn/go-sqlite3._Cfunc__sqlite3_open_v2";
        assert_eq!(called_c_function(stub), Some("_sqlite3_open_v2"));
        assert_eq!(called_c_function("main.main"), None);
    }

    #[test]
    fn the_go_runtimes_mappings_are_told_from_a_c_librarys() {
        let owns = |functions: &[&str]| {
            let names: Vec<Name> = functions.iter().map(|function| name(function)).collect();
            range_is_go_runtimes(&names)
        };
        assert!(owns(&["mmap", "x_cgo_mmap", "runtime.callCgoMmap", "runtime.mmap.func1"]));
        let stripped = ["mmap", "app+0x74e0bd", "runtime.callCgoMmap.abi0", "runtime.systemstack"];
        assert!(owns(&stripped));
        assert!(owns(&["runtime.sysMmap.abi0", "runtime.sysAllocOS", "runtime.persistentalloc1"]));
        assert!(!owns(&["mmap", "c_mmap", "_cgo_8a3f1122_Cfunc_c_mmap", "runtime.asmcgocall"]));
        assert!(!owns(&["mmap", "pthread_create", "x_cgo_thread_start", "runtime.asmcgocall"]));
        assert!(!owns(&[]));
    }

    #[test]
    fn an_arena_mapped_inside_free_is_the_allocators_own() {
        let owner = |functions: &[&str]| {
            let names: Vec<Name> = functions.iter().map(|function| name(function)).collect();
            range_owner(&names)
        };
        let allocators = Some(RangeOwner::AllocatorInternal);
        let with_debug_info = ["__mmap64", "alloc_new_heap", "tcache_init", "__libc_free"];
        assert_eq!(owner(&[&with_debug_info[..], &["start_thread", "clone"]].concat()), allocators);
        assert_eq!(owner(&["mmap", "libc.so.6+0x9a1b2", "cfree", "user"]), allocators);
        assert_eq!(owner(&["mmap", "free_buffers", "malloc_stats_of_user"]), None);
        assert_eq!(owner(&["mmap", "mmap64", "map_file"]), None);
        assert_eq!(owner(&["mmap", "x_cgo_mmap", "main"]), Some(RangeOwner::GoRuntime));
    }
}
