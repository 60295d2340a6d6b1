//! From a stack's addresses to frames that can be told: names, modules, what was inlined, and why a
//! walk ended. Pure; a stack or a name that is missing is said to be missing.

use std::collections::HashMap;
use std::sync::Arc;

use memtrace_common::unwind::{OWNER_OF_MANY, WalkEnd, owner_of, plain};

use crate::snapshot::{AddressNames, Name, Object, Recording, StackDef};

/// What a frame is, for who reads the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// C, C++, Rust: anything that is not Go.
    Native,
    /// A Go function.
    Go,
    /// What stands between Go and C only because they differ: `runtime.cgocall` and its kin.
    Glue,
    /// Not a function: a sentence in brackets that says what is missing.
    Note,
}

/// One line of a stack, leaf first. Several share an address when functions were inlined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    pub kind: FrameKind,
    /// Demangled; `None` where no symbol covers the address. The sentence of a [`FrameKind::Note`].
    pub function: Option<String>,
    /// Path of the object inside the tracee's mount namespace.
    pub module: Option<String>,
    /// Offset in the object's file, where the address lies in one.
    pub module_offset: Option<u64>,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// Inlined into the next frame.
    pub inlined: bool,
    pub address: Option<u64>,
}

impl Frame {
    fn note(text: impl Into<String>) -> Self {
        Self {
            kind: FrameKind::Note,
            function: Some(text.into()),
            module: None,
            module_offset: None,
            file: None,
            line: None,
            inlined: false,
            address: None,
        }
    }

    /// What to call it: the function, else `libfoo.so+0x123`, else the address.
    pub fn label(&self) -> String {
        match (&self.function, &self.module, self.module_offset, self.address) {
            (Some(function), ..) => function.clone(),
            (None, Some(module), Some(offset), _) => format!("{}+{offset:#x}", base_name(module)),
            (None, Some(module), None, _) => base_name(module).to_owned(),
            (None, None, _, Some(address)) => format!("{address:#x}"),
            (None, None, _, None) => "[unknown]".to_owned(),
        }
    }

    /// Whether two frames read the same: addresses differ, names and lines do not.
    pub(crate) fn name(&self) -> FrameName<'_> {
        let nameless = self.function.is_none();
        FrameName {
            kind: self.kind,
            function: self.function.as_deref(),
            module: self.module.as_deref(),
            offset: self.module_offset.filter(|_| nameless),
            address: self.address.filter(|_| nameless && self.module.is_none()),
            file: self.file.as_deref(),
            line: self.line,
            inlined: self.inlined,
        }
    }
}

/// What frames of different addresses have in common when they read the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FrameName<'a> {
    function: Option<&'a str>,
    module: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    offset: Option<u64>,
    address: Option<u64>,
    kind: FrameKind,
    inlined: bool,
}

/// The last component of a path.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path)
}

/// An address, and whose: each image has addresses of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodeAddress {
    pub image: u32,
    pub address: u64,
}

impl StackDef {
    /// Its frames' addresses, leaf first.
    pub fn addresses(&self) -> impl DoubleEndedIterator<Item = CodeAddress> + Clone + '_ {
        self.frames.iter().map(|&address| CodeAddress { image: self.image, address })
    }
}

/// The frames of every stack of a recording.
#[derive(Debug)]
pub struct FrameIndex<'a> {
    stacks: HashMap<u64, &'a StackDef>,
    names: HashMap<CodeAddress, &'a AddressNames>,
    objects: Vec<&'a Object>,
    /// Of every address in a stack: stacks share far more frames than they differ in.
    frames: HashMap<CodeAddress, Vec<Arc<Frame>>>,
}

