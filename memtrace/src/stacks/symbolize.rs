//! Names for addresses: function, file, line, inlined frames, object.
//!
//! Works on the files that were mapped, through their open descriptors: also when the process has
//! exited, its library was replaced, or its paths mean something else here. Go text is named by
//! Go's own table, all else by DWARF and ELF symbols of the object or of its separate debug file.
//! Every address gets a name: one that nothing names is `libfoo.so+0x1234`, with the object's own
//! virtual address, or `[unmapped] 0x…`.
//!
//! * Where several were mapped at an address one after the other, a frame says which it means, by
//!   its owner; what was there is named also when it has gone.
//! * A return address is looked up as the address before it; answers are keyed by the frame.
//!   What a signal interrupted, and where its handler returns to, are looked up as they are.
//! * Names are cleaned: no control characters, bounded length.
//! * The first address in an object costs a copy of its symbols and debug information (see
//!   `image`), and DWARF is parsed by unit as needed: [`Symbolizer::release`] gives that memory
//!   back and keeps the names.
//! * Hostile debug information can cost time and memory in proportion to its size (limited); a
//!   panic in a parser is caught and counted, and the object is then named by its symbols alone.
//!
//! Not `Send`: use it on the thread that made it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use memtrace_common::unwind::{OWNER_OF_MANY, OWNER_UNKNOWN, owned, owner_of, plain};

use blazesym::symbolize::{self, Input, Symbolized, source::Elf as ElfOf, source::Source};

use super::debug_files::DebugLink;
use super::elf::{ByteSource, Elf, ElfSegments, FileSource};
use super::go_object::find_go_table;
use super::image::SymbolImage;
use super::pclntab::PclnTable;
use super::text::{clean, demangle};
use crate::snapshot::{AddressNames, Name, ObjectMapping};
use crate::tracee::MappedFile;
use crate::tracee::root::Root;

/// How to look for names.
#[derive(Debug)]
pub struct Options {
    /// The tracee's root, for the debug files that its image brings.
    pub root: Option<Root>,
    /// Directories of the host with debug files; by default `/usr/lib/debug`.
    pub debug_dirs: Vec<PathBuf>,
    /// Most bytes of debug information read of one object; beyond that, symbols alone. By default
    /// 512 MiB.
    pub max_debug_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: None,
            debug_dirs: vec![PathBuf::from("/usr/lib/debug")],
            max_debug_bytes: 512 << 20,
        }
    }
}

/// What naming met, since the symbolizer was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolizerStats {
    /// Addresses named.
    pub addresses: u64,
    /// Of them, those in an object that nothing names.
    pub unnamed: u64,
    /// Of them, those in no known mapping.
    pub unmapped: u64,
    /// Objects whose debug information was left out for its size.
    pub debug_info_too_large: u64,
    /// Objects whose debug information could not be parsed, or made a parser panic.
    pub debug_info_broken: u64,
    /// Objects that could not be read, or are not ELF.
    pub objects_unreadable: u64,
    /// Bytes of symbols and debug information copied, of all objects read so far.
    pub copied_bytes: u64,
}

/// A range of addresses that is no file, e.g. `[vdso]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRegion {
    pub start: u64,
    pub end: u64,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Object { object: usize, mapping: ObjectMapping },
    Region { region: usize },
}

/// Who stands, or stood, at a range of addresses.
#[derive(Clone, Copy, Debug)]
struct Held {
    end: u64,
    place: Place,
    /// How many were there before.
    owner: u8,
    /// The looks at the mappings that found it: the first, and the one after the last.
    from_look: usize,
    until_look: usize,
}

/// The looks at the mappings: how many changes the kernel side had counted, where none came while
/// they were read.
#[derive(Debug, Default)]
struct Looks {
    /// How many were forgotten, the first ones.
    forgotten: usize,
    counts: VecDeque<Option<u16>>,
}

/// Most looks that are kept: those of some minutes of a program that replaces code all the time.
const MAX_LOOKS: usize = 1 << 16;

impl Looks {
    fn add(&mut self) {
        if self.counts.len() == MAX_LOOKS {
            self.counts.pop_front();
            self.forgotten += 1;
        }
        self.counts.push_back(None);
    }

