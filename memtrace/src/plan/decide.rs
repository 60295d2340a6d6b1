//! From the objects' facts to the [`ProbePlan`]. Pure.
//!
//! Every function of the catalogue that an object defines ends up in the plan or among what is not
//! probed, with the reason. A function is left out on purpose only where each of its calls is seen
//! at another probe: it would be counted twice, or at twice the cost.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::catalogue::{self, Convention, EntryPoint};
use super::host::HostFacts;
use super::site::{self, Forward};
use super::{PlannedProbe, ProbePlan};
use crate::snapshot::NotProbed;
use crate::tracee::allocators::{Family, ObjectFacts};
use crate::tracee::elf::FunctionSymbol;

/// Longest chain of functions that forward to one another.
const MAX_FORWARDS: usize = 8;

/// Whether a symbol name matters to the plan: what to ask `tracee::allocators` for.
pub fn is_wanted(name: &str) -> bool {
    catalogue::lookup(name).is_some() || catalogue::not_supported(name).is_some()
}

/// Decides the probes for all objects of a process.
pub fn decide(objects: &[ObjectFacts], host: &HostFacts) -> ProbePlan {
    let mut plan = ProbePlan::default();
    for object in objects {
        decide_object(object, host, &mut plan);
    }
    let simple = plan.probes.iter().any(|probe| probe.signature.is_simple());
    if !simple {
        for object in objects.iter().filter(|object| object.is_executable) {
            let reason = match (object.elf.interpreter.is_some(), object.elf.has_full_symbols) {
                (false, false) => {
                    "a static program without symbols: an allocator inside it cannot be found; install its debug symbols or link it unstripped"
                }
                _ => "no allocator function was found in any object of the process",
            };
            plan.not_probed.push(not_probed(object, None, reason));
        }
    }
    plan
}

/// A function with what the catalogue says of it.
struct Candidate<'a> {
    symbol: &'a FunctionSymbol,
    name: &'a str,
    entry: EntryPoint,
}

fn decide_object(object: &ObjectFacts, host: &HostFacts, plan: &mut ProbePlan) {
    let mut candidates: BTreeMap<u64, Candidate<'_>> = BTreeMap::new();
    for symbol in &object.elf.functions {
        for name in &symbol.names {
            if let Some(reason) = catalogue::not_supported(name) {
                plan.not_probed.push(not_probed(object, Some(name), reason));
            }
        }
        let Some((name, entry)) = main_name(symbol) else { continue };
        match refusal(object, symbol, entry) {
            Some(reason) => plan.not_probed.push(not_probed(object, Some(name), &reason)),
            None => {
                candidates.insert(symbol.address, Candidate { symbol, name, entry });
            }
        }
    }
    for candidate in candidates.values() {
        if let Some(target) = forwarded_to(object, candidate, &candidates) {
            let reason = format!("only forwards to `{target}`, where each of its calls is seen");
            plan.not_probed.push(not_probed(object, Some(candidate.name), &reason));
            continue;
        }
        let symbol = candidate.symbol;
        let signature = candidate.entry.signature;
        match site::choose(&symbol.code, symbol.address, signature, host.emulation) {
            Ok(site) => plan.probes.push(PlannedProbe {
                signature,
                attach_path: attach_path(object),
                object: object.file.path.clone(),
                allocator: allocator_name(object, candidate),
                function: candidate.name.to_owned(),
                function_file_offset: symbol.file_offset,
                entry_site: site.offset,
                entry_instruction: site.instruction,
                entry_is_emulated: site.emulated,
                return_site: signature.needs_return().then_some(site.offset),
            }),
            Err(error) => {
                plan.not_probed.push(not_probed(object, Some(candidate.name), &error.to_string()));
            }
        }
    }
}

fn not_probed(object: &ObjectFacts, function: Option<&str>, reason: &str) -> NotProbed {
    NotProbed {
        object: object.file.path.clone(),
        function: function.map(str::to_owned),
        reason: reason.to_owned(),
    }
}

/// The open file itself: exactly what the facts were read from, whatever becomes of its path.
fn attach_path(object: &ObjectFacts) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", object.file.file.as_raw_fd()))
}

/// The plainest of a function's names: the C library's before internal ones, then the shortest.
fn main_name(symbol: &FunctionSymbol) -> Option<(&str, EntryPoint)> {
    symbol
        .names
        .iter()
        .filter_map(|name| Some((name.as_str(), catalogue::lookup(name)?)))
        .min_by_key(|(name, entry)| {
            let plain = matches!(entry.convention, Convention::C | Convention::Ranged);
            (!plain, name.starts_with('_'), name.len(), *name)
        })
}