impl<'a> FrameIndex<'a> {
    pub fn new(recording: &'a Recording) -> Self {
        let mut index = Self {
            stacks: recording.stacks.iter().map(|stack| (stack.id, stack)).collect(),
            // An address named twice was mapped twice: the later name is that of what is mapped.
            names: recording
                .names
                .iter()
                .map(|names| (CodeAddress { image: names.image, address: names.address }, names))
                .collect(),
            objects: recording.header.tracee.objects.iter().chain(&recording.new_objects).collect(),
            frames: HashMap::new(),
        };
        let mut frames = HashMap::new();
        for at in recording.stacks.iter().flat_map(StackDef::addresses) {
            frames.entry(at).or_insert_with(|| index.resolve(at));
        }
        index.frames = frames;
        index
    }

    /// Of no recording.
    pub(crate) fn empty() -> Self {
        Self {
            stacks: HashMap::new(),
            names: HashMap::new(),
            objects: Vec::new(),
            frames: HashMap::new(),
        }
    }

    pub fn objects(&self) -> &[&'a Object] {
        &self.objects
    }

    pub fn stack(&self, id: u64) -> Option<&'a StackDef> {
        self.stacks.get(&id).copied()
    }

    /// `None` for a stack that the recording does not define.
    pub fn end(&self, id: u64) -> Option<WalkEnd> {
        self.stack(id).map(|stack| WalkEnd::from_u8(stack.end))
    }

    pub fn names(&self, at: CodeAddress) -> Option<&'a AddressNames> {
        self.names.get(&at).copied()
    }

    /// Index of the object that the address lies in, and the offset in its file.
    pub fn object(&self, at: CodeAddress) -> Option<(usize, Option<u64>)> {
        if owner_of(at.address) >= OWNER_OF_MANY {
            // Whose it was is not known: another one's may stand there now.
            return None;
        }
        let named = self.names(at).and_then(|names| names.object).map(|index| index as usize);
        let (image, address) = (at.image, plain(at.address));
        let offset_in = |object: &Object| {
            object
                .mappings
                .iter()
                .find(|mapping| (mapping.start..mapping.end).contains(&address))
                .and_then(|mapping| (address - mapping.start).checked_add(mapping.file_offset))
        };
        match named {
            Some(index) => self.objects.get(index).map(|object| (index, offset_in(object))),
            // The later object is what is mapped there now.
            None => {
                let of_image = |(_, object): &(usize, &&Object)| object.image == image;
                self.objects.iter().enumerate().rev().filter(of_image).find_map(
                    |(index, object)| offset_in(object).map(|offset| (index, Some(offset))),
                )
            }
        }
    }

    /// The frames of an address that stands in a stack, innermost first; at least one.
    pub fn frames_at(&self, at: CodeAddress) -> &[Arc<Frame>] {
        self.frames.get(&at).map_or(&[], Vec::as_slice)
    }

    fn resolve(&self, at: CodeAddress) -> Vec<Arc<Frame>> {
        let (module, module_offset) = match self.object(at) {
            Some((index, offset)) => (self.objects.get(index).map(|o| o.path.clone()), offset),
            None => (None, None),
        };
        let frame = |name: Option<&Name>| Frame {
            kind: name.map_or(FrameKind::Native, kind_of),
            function: name.map(|name| name.function.clone()),
            module: module.clone(),
            module_offset,
            file: name.and_then(|name| name.file.clone()),
            line: name.and_then(|name| name.line),
            inlined: name.is_some_and(|name| name.inlined),
            address: Some(plain(at.address)),
        };
        match self.names(at).map(|names| &names.names[..]) {
            None | Some([]) => vec![Arc::new(frame(None))],
            Some(names) => names.iter().map(|name| Arc::new(frame(Some(name)))).collect(),
        }
    }

    /// The whole stack, leaf first; where it is not whole, the last frame says why.
    pub fn frames(&self, id: u64) -> Vec<Arc<Frame>> {
        let addresses = self.stack(id).into_iter().flat_map(StackDef::addresses);
        let frames = addresses.flat_map(|at| self.frames_at(at)).cloned();
        frames.chain(self.note(id).map(Arc::new)).collect()
    }

    /// What is missing of a stack, as its outermost frame.
    pub fn note(&self, id: u64) -> Option<Frame> {
        match self.stack(id) {
            None => Some(Frame::note("[stack not in the recording]")),
            Some(stack) => self.end_note(stack).map(Frame::note),
        }
    }

    fn end_note(&self, stack: &StackDef) -> Option<String> {
        let at = || match stack.addresses().next_back() {
            None => "its first frame".to_owned(),
            Some(at) => match self.object(at) {
                Some((index, offset)) => {
                    let path = self.objects.get(index).map_or("?", |object| &object.path);
                    let offset = offset.map(|offset| format!("+{offset:#x}")).unwrap_or_default();
                    format!("{}{offset}", base_name(path))
                }
                None => format!("{:#x}", plain(at.address)),
            },
        };
        Some(match WalkEnd::from_u8(stack.end) {
            WalkEnd::Complete => return None,
            WalkEnd::TooDeep => {
                format!("[truncated: deeper than {} frames]", memtrace_common::unwind::MAX_FRAMES)
            }
            WalkEnd::UnknownMapping => format!("[truncated: unknown mapping above {}]", at()),
            WalkEnd::NoUnwindRow => format!("[truncated: no unwind table for {}]", at()),
            WalkEnd::Unreadable => format!("[truncated: stack memory unreadable above {}]", at()),
            WalkEnd::NoProgress => format!("[truncated: broken frame above {}]", at()),
            WalkEnd::StoreFull => "[stack store full]".to_owned(),
            WalkEnd::HashCollision => "[stack collision]".to_owned(),
            WalkEnd::MappingsChanged => {
                format!("[truncated: mappings changed, tables not yet renewed, above {}]", at())
            }
        })
    }
}