    /// The number of the look that is next.
    fn next(&self) -> usize {
        self.forgotten + self.counts.len()
    }

    /// Whether one of these looks was at this count.
    fn any_at(&self, from: usize, until: usize, changes: u16) -> bool {
        let first = from.saturating_sub(self.forgotten);
        let count = until.saturating_sub(self.forgotten).saturating_sub(first);
        self.counts.iter().skip(first).take(count).any(|look| *look == Some(changes))
    }
}

/// Most former holders of ranges that are kept; the first ones are forgotten then.
const MAX_FORMER: usize = 1 << 16;

pub struct Symbolizer {
    options: Options,
    objects: Vec<Object>,
    regions: Vec<NamedRegion>,
    /// By start; what is mapped later takes the place of what it covers.
    places: BTreeMap<u64, Held>,
    /// What was covered: start and holder, in the order in which it went.
    former: Vec<(u64, Held)>,
    looks: Looks,
    names: HashMap<u64, AddressNames>,
    /// Where signal handlers return to.
    signal_returns: Vec<Range<u64>>,
    stats: SymbolizerStats,
}

struct Object {
    file: MappedFile,
    /// `None`: not needed yet, or released.
    sources: Option<Sources>,
}

/// What names the addresses of one object.
#[derive(Default)]
pub(super) struct Sources {
    segments: Option<ElfSegments>,
    go: Option<PclnTable<'static>>,
    image: Option<(SymbolImage, symbolize::Symbolizer)>,
}

