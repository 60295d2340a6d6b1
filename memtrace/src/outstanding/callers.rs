//! Who in the program asked for it: stacks added up by the program's own frame nearest to the
//! allocator. One leak often has many stacks, which differ inside a library only. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::books::{Amount, Growth, StackLine};
use super::frames::{Frame, FrameKind, FrameName};
use crate::snapshot::runtimes::Runtime;

/// All stacks with the same own frame.
#[derive(Clone, Debug, PartialEq)]
pub struct CallerLine {
    /// In the executable or in Go code; where no frame is, what called the allocator, or all that
    /// there is. `None`: there is no frame.
    pub frame: Option<Arc<Frame>>,
    /// The Go function that called it, where it is C.
    pub go_caller: Option<Arc<Frame>>,
    pub stacks: usize,
    /// What rankings count.
    pub held: Amount,
    /// Of all that rankings count, 0 to 1.
    pub share: f64,
    pub growth: Option<Growth>,
}

/// Of the stacks that hold something; the largest first. `held` is what rankings count of a stack.
pub fn callers(
    stacks: &[StackLine],
    held: impl Fn(&StackLine) -> Amount,
    executable: &str,
) -> Vec<CallerLine> {
    type Key<'a> = (Option<FrameName<'a>>, Option<FrameName<'a>>);
    let mut lines: BTreeMap<Key<'_>, CallerLine> = BTreeMap::new();
    for stack in stacks {
        let amount = held(stack);
        if amount.blocks == 0 {
            continue;
        }
        let (frame, go_caller) = own_frame(&stack.frames, executable);
        let key = (frame.map(|frame| frame.name()), go_caller.map(|frame| frame.name()));
        let line = lines.entry(key).or_insert_with(|| CallerLine {
            frame: frame.cloned(),
            go_caller: go_caller.cloned(),
            stacks: 0,
            held: Amount::default(),
            share: 0.0,
            growth: Some(Growth { bytes: 0, bytes_per_second: 0.0 }),
        });
        line.stacks += 1;
        line.held.bytes = line.held.bytes.saturating_add(amount.bytes);
        line.held.blocks = line.held.blocks.saturating_add(amount.blocks);
        line.share += stack.share;
        line.growth = line.growth.zip(stack.growth).map(|(sum, more)| Growth {
            bytes: sum.bytes + more.bytes,
            bytes_per_second: sum.bytes_per_second + more.bytes_per_second,
        });
    }
    let mut lines: Vec<CallerLine> = lines.into_values().collect();
    // Equal ones stay in the order of their names.
    lines.sort_by_key(|line| std::cmp::Reverse(line.held));
    lines
}

/// The program's own frame nearest to the allocator, and the Go function above it where it is C.
pub(crate) fn own_frame<'a>(
    frames: &'a [Arc<Frame>],
    executable: &str,
) -> (Option<&'a Arc<Frame>>, Option<&'a Arc<Frame>>) {
    // The leaf is the allocator, which may be linked into the executable.
    let above = frames.get(1..).unwrap_or_default();
    if Runtime::of_object(executable).is_some()
        && let Some(called) = called_by_interpreter(frames)
    {
        return (Some(called), None);
    }
    let is_go = |frame: &Frame| {
        let stub = |name: &str| name.contains("._Cfunc_");
        frame.kind == FrameKind::Go && !frame.function.as_deref().is_some_and(stub)
    };
    let is_own = |frame: &Frame| {
        let in_executable =
            frame.kind == FrameKind::Native && frame.module.as_deref() == Some(executable);
        is_go(frame) || in_executable && frame.function.is_some()
    };
    let Some(at) = above.iter().position(|frame| is_own(frame)) else {
        // A stack that could not be kept is one note.
        return (above.first().or(frames.first()), None);
    };
    let frame = &above[at];
    let go_caller = match frame.kind {
        FrameKind::Go => None,
        _ => above[at + 1..].iter().find(|frame| is_go(frame)),
    };
    (Some(frame), go_caller)
}