/// Functions that stand on the way between Go and C whatever the program does. The `_Cfunc_` stubs
/// on the Go side are not among them: they name the C function that Go called.
pub(crate) fn kind_of(name: &Name) -> FrameKind {
    const GLUE: &[&str] = &[
        "crosscall2",
        "runtime.asmcgocall",
        "runtime.asmcgocall_no_g",
        "runtime.asmcgocall_landingpad",
        "runtime.cgocall",
        "runtime.cgocallback",
        "runtime.cgocallbackg",
        "runtime.cgocallbackg1",
        "runtime.goexit",
        "runtime.mcall",
        "runtime.mstart",
        "runtime.mstart0",
        "runtime.mstart1",
        "runtime.systemstack",
        "runtime.systemstack_switch",
        "threadentry",
    ];
    let function = name.function.as_str();
    let plain = function.strip_suffix(".abi0").unwrap_or(function);
    if GLUE.contains(&plain)
        || function.starts_with("_cgo_")
        || function.starts_with("_cgoexp_")
        || function.ends_with("._cgo_cmalloc")
    {
        return FrameKind::Glue;
    }
    let is_go_file = |file: &str| file.ends_with(".go") || file == "<autogenerated>";
    // cgo's C preambles stand in Go files, too; but a Go function's name has its package in it.
    let in_go_file = name.file.as_deref().is_some_and(is_go_file) && function.contains('.');
    if in_go_file || function.starts_with("runtime.") { FrameKind::Go } else { FrameKind::Native }
}

#[cfg(test)]
mod tests {
    use memtrace_common::unwind::{OWNER_UNKNOWN, owned};

    use super::*;
    use crate::snapshot::synthetic::{self, recording};

    fn labels(id: u64) -> Vec<String> {
        let recording = recording();
        FrameIndex::new(&recording).frames(id).iter().map(|frame| frame.label()).collect()
    }

