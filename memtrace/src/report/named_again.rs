//! How it is told what became of names that were looked up again, object by object.

use serde_json::{Value, json};

use super::numbers::count;
use crate::debuginfo::Holds;
use crate::sanitize::visible;
use crate::stacks::again::{NamedAgain, ObjectAgain, Outcome};

/// Refusals told of one object.
const MOST_REFUSED: usize = 4;

/// One sentence.
pub fn summary(again: &NamedAgain) -> String {
    let objects = |is: &dyn Fn(&Outcome) -> bool| {
        again.objects.iter().filter(|object| is(&object.outcome)).count() as u64
    };
    let changed = again.objects.iter().map(|object| object.changed).sum();
    let found = objects(&|it| matches!(it, Outcome::Found { .. } | Outcome::SymbolsAlone { .. }));
    let before = objects(&|it| matches!(it, Outcome::NamedBefore));
    let rest = again.objects.len() as u64 - found - before;
    format!(
        "looked names up again: {} in {} have better ones; {} had them already, {} without debug \
         information",
        count(changed, "address"),
        count(found, "object"),
        count(before, "object"),
        count(rest, "object"),
    )
}

/// One line for each object, those of no account last, and what was refused.
pub fn lines(again: &NamedAgain) -> Vec<String> {
    let mut objects: Vec<&ObjectAgain> = again.objects.iter().collect();
    objects.sort_by_key(|object| std::cmp::Reverse(object.addresses));
    objects.into_iter().map(line).collect()
}

fn line(object: &ObjectAgain) -> String {
    let path = visible(&object.path);
    let what = match &object.outcome {
        Outcome::NamedBefore => "every address had its line".to_owned(),
        Outcome::NoBuildId => {
            "the recording has no build id of it: nothing can be matched".to_owned()
        }
        Outcome::NotFound => "not found".to_owned(),
        Outcome::OtherLayout { from } => {
            format!("found {}, whose segments are not those recorded: not used", visible(from))
        }
        Outcome::Unreadable { from } => {
            format!("found {}, whose symbols could not be read", visible(from))
        }
        Outcome::Found { from, holds: Holds::DebugInfo } => format!("found {}", visible(from)),
        Outcome::Found { from, holds: Holds::Symbols } => {
            format!("found {}, which has symbols and no lines", visible(from))
        }
        Outcome::SymbolsAlone { from } => format!(
            "found {}, whose debug information is damaged or too large: symbols alone",
            visible(from)
        ),
    };
    let id = object.build_id.as_deref().map_or(String::new(), |id| {
        format!(" (build id {})", visible(&id.chars().take(128).collect::<String>()))
    });
    let lines = format!(
        "{} of {} with lines, {} before",
        object.lines,
        count(object.addresses, "address"),
        object.lines_before
    );
    let mut text = format!("{path}{id}: {what}; {lines}");
    for refused in object.refused.iter().take(MOST_REFUSED) {
        text.push_str(&format!("; {}: {}", visible(&refused.from), visible(&refused.why)));
    }
    if let Some(more) = object.refused.len().checked_sub(MOST_REFUSED).filter(|more| *more > 0) {
        text.push_str(&format!("; {more} more were refused"));
    }
    text
}

/// The array of `docs/json.md`.
pub(super) fn json(again: &NamedAgain) -> Value {
    let row = |object: &ObjectAgain| {
        let (outcome, from) = match &object.outcome {
            Outcome::NamedBefore => ("named_before", None),
            Outcome::NoBuildId => ("no_build_id", None),
            Outcome::NotFound => ("not_found", None),
            Outcome::OtherLayout { from } => ("other_layout", Some(from)),
            Outcome::Unreadable { from } => ("unreadable", Some(from)),
            Outcome::Found { from, holds: Holds::DebugInfo } => ("debug_information", Some(from)),
            Outcome::Found { from, holds: Holds::Symbols } => ("symbols", Some(from)),
            Outcome::SymbolsAlone { from } => ("symbols_alone", Some(from)),
        };
        let refused = object.refused.iter();
        json!({
            "path": object.path,
            "build_id": object.build_id,
            "outcome": outcome,
            "from": from,
            "addresses": object.addresses,
            "with_lines_before": object.lines_before,
            "with_lines": object.lines,
            "changed": object.changed,
            "refused": refused.map(|it| json!({ "from": it.from, "why": it.why })).collect::<Vec<_>>(),
        })
    };
    again.objects.iter().map(row).collect()
}