/// Why a function is not even a candidate.
fn refusal(object: &ObjectFacts, symbol: &FunctionSymbol, entry: EntryPoint) -> Option<String> {
    if symbol.indirect {
        return Some("which function it is gets decided when the program starts (IFUNC)".into());
    }
    if let Some(go) = &object.elf.go {
        match go.text {
            None => {
                return Some(
                    "Go code cannot be told from C code in this file (stripped): a return probe on Go code would crash the process".into(),
                );
            }
            Some((start, end)) if (start..end).contains(&symbol.address) => {
                return Some("it is Go code: a return probe on it would crash the process".into());
            }
            Some(_) => {}
        }
    }
    let signatures = symbol.names.iter().filter_map(|name| catalogue::lookup(name));
    if let Some(other) = signatures.map(|other| other.signature).find(|s| *s != entry.signature) {
        return Some(format!(
            "one piece of code under names of different meaning ({:?} and {other:?}: {})",
            entry.signature,
            symbol.names.join(", ")
        ));
    }
    if object.is_loader && !object.families.contains(&Family::Musl) {
        let reason = match entry.convention {
            Convention::Ranged => "the loader's own copy, with which it maps libraries",
            _ => "the loader's own allocator, in use only while the program starts",
        };
        return Some(reason.to_owned());
    }
    match entry.convention {
        Convention::CxxOperator if !replaces_operators(object) => {
            Some("goes through malloc and free, where each of its calls is seen".into())
        }
        Convention::C if symbol.local && !has_malloc_and_free(object) => {
            Some("a local function of that name in an object that is no allocator".into())
        }
        Convention::Ranged if symbol.local && !is_libc(object) => {
            Some("a local function of that name in an object that is no C library".into())
        }
        _ => None,
    }
}

/// libstdc++'s and libc++abi's operators call malloc; those of an allocator need not.
fn replaces_operators(object: &ObjectFacts) -> bool {
    let own = [Family::Jemalloc, Family::Tcmalloc, Family::Mimalloc];
    let known = !object.families.is_empty();
    has_malloc_and_free(object) && (!known || object.families.iter().any(|f| own.contains(f)))
}

fn has_malloc_and_free(object: &ObjectFacts) -> bool {
    let defines = |wanted: &str| {
        object.elf.functions.iter().any(|f| f.names.iter().any(|name| name == wanted))
    };
    defines("malloc") && defines("free")
}

fn is_libc(object: &ObjectFacts) -> bool {
    object.families.iter().any(|family| matches!(family, Family::Glibc | Family::Musl))
}

/// The candidate at which every call of this one arrives, where it does nothing but jump there.
fn forwarded_to<'a>(
    object: &'a ObjectFacts,
    from: &Candidate<'_>,
    candidates: &'a BTreeMap<u64, Candidate<'a>>,
) -> Option<&'a str> {
    let mut symbol = from.symbol;
    let mut last = None;
    for _ in 0..MAX_FORWARDS {
        let (target, import) =
            match site::forward(&symbol.code, symbol.address, from.entry.signature) {
                Some(Forward::Direct(target)) => (target, object.elf.plt.get(&target)),
                Some(Forward::Slot(slot)) => (0, object.elf.slots.get(&slot)),
                None => break,
            };
        if let Some(name) = import.filter(|name| is_probed_elsewhere(from, name)) {
            return Some(name);
        }
        if target == from.symbol.address {
            return None;
        }
        match candidates.get(&target) {
            Some(next) if same_kind(from.entry, next.entry) => {
                last = Some(next.name);
                symbol = next.symbol;
            }
            _ => break,
        }
    }
    last
}

/// A name that the dynamic linker binds: to this object's or to another's function of that name,
/// and every object's is probed.
fn is_probed_elsewhere(from: &Candidate<'_>, name: &str) -> bool {
    catalogue::lookup(name).is_some_and(|entry| {
        same_kind(from.entry, entry) && entry.convention != Convention::CxxOperator
    })
}

/// A free forwards to a free, an allocation to an allocation.
fn same_kind(one: EntryPoint, other: EntryPoint) -> bool {
    one.signature.needs_return() == other.signature.needs_return()
        && one.signature.is_simple() == other.signature.is_simple()
}

fn allocator_name(object: &ObjectFacts, candidate: &Candidate<'_>) -> String {
    let of_convention = match candidate.entry.convention {
        Convention::Jemalloc if !candidate.entry.prefix.is_empty() => {
            return format!("jemalloc ({}…)", candidate.entry.prefix);
        }
        Convention::Jemalloc => Some(Family::Jemalloc),
        Convention::Tcmalloc => Some(Family::Tcmalloc),
        Convention::Mimalloc => Some(Family::Mimalloc),
        _ => None,
    };
    let family = of_convention.or_else(|| object.families.first().copied());
    family.map_or("unknown", Family::name).to_owned()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
pub(super) mod tests;