    #[test]
    fn inlined_functions_stand_before_the_one_they_are_inlined_into() {
        let recording = recording();
        let frames = FrameIndex::new(&recording).frames(synthetic::INLINED);
        let inlined: Vec<_> = frames[1..4].iter().map(|frame| frame.inlined).collect();
        assert_eq!(inlined, [true, true, false]);
        assert_eq!(frames[3].label(), "xml::Document::append(xml::Node const&)");
        assert!(frames[1..4].iter().all(|frame| frame.address == frames[1].address));
    }

    #[test]
    fn a_truncated_stack_says_where_and_why() {
        assert_eq!(
            labels(synthetic::TRUNCATED),
            ["malloc", "libblob.so+0x1123", "[truncated: no unwind table for libblob.so+0x1123]"]
        );
        assert_eq!(labels(synthetic::STORE_FULL), ["[stack store full]"]);
        assert_eq!(labels(0xdead), ["[stack not in the recording]"]);
    }

    #[test]
    fn what_stood_at_an_address_before_is_not_what_stands_there_later() {
        let mut recording = recording();
        let stack = &mut recording.stacks[0];
        let last = *stack.frames.last().unwrap();
        let names = recording.names.iter().find(|names| names.address == last).unwrap().clone();
        let labels = |recording: &Recording| {
            let index = FrameIndex::new(recording);
            let frames = index.frames(recording.stacks[0].id);
            frames.iter().map(|frame| frame.label()).collect::<Vec<_>>()
        };
        let frame = owned(last, 1);
        stack.frames.push(frame);
        let other = Name { function: "other".into(), ..names.names[0].clone() };
        recording.names.push(AddressNames { address: frame, names: vec![other], ..names });
        let both = labels(&recording);
        assert_eq!(both.last().unwrap(), "other");
        assert_ne!(both[both.len() - 2], "other");
        let stack = &mut recording.stacks[0];
        *stack.frames.last_mut().unwrap() = owned(last, OWNER_UNKNOWN);
        stack.end = WalkEnd::UnknownMapping as u8;
        let unknown = labels(&recording);
        assert_eq!(
            unknown.last().unwrap(),
            &format!("[truncated: unknown mapping above {last:#x}]")
        );
    }

    #[test]
    fn every_reason_for_a_truncation_has_its_own_note() {
        let mut recording = recording();
        let mut seen = std::collections::HashSet::new();
        for end in 1..=8 {
            recording.stacks[0].end = end;
            let index = FrameIndex::new(&recording);
            let frames = index.frames(synthetic::SQLITE_LEAK);
            let note = frames.last().unwrap();
            assert_eq!(note.kind, FrameKind::Note);
            assert!(seen.insert(note.label()), "{end}");
        }
    }

    #[test]
    fn glue_is_told_from_the_functions_of_the_program() {
        let recording = recording();
        let frames = FrameIndex::new(&recording).frames(synthetic::SQLITE_LEAK);
        let kinds: Vec<_> = frames.iter().map(|frame| (frame.label(), frame.kind)).collect();
        let kind = |name: &str| kinds.iter().find(|(label, _)| label.contains(name)).unwrap().1;
        assert_eq!(kind("sqlite3MemMalloc"), FrameKind::Native);
        assert_eq!(kind("_cgo_3c1cec0c9a4e"), FrameKind::Glue);
        assert_eq!(kind("runtime.asmcgocall"), FrameKind::Glue);
        assert_eq!(kind("store._Cfunc_sqlite3_prepare_v2"), FrameKind::Go);
        assert_eq!(kind("main.handleOrder"), FrameKind::Go);
        assert_eq!(kind("runtime.goexit"), FrameKind::Glue);
    }

    #[test]
    fn indices_and_addresses_of_a_hostile_recording_are_not_followed() {
        let mut recording = recording();
        recording.names[0].object = Some(u32::MAX);
        recording.header.tracee.objects[2].mappings[0].file_offset = u64::MAX;
        recording.stacks[0].frames.push(u64::MAX);
        let index = FrameIndex::new(&recording);
        assert!(index.frames(synthetic::SQLITE_LEAK).len() > 5);
    }
}