impl Symbolizer {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            objects: Vec::new(),
            regions: Vec::new(),
            places: BTreeMap::new(),
            former: Vec::new(),
            looks: Looks::default(),
            names: HashMap::new(),
            signal_returns: Vec::new(),
            stats: SymbolizerStats::default(),
        }
    }

    /// Where the kernel's signal frames make handlers return to. Earlier ones stay known.
    pub fn set_signal_returns(&mut self, ranges: Vec<Range<u64>>) {
        for range in ranges {
            if !self.signal_returns.contains(&range) {
                self.signal_returns.push(range);
            }
        }
    }

    /// Adds objects; the `object` of the answers counts them in the order in which they are added.
    pub fn add_objects(&mut self, files: &[MappedFile]) {
        for file in files {
            self.objects.push(Object { file: file.clone(), sources: None });
            self.map_again(self.objects.len() - 1);
        }
    }

    /// An object is mapped where it was before.
    pub fn map_again(&mut self, object: usize) {
        let Some(known) = self.objects.get(object) else { return };
        for mapping in known.file.mappings.clone() {
            self.place(mapping.start, mapping.end, Place::Object { object, mapping });
        }
    }

    /// Adds a range that is named as a whole. One that is there already costs nothing.
    pub fn add_region(&mut self, region: NamedRegion) {
        if let Some(Held { end, place: Place::Region { region: known }, .. }) =
            self.places.get(&region.start)
            && (*end, &self.regions[*known].name) == (region.end, &region.name)
        {
            return;
        }
        let (start, end) = (region.start, region.end);
        self.regions.push(region);
        self.place(start, end, Place::Region { region: self.regions.len() - 1 });
    }

    /// What is added from now on was found by another look at the mappings.
    pub fn look_again(&mut self) {
        self.looks.add();
    }

    /// Of all that was added, this is what the last look found; the rest has gone, and keeps its names.
    pub fn keep_only(&mut self, mapped: &[Range<u64>]) {
        let look = self.looks.next().saturating_sub(1);
        let is_there = |start: u64, held: &Held| {
            mapped.iter().any(|range| range.start <= start && held.end <= range.end)
        };
        let gone: Vec<u64> = self
            .places
            .iter()
            .filter(|(start, held)| !is_there(**start, held))
            .map(|(start, _)| *start)
            .collect();
        for start in gone {
            if let Some(held) = self.places.remove(&start) {
                self.let_go(start, Held { until_look: look, ..held });
            }
        }
    }

    fn let_go(&mut self, start: u64, gone: Held) {
        let key = |start: u64, held: &Held| (start, held.end, held.owner);
        self.former.retain(|(other, older)| key(*other, older) != key(start, &gone));
        self.former.push((start, gone));
        if self.former.len() > MAX_FORMER {
            self.former.drain(..MAX_FORMER / 2);
        }
    }

    /// No change was counted from before the last look until after it: whatever was called while the
    /// count was `changes` is what it found.
    pub fn settle(&mut self, changes: u16) {
        if let Some(look) = self.looks.counts.back_mut() {
            *look = Some(changes);
        }
    }

    /// Who stands at an address now: the number that a frame there carries.
    pub fn owner_at(&self, address: u64) -> u8 {
        let held = self.places.range(..=address).next_back();
        held.filter(|(_, held)| address < held.end).map_or(0, |(_, held)| held.owner)
    }

    /// The last frame of a stack whose walk met no mapping there, when the count was `changes`:
    /// what was found there while it was the same.
    pub fn own_unknown(&self, frames: &mut [u64], changes: u16) {
        let Some(last) = frames.last_mut().filter(|last| owner_of(**last) == OWNER_UNKNOWN) else {
            return;
        };
        let at = plain(*last).wrapping_sub(1);
        let now = self.places.range(..=at).next_back().map(|(start, held)| (*start, *held));
        let all = self.former.iter().copied().chain(now);
        let is_it = |(start, held): &(u64, Held)| {
            (*start..held.end).contains(&at)
                && self.looks.any_at(held.from_look, held.until_look, changes)
        };
        if let Some((_, held)) = all.into_iter().find(is_it) {
            *last = owned(*last, held.owner);
        }
    }

    /// The number of a new holder of a range.
    fn next_owner(&self, start: u64, end: u64, place: Place) -> u8 {
        let held = self.places.range(..end).rev().map(|(start, held)| (*start, *held));
        let held = held.take_while(|(_, held)| held.end > start);
        let former = self.former.iter().copied();
        let overlaps = |(other, held): &(u64, Held)| *other < end && held.end > start;
        let name = |place| match place {
            Place::Region { region } => self.regions.get(region).map(|region| &region.name),
            Place::Object { .. } => None,
        };
        let mut next = 0;
        for (other_start, other) in former.chain(held).filter(overlaps) {
            let is_named_so = name(place).is_some() && name(place) == name(other.place);
            let is_there_again = (other_start, other.end) == (start, end);
            if is_there_again && (is_named_so || other.place == place) {
                return other.owner;
            }
            // Generated code that grows is still generated code.
            next = next.max(other.owner.saturating_add(u8::from(!is_named_so)));
        }
        next.min(OWNER_OF_MANY)
    }

    fn place(&mut self, start: u64, end: u64, place: Place) {
        let owner = self.next_owner(start, end, place);
        let covered: Vec<u64> = self
            .places
            .range(..end)
            .rev()
            .take_while(|(_, held)| held.end > start)
            .map(|(covered_start, _)| *covered_start)
            .collect();
        for covered_start in covered {
            if let Some(other) = self.places.remove(&covered_start) {
                if covered_start < start {
                    self.places.insert(covered_start, Held { end: start, ..other });
                }
                if other.end > end {
                    self.places.insert(end, other);
                }
                if other.owner != owner {
                    let end = other.end.min(end);
                    let until_look = self.looks.next().saturating_sub(1);
                    self.let_go(covered_start.max(start), Held { end, until_look, ..other });
                }
            }
        }
        if start < end {
            let from_look = self.looks.next().saturating_sub(1);
            let held = Held { end, place, owner, from_look, until_look: usize::MAX };
            self.places.insert(start, held);
            // What was named there as nobody's is this one's.
            self.names.retain(|frame, _| {
                owner_of(*frame) != owner || !(start..end).contains(&plain(*frame).wrapping_sub(1))
            });
        }
    }

    /// Who `owner` is at an address.
    fn find(&self, address: u64, owner: u8) -> Option<Place> {
        if owner >= OWNER_OF_MANY {
            return None;
        }
        let is_it = |held: &Held| address < held.end && held.owner == owner;
        let now = self.places.range(..=address).next_back().map(|(_, held)| *held);
        if let Some(held) = now.filter(is_it) {
            return Some(held.place);
        }
        let former = self.former.iter().filter(|(start, _)| *start <= address);
        former.map(|(_, held)| *held).find(is_it).map(|held| held.place)
    }

    pub fn stats(&self) -> &SymbolizerStats {
        &self.stats
    }

    /// Gives back what was read of files; the names found stay, and files are read again if needed.
    pub fn release(&mut self) {
        for object in &mut self.objects {
            object.sources = None;
        }
    }

    /// Names all addresses of these stacks; each address once, sorted.
    ///
    /// `frames[0]` of a stack is looked up as it is, the others as return addresses. Addresses
    /// named before cost nothing. Frames carry their owners, and so do the answers.
    pub fn name_stacks<'a>(
        &mut self,
        stacks: impl IntoIterator<Item = &'a [u64]>,
    ) -> Vec<AddressNames> {
        let mut lookups: BTreeMap<u64, u64> = BTreeMap::new();
        for frames in stacks {
            let Some((first, callers)) = frames.split_first() else { continue };
            lookups.insert(*first, *first);
            let mut is_interrupted = false;
            for caller in callers {
                let returns_from_signal = self.returns_from_signal(*caller);
                let is_return_address = !is_interrupted && !returns_from_signal;
                let back = u64::from(is_return_address);
                lookups.entry(*caller).or_insert(caller.wrapping_sub(back));
                is_interrupted = returns_from_signal;
            }
        }
        self.name(&lookups);
        lookups.keys().filter_map(|address| self.names.get(address).cloned()).collect()
    }

    /// Rows of signal frames start a byte early, because return addresses are looked up so.
    fn returns_from_signal(&self, address: u64) -> bool {
        let at = plain(address).wrapping_sub(1);
        self.signal_returns.iter().any(|range| range.contains(&at))
    }

    /// Finds the names of what is not named yet: address → address to look up.
    fn name(&mut self, lookups: &BTreeMap<u64, u64>) {
        let mut by_object: BTreeMap<usize, Vec<(u64, u64, u64)>> = BTreeMap::new();
        for (address, at) in lookups {
            if self.names.contains_key(address) {
                continue;
            }
            self.stats.addresses += 1;
            let (at, owner) = (plain(*at), owner_of(*address));
            match self.find(at, owner) {
                Some(Place::Object { object, mapping }) => {
                    let file_offset = at - mapping.start + mapping.file_offset;
                    by_object.entry(object).or_default().push((*address, at, file_offset));
                }
                Some(Place::Region { region }) => {
                    let name = clean(&self.regions[region].name);
                    self.keep(*address, None, vec![nameless(name)]);
                }
                None => {
                    self.stats.unmapped += 1;
                    let what = match owner {
                        OWNER_OF_MANY => "[one of many that were mapped here]",
                        OWNER_UNKNOWN => "[not known when it was called]",
                        _ => "[unmapped]",
                    };
                    let name = nameless(format!("{what} {:#x}", plain(*address)));
                    self.keep(*address, None, vec![name]);
                }
            }
        }
        for (object, addresses) in by_object {
            self.name_in_object(object, &addresses);
        }
    }

    fn keep(&mut self, address: u64, object: Option<usize>, names: Vec<Name>) {
        let object = object.and_then(|index| u32::try_from(index).ok());
        self.names.insert(address, AddressNames { image: 0, address, object, names });
    }

    /// `addresses`: (address, address to look up, its file offset).
    fn name_in_object(&mut self, index: usize, addresses: &[(u64, u64, u64)]) {
        let mut sources = match self.objects[index].sources.take() {
            Some(sources) => sources,
            None => Sources::read(&self.objects[index].file, &self.options, &mut self.stats),
        };
        let mut unnamed = Vec::new();
        for (address, at, file_offset) in addresses {
            let Some(vaddr) = sources.vaddr(*at, *file_offset) else {
                self.stats.unnamed += 1;
                let back = plain(*address).wrapping_sub(*at);
                let name = unknown(&self.objects[index].file.path, back, *file_offset);
                self.keep(*address, Some(index), vec![name]);
                continue;
            };
            let frames = sources.go.as_ref().map(|go| go.frames(vaddr)).unwrap_or_default();
            if frames.is_empty() {
                unnamed.push((*address, vaddr, plain(*address).wrapping_sub(*at)));
                continue;
            }
            let names = frames.into_iter().map(|frame| Name {
                function: clean(&frame.function),
                file: frame.file.as_deref().map(clean),
                line: frame.line,
                inlined: frame.inlined,
            });
            self.keep(*address, Some(index), names.collect());
        }
        let vaddrs: Vec<u64> = unnamed.iter().map(|(_, vaddr, _)| *vaddr).collect();
        let found = sources.symbolize(&vaddrs, &mut self.stats);
        for ((address, vaddr, back), mut names) in unnamed.into_iter().zip(found) {
            if names.is_empty() {
                self.stats.unnamed += 1;
                names.push(unknown(&self.objects[index].file.path, back, vaddr));
            }
            self.keep(address, Some(index), names);
        }
        self.objects[index].sources = Some(sources);
    }
}

