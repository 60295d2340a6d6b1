//! Names for the stacks of the heap profile, as `runtime/pprof` writes them.
//!
//! A bucket's stack holds one return address per logical frame, so each is named by its innermost
//! function alone; the last one, at which a deep stack was cut, by all that are inlined there.
//! Leading frames of the runtime are left out unless there are no others, `runtime.goexit` always.

use std::collections::HashMap;
use std::sync::Arc;

use crate::snapshot::Name;
use crate::stacks::pclntab::PclnTable;

/// The release that hides `internal/runtime/…` like `runtime.…`.
const HIDES_INTERNAL: u32 = 24;
const END: &str = "runtime.goexit";

/// One object's Go table and how far it was moved.
#[derive(Debug)]
pub struct NamedText {
    pub table: PclnTable<'static>,
    /// Runtime address less the object's own.
    pub bias: u64,
}

/// What is known of one return address.
#[derive(Clone, Debug)]
struct Known {
    /// What `runtime.FuncForPC` calls it starts with `runtime.`
    hidden: bool,
    /// At the call, innermost first.
    names: Arc<[NameId]>,
}

/// A name, by its place in [`Naming::name`].
pub type NameId = u32;

#[derive(Debug)]
pub struct Naming {
    texts: Vec<NamedText>,
    minor: u32,
    known: HashMap<u64, Known>,
    names: Vec<Arc<Name>>,
    ids: HashMap<Arc<Name>, NameId>,
}

impl Naming {
    pub fn new(texts: Vec<NamedText>, minor: u32) -> Self {
        let (known, names, ids) = (HashMap::new(), Vec::new(), HashMap::new());
        Self { texts, minor, known, names, ids }
    }

    pub fn name(&self, id: NameId) -> Option<&Arc<Name>> {
        self.names.get(id as usize)
    }

    /// Of each name its place among all, by function and line: to compare names is dear, their
    /// places are compared instead.
    pub fn ranks(&self) -> Vec<u32> {
        let key = |id: usize| (self.names[id].function.as_str(), self.names[id].line);
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_unstable_by(|a, b| key(*a).cmp(&key(*b)));
        let mut ranks = vec![0; order.len()];
        let mut rank = 0;
        for (at, id) in order.iter().enumerate() {
            if at > 0 && key(order[at - 1]) != key(*id) {
                rank += 1;
            }
            ranks[*id] = rank;
        }
        ranks
    }

    /// Leaf first. Equal stacks have equal names.
    pub fn stack(&mut self, stack: &[u64]) -> Vec<NameId> {
        let shown = stack.iter().position(|pc| !self.look_up(*pc).hidden).unwrap_or(0);
        let names = self.frames(&stack[shown..]);
        if names.is_empty() { self.frames(stack) } else { names }
    }

    fn frames(&mut self, stack: &[u64]) -> Vec<NameId> {
        let mut frames = Vec::with_capacity(stack.len());
        for (index, pc) in stack.iter().enumerate() {
            let names = Arc::clone(&self.look_up(*pc).names);
            let wanted = if index + 1 == stack.len() { names.len() } else { 1 };
            let is_end = |id: &NameId| self.name(*id).is_some_and(|name| name.function == END);
            if !names.first().is_some_and(is_end) {
                frames.extend(names.iter().take(wanted));
            }
        }
        frames
    }

    fn look_up(&mut self, pc: u64) -> Known {
        if let Some(known) = self.known.get(&pc) {
            return known.clone();
        }
        let (hidden, names) = read(&self.texts, self.minor, pc);
        let names = names.into_iter().map(|name| self.intern(name)).collect();
        let known = Known { hidden, names };
        self.known.insert(pc, known.clone());
        known
    }

    fn intern(&mut self, name: Name) -> NameId {
        if let Some(id) = self.ids.get(&name) {
            return *id;
        }
        // As many as program counters, which are bounded far below.
        let id = NameId::try_from(self.names.len()).unwrap_or(NameId::MAX);
        let name = Arc::new(name);
        self.names.push(Arc::clone(&name));
        self.ids.insert(name, id);
        id
    }
}

/// Whether pprof hides the frame when it leads, and its names, innermost first.
fn read(texts: &[NamedText], minor: u32, pc: u64) -> (bool, Vec<Name>) {
    let found = texts.iter().find_map(|text| {
        let vaddr = pc.wrapping_sub(text.bias);
        text.table.find(vaddr).map(|function| (text, vaddr, function))
    });
    let Some((text, vaddr, function)) = found else {
        let function = format!("{:#x}", pc.wrapping_sub(1));
        return (false, vec![Name { function, file: None, line: None, inlined: false }]);
    };
    // `FuncForPC` takes the return address as it is, the frames take the call before it.
    let at_return = text.table.frames(vaddr);
    let hidden = at_return.first().is_some_and(|frame| {
        frame.function.starts_with("runtime.")
            || minor >= HIDES_INTERNAL && frame.function.starts_with("internal/runtime/")
    });
    let call = if vaddr > function.start { vaddr - 1 } else { vaddr };
    let names = text.table.frames(call).into_iter().map(|frame| Name {
        function: frame.function,
        file: frame.file,
        line: frame.line,
        inlined: frame.inlined,
    });
    (hidden, names.collect())
}