/// In an interpreter's process the executable's frames are the same whatever the program does. What
/// tells is what the interpreter called: the outermost frame of another library below all of its own.
fn called_by_interpreter(frames: &[Arc<Frame>]) -> Option<&Arc<Frame>> {
    let leaf = frames.first()?.module.as_deref();
    let above = frames.get(1..)?;
    let first = above.iter().position(|frame| is_interpreter(frame))?;
    let tells = |frame: &&Arc<Frame>| {
        let module = frame.module.as_deref();
        let file = module.and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let is_standard = ["libc.so", "libstdc++.so", "libgcc_s.so", "ld-"];
        frame.kind == FrameKind::Native
            && module.is_some()
            && module != leaf
            && !is_standard.iter().any(|name| file.starts_with(name))
    };
    let mut called = above[..first].iter().rev().filter(tells);
    let outermost = called.next()?;
    let named = std::iter::once(outermost).chain(called).find(|frame| frame.function.is_some());
    named.or(Some(outermost))
}

/// The runtime's own objects, and those by which it calls C functions.
fn is_interpreter(frame: &Frame) -> bool {
    let Some(path) = frame.module.as_deref() else { return false };
    let file = path.rsplit('/').next().unwrap_or_default();
    Runtime::of_object(path).is_some()
        || file.starts_with("libffi.so")
        || file.starts_with("_ctypes.")
        || file.starts_with("_cffi_backend.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXECUTABLE: &str = "/srv/notes";

    fn frame(kind: FrameKind, function: &str, module: &str) -> Arc<Frame> {
        Arc::new(Frame {
            kind,
            function: Some(function.to_owned()),
            module: Some(module.to_owned()),
            module_offset: None,
            file: None,
            line: None,
            inlined: false,
            address: None,
        })
    }

    #[test]
    fn in_an_interpreter_what_it_called_tells_and_not_its_own_frames() {
        const PYTHON: &str = "/usr/bin/python3.11";
        let library = |function| frame(FrameKind::Native, function, "/lib/libxml2.so.2");
        let ffi = frame(FrameKind::Native, "ffi_call", "/lib/libffi.so.8.1.2");
        let own = |function| frame(FrameKind::Native, function, PYTHON);
        let malloc = frame(FrameKind::Native, "malloc", "/lib/libc.so.6");
        let strdup = frame(FrameKind::Native, "strdup", "/lib/libc.so.6");
        let named = |frames: &[&Arc<Frame>]| {
            let frames: Vec<_> = frames.iter().map(|frame| Arc::clone(frame)).collect();
            own_frame(&frames, PYTHON).0.and_then(|frame| frame.function.clone())
        };
        let (node, read) = (library("xmlNewNode"), library("xmlReadMemory"));
        let (call, eval) = (own("_PyObject_MakeTpCall"), own("_PyEval_EvalFrameDefault"));
        let leak = [&malloc, &node, &read, &ffi, &call, &eval];
        assert_eq!(named(&leak).as_deref(), Some("xmlReadMemory"));
        // A callback into the interpreter, which calls the library again: the inner call counts.
        let nested = [&malloc, &node, &ffi, &eval, &read, &ffi, &call];
        assert_eq!(named(&nested).as_deref(), Some("xmlNewNode"));
        // Its own blocks stay its own, also those by way of libc.
        assert_eq!(named(&[&malloc, &call, &eval]).as_deref(), Some("_PyObject_MakeTpCall"));
        assert_eq!(named(&[&malloc, &strdup, &eval]).as_deref(), Some("_PyEval_EvalFrameDefault"));
        assert_eq!(named(&[&malloc]).as_deref(), Some("malloc"));
    }

    /// Leaf first; a name with a dot is Go's, one in capitals the executable's, others a library's.
    fn stack(names: &[&str], bytes: u64) -> StackLine {
        let frames = names.iter().map(|name| match name {
            name if name.starts_with("runtime.") => frame(FrameKind::Glue, name, EXECUTABLE),
            name if name.contains('.') => frame(FrameKind::Go, name, EXECUTABLE),
            name if name.chars().all(char::is_uppercase) => {
                frame(FrameKind::Native, name, EXECUTABLE)
            }
            name => frame(FrameKind::Native, name, "/lib/libxml2.so.2"),
        });
        StackLine {
            ids: vec![bytes],
            frames: frames.collect(),
            end: None,
            outstanding: Amount { bytes, blocks: bytes.min(1) },
            allocated: Amount { bytes, blocks: 1 },
            freed: Amount::default(),
            aged: None,
            ages_ns: None,
            share: bytes as f64 / 100.0,
            growth: Some(Growth { bytes: i128::from(bytes), bytes_per_second: 1.0 }),
            peak_bytes: bytes,
            by_image: Default::default(),
        }
    }

    fn of(stacks: &[StackLine]) -> Vec<CallerLine> {
        callers(stacks, |line| line.outstanding, EXECUTABLE)
    }

    fn names(line: &CallerLine) -> (Option<&str>, Option<&str>) {
        let name = |frame: &'_ Option<Arc<Frame>>| -> Option<String> {
            frame.as_ref().and_then(|frame| frame.function.clone())
        };
        let leak = |name: Option<String>| name.map(|name| &*name.leak());
        (leak(name(&line.frame)), leak(name(&line.go_caller)))
    }

    const ABOVE: [&str; 4] = ["PARSE", "main._Cfunc_parse", "runtime.cgocall", "main.importFeed"];

    fn below(library: &[&'static str]) -> Vec<&'static str> {
        library.iter().copied().chain(ABOVE).collect()
    }

    #[test]
    fn stacks_that_differ_inside_a_library_are_one_line() {
        let lines = of(&[
            stack(&below(&["malloc", "xmlNewDoc"]), 30),
            stack(&below(&["malloc", "xmlDictCreate", "xmlRead"]), 20),
            stack(&["malloc", "main._Cfunc_strdup", "main.label"], 40),
        ]);
        assert_eq!(lines.len(), 2);
        assert_eq!(names(&lines[0]), (Some("PARSE"), Some("main.importFeed")));
        assert_eq!((lines[0].held, lines[0].stacks), (Amount { bytes: 50, blocks: 2 }, 2));
        assert!((lines[0].share - 0.5).abs() < 1e-9);
        assert_eq!(lines[0].growth.unwrap().bytes, 50);
        assert_eq!(names(&lines[1]), (Some("main.label"), None));
    }

    #[test]
    fn two_go_functions_that_call_the_same_c_are_two_lines() {
        let other = ["malloc", "PARSE", "main._Cfunc_parse", "main.reload"];
        let lines = of(&[stack(&below(&["malloc"]), 30), stack(&other, 20)]);
        assert_eq!(names(&lines[0]).1, Some("main.importFeed"));
        assert_eq!(names(&lines[1]).1, Some("main.reload"));
    }

    #[test]
    fn an_allocator_linked_into_the_executable_is_no_caller() {
        let lines = of(&[stack(&["MALLOC", "helper", "WORK"], 1)]);
        assert_eq!(names(&lines[0]).0, Some("WORK"));
    }

    #[test]
    fn without_an_own_frame_it_is_what_called_the_allocator() {
        let lines = of(&[stack(&["malloc", "helper", "start_thread"], 2), stack(&["malloc"], 1)]);
        assert_eq!(names(&lines[0]).0, Some("helper"));
        assert_eq!(names(&lines[1]).0, Some("malloc"));
    }

    #[test]
    fn nothing_held_is_no_line() {
        assert!(of(&[stack(&["malloc", "WORK"], 0)]).is_empty());
    }
}