fn nameless(function: String) -> Name {
    Name { function, file: None, line: None, inlined: false }
}

/// `libfoo.so+0x1234`, for an address that was looked up `back` bytes earlier.
fn unknown(path: &str, back: u64, looked_up: u64) -> Name {
    let base = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("[unknown]");
    nameless(clean(&format!("{base}+{:#x}", looked_up.wrapping_add(back))))
}

impl Sources {
    fn read(file: &MappedFile, options: &Options, stats: &mut SymbolizerStats) -> Self {
        let mut sources = Self::default();
        let Ok(source) = FileSource::new(&file.file) else {
            stats.objects_unreadable += 1;
            return sources;
        };
        let Ok(elf) = Elf::parse(&source) else {
            stats.objects_unreadable += 1;
            return sources;
        };
        if elf.is_go() {
            sources.go = find_go_table(&elf).map(PclnTable::into_owned);
        }
        let debug_file = match elf.section(".debug_info") {
            Some(_) => None,
            None => {
                DebugLink::of(&elf).find(&file.path, options.root.as_ref(), &options.debug_dirs)
            }
        };
        let debug_source = debug_file.as_ref().and_then(|file| FileSource::new(file).ok());
        let debug = debug_source.as_ref().and_then(|source| Elf::parse(source).ok());
        match Self::of(&elf, debug.as_ref(), options, stats) {
            Some(of) => sources.image = of.image,
            None => log::warn!("failed to copy the symbols of `{}`", clean(&file.path)),
        }
        sources.segments = Some(elf.segments);
        sources
    }

