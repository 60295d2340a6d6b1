//! The expected stacks of `programs/stacks/boundary`, leaf first, as data.
//!
//! ```text
//! main.intoLibrary        stands in every report
//! ~runtime.cgocall        folded unless asked for
//! !inside_c               static C inside the Go object: nameless when that is stripped
//! ?inside_a               global C: a library's stays in its dynamic symbols
//! +!inlined_inner         inlined C: known by debug information alone
//! ```

use super::build::{Go, Linked};

/// The block's size tells the case; its frames.
pub struct Case {
    pub size: u64,
    pub what: &'static str,
    frames: Vec<&'static str>,
}

const LEVELS: &[&str] = &["malloc", "level_d", "level_c", "level_b", "leak_a"];
const TO_C: &[&str] = &["~runtime.asmcgocall", "~runtime.cgocall"];
const INSIDE: &[&str] = &["malloc", "!inside_c", "!inside_b"];
const MAIN_THREAD: &[&str] =
    &["main", "__libc_start_call_main", "__libc_start_main_impl", "_start"];
const DEEP: &[&str] = &["main.deep"; 13];
const RESERVE: &str = "std::__cxx11::basic_string<char, std::char_traits<char>, \
                       std::allocator<char> >::reserve(unsigned long)";

const FILL: &str = "(anonymous namespace)::fill(std::__cxx11::basic_string<char, \
                    std::char_traits<char>, std::allocator<char> >&, unsigned long)";

/// From C's call of an exported function to that function, `cgoexp` being its Go side.
fn to_go(go: Go, cgoexp: &'static str) -> Vec<&'static str> {
    let mut frames = vec![cgoexp, "~runtime.cgocallbackg1", "~runtime.cgocallbackg"];
    // The wrapper that the linker makes between assembly and Go.
    if go < Go::V1_27 {
        frames.push("~runtime.cgocallbackg");
    }
    frames.extend(["~runtime.cgocallback", "~crosscall2"]);
    frames
}

/// What called `RunCases`.
fn root(go: Go, linked: Linked) -> Vec<&'static str> {
    if !linked.is_shared() {
        return vec!["main.RunCases", "main.main", "runtime.main", "~runtime.goexit"];
    }
    let mut frames = vec!["main.RunCases"];
    frames.extend(to_go(go, "~_cgoexp_HASH_RunCases"));
    frames.extend(["RunCases", "run"]);
    frames.extend(MAIN_THREAD);
    frames
}

pub fn cases(go: Go, linked: Linked) -> Vec<Case> {
    let root = root(go, linked);
    let callback = to_go(go, "~_cgoexp_HASH_goCallback");
    let case = |size, what, parts: &[&[&'static str]]| Case { size, what, frames: parts.concat() };
    vec![
        case(
            1111,
            "Go, cgo, a C library",
            &[LEVELS, TO_C, &["main._Cfunc_leak_a", "main.intoLibrary"], &root],
        ),
        case(
            2221,
            "a thread of a C library",
            &[LEVELS, &["thread_body", "start_thread", "clone3"]],
        ),
        case(
            3331,
            "C++ new through the distribution's libstdc++",
            &[
                &["malloc", "operator new(unsigned long)"],
                &["(anonymous namespace)::make(unsigned long)", "leak_by_new"],
                TO_C,
                &["main._Cfunc_leak_by_new", "main.intoNew"],
                &root,
            ],
        ),
        case(
            3341,
            "a function of the distribution's libstdc++",
            &[
                &["malloc", "operator new(unsigned long)", RESERVE],
                &[FILL, "leak_by_string"],
                TO_C,
                &["main._Cfunc_leak_by_string", "main.intoString"],
                &root,
            ],
        ),
        case(
            4441,
            "C.malloc from Go",
            &[
                &["malloc", "~?_cgo_HASH_Cfunc__Cmalloc"],
                TO_C,
                &["~main._cgo_cmalloc", "+main._Cfunc__CMalloc", "main.byCMalloc"],
                &root,
            ],
        ),
        case(
            5551,
            "C inside the Go object",
            &[INSIDE, &["?inside_a"], TO_C, &["main._Cfunc_inside_a", "main.intoInside"], &root],
        ),
        case(
            6661,
            "Go, C, Go, C",
            &[
                INSIDE,
                &["?after_callback"],
                TO_C,
                &["main._Cfunc_after_callback", "main.inCallback", "+main.goCallback"],
                &callback,
                &["goCallback", "call_back_below", "call_back"],
                &["+!call_go_back", "~?_cgo_HASH_Cfunc_call_go_back"],
                TO_C,
                &["main._Cfunc_call_go_back", "main.andBack"],
                &root,
            ],
        ),
        case(
            7771,
            "inlined functions of C and of Go",
            &[
                &["malloc", "+!inlined_inner", "+!inlined_middle", "?leak_inlined"],
                TO_C,
                &["main._Cfunc_leak_inlined", "+main.innermost", "+main.between", "main.ofInlined"],
                &root,
            ],
        ),
        case(
            8881,
            "a goroutine whose stack has grown",
            &[
                LEVELS,
                TO_C,
                &["main._Cfunc_leak_a"],
                DEEP,
                &["main.RunCases.func1", "~runtime.goexit"],
            ],
        ),
    ]
}

impl Case {
    /// The names as the report shows them, with the runtime's frames or without.
    pub fn names(&self, linked: Linked, runtime_frames: bool) -> Vec<String> {
        let object = if linked.is_shared() { "libboundary.so" } else { "boundary" };
        let shown = self.frames.iter().filter_map(|frame| {
            let is_glue = frame.starts_with('~');
            let frame = frame.trim_start_matches('~');
            let inlined = frame.starts_with('+');
            let frame = frame.trim_start_matches('+');
            let name = frame.trim_start_matches(['!', '?']).to_owned();
            let loses_name =
                frame.starts_with('!') || frame.starts_with('?') && !linked.is_shared();
            if loses_name && linked.is_stripped() {
                // Debug information went with the symbols, and with it what it alone knows; and
                // nothing tells that a frame is glue, either.
                return (!inlined).then(|| format!("{object}+?"));
            }
            if is_glue && !runtime_frames {
                return None;
            }
            Some(if inlined { format!("{name} (inlined)") } else { name })
        });
        shown.collect()
    }
}