    /// Symbols and debug information alone; `None` where they could not be copied.
    pub(super) fn of<S: ByteSource + ?Sized>(
        elf: &Elf<'_, S>,
        debug: Option<&Elf<'_, S>>,
        options: &Options,
        stats: &mut SymbolizerStats,
    ) -> Option<Self> {
        let image = SymbolImage::build(elf, debug, options.max_debug_bytes)
            .inspect_err(|error| {
                log::debug!("failed to copy symbols: {error}");
                stats.objects_unreadable += 1;
            })
            .ok()?;
        stats.copied_bytes += image.size_bytes;
        stats.debug_info_too_large += u64::from(image.debug_bytes_left_out > 0);
        Some(Self { image: Some((image, blazesym_of_our_files())), ..Self::default() })
    }

    /// The object's own virtual address of a mapped file offset.
    fn vaddr(&self, at: u64, file_offset: u64) -> Option<u64> {
        let mapping = ObjectMapping { start: at, end: at, file_offset };
        let bias = self.segments.as_ref()?.load_bias(&mapping)?;
        Some(at.wrapping_sub(bias))
    }

    /// Names by DWARF and symbols, in the order of `vaddrs`; empty where nothing names one.
    pub(super) fn symbolize(
        &mut self,
        vaddrs: &[u64],
        stats: &mut SymbolizerStats,
    ) -> Vec<Vec<Name>> {
        let mut found: Vec<Vec<Name>> = vec![Vec::new(); vaddrs.len()];
        if vaddrs.is_empty() {
            return found;
        }
        let Some((image, symbolizer)) = &mut self.image else { return found };
        if image.has_debug_info {
            match look_up(symbolizer, image, true, vaddrs) {
                Some(names) => found = names,
                None => {
                    // What broke once is not asked again.
                    stats.debug_info_broken += 1;
                    image.has_debug_info = false;
                    *symbolizer = blazesym_of_our_files();
                }
            }
        }
        let by_symbols = look_up(symbolizer, image, false, vaddrs).unwrap_or_default();
        for (names, symbol) in found.iter_mut().zip(by_symbols) {
            match (names.last_mut(), symbol.into_iter().next_back()) {
                (None, Some(symbol)) => names.push(symbol),
                (Some(name), Some(symbol)) if qualifies(&symbol.function, &name.function) => {
                    name.function = symbol.function;
                }
                _ => {}
            }
        }
        found
    }
}

/// Whether a symbol's name is the debug information's with the path before it: line tables alone
/// name a function without its module or class.
fn qualifies(symbol: &str, name: &str) -> bool {
    if name.contains("::") || name.contains('(') {
        return false;
    }
    let is_path = |path: &str| path.strip_suffix(name).is_some_and(|path| path.ends_with("::"));
    let path = without_parameters(symbol);
    is_path(path) || without_template_arguments(path).is_some_and(is_path)
}

/// `(anonymous namespace)::List<int>::push(int)` → `(anonymous namespace)::List<int>::push`
fn without_parameters(symbol: &str) -> &str {
    const ANONYMOUS: &str = "(anonymous namespace)";
    let mut depth = 0usize;
    for (at, byte) in symbol.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' => depth = depth.saturating_sub(1),
            b'(' if depth == 0 && !symbol[at..].starts_with(ANONYMOUS) => return &symbol[..at],
            _ => {}
        }
    }
    symbol
}

/// `ns::max<int, List<int> >` → `ns::max`; `None` where it does not end in such arguments.
fn without_template_arguments(path: &str) -> Option<&str> {
    let mut depth = 0usize;
    for (at, byte) in path.bytes().enumerate().rev() {
        match byte {
            b'>' => depth += 1,
            b'<' if depth == 1 => return Some(&path[..at]),
            b'<' => depth -= 1,
            _ if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The files are our own copies: they do not change, and link to nothing.
fn blazesym_of_our_files() -> symbolize::Symbolizer {
    symbolize::Symbolizer::builder()
        .enable_auto_reload(false)
        // It takes any name for a mangled one: `h` for `unsigned char`.
        .enable_demangling(false)
        .set_debug_dirs(Some(std::iter::empty::<PathBuf>()))
        .build()
}

/// `None` when the object as a whole could not be parsed, or a parser panicked.
fn look_up(
    symbolizer: &symbolize::Symbolizer,
    image: &SymbolImage,
    debug_syms: bool,
    vaddrs: &[u64],
) -> Option<Vec<Vec<Name>>> {
    let mut elf = ElfOf::new(image.path());
    elf.debug_syms = debug_syms;
    let source = Source::Elf(elf);
    let answer = catch_unwind(AssertUnwindSafe(|| {
        let found = symbolizer.symbolize(&source, Input::VirtOffset(vaddrs)).ok()?;
        Some(found.iter().map(names_of).collect::<Vec<_>>())
    }));
    answer.ok().flatten().filter(|names| names.len() == vaddrs.len())
}

/// Innermost first, as the report shows them.
fn names_of(found: &Symbolized<'_>) -> Vec<Name> {
    let Symbolized::Sym(symbol) = found else { return Vec::new() };
    if symbol.name.is_empty() {
        return Vec::new();
    }
    let name = |function: &str, info: Option<&symbolize::CodeInfo<'_>>, inlined| Name {
        function: if function.is_empty() {
            "[unnamed]".to_owned()
        } else {
            clean(&demangle(function))
        },
        file: info.map(|info| clean(&info.to_path().to_string_lossy())),
        line: info.and_then(|info| info.line).filter(|line| *line > 0),
        inlined,
    };
    // glibc's alias for calls from within itself.
    let function = symbol.name.strip_prefix("__GI_").unwrap_or(&symbol.name);
    let inlined =
        symbol.inlined.iter().rev().map(|call| name(&call.name, call.code_info.as_ref(), true));
    inlined.chain([name(function, symbol.code_info.as_deref(), false)]).collect()
}

#[cfg(test)]
#[path = "symbolize_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "debug_tests.rs"]
mod debug_tests;
