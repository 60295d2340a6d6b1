//! What a program knows about itself, and the comparison with what memtrace saw.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::recorded::{Native, Stack};

/// The line of JSON that every program of `programs/` prints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// Outstanding memory by call site. Everything else outstanding must be zero.
    pub sites: Vec<Site>,
    /// Functions through which the program allocates what it cannot count itself, for instance
    /// `dlopen`: their stacks are left out of the total, and only theirs.
    #[serde(default)]
    pub uncounted: Vec<String>,
    /// Native ranges outstanding, where the program maps memory itself.
    #[serde(default)]
    pub ranges_bytes: Option<u64>,
    /// Losses that the program provokes, by label. All others must be zero.
    #[serde(default)]
    pub losses: BTreeMap<String, u64>,
    /// Tallies that the program knows exactly, by label.
    #[serde(default)]
    pub tallies: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// As it stands in the frames, without parameters.
    pub function: String,
    pub bytes: u64,
    pub blocks: u64,
    /// Callers that must stand above it in every one of its stacks, from the inside out.
    #[serde(default)]
    pub through: Vec<String>,
}

/// Fails where the books are not the truth, with every difference.
pub fn assert_told(truth: &Truth, native: &Native) -> anyhow::Result<()> {
    let differences = differences(truth, native);
    anyhow::ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

/// Every difference between the truth and the books, in words; empty when there is none.
pub fn differences(truth: &Truth, native: &Native) -> Vec<String> {
    let mut found = Vec::new();
    let mut expected = (0, 0);
    for site in &truth.sites {
        expected = (expected.0 + site.bytes, expected.1 + site.blocks);
        let seen = sum(native.stacks.iter().filter(|stack| stack.contains(&site.function)));
        if seen != (site.bytes, site.blocks) {
            found.push(format!(
                "`{}` holds {} bytes in {} blocks, memtrace shows {} in {}",
                site.function, site.bytes, site.blocks, seen.0, seen.1
            ));
        }
    }
    for site in truth.sites.iter().filter(|site| !site.through.is_empty()) {
        let whole: Vec<&str> =
            std::iter::once(&site.function).chain(&site.through).map(String::as_str).collect();
        let broken = native.stacks.iter().find(|stack| {
            stack.blocks > 0 && stack.contains(&site.function) && !stack.contains_in_order(&whole)
        });
        if let Some(stack) = broken {
            found.push(format!("not every stack goes {}: {stack}", whole.join(" < ")));
        }
    }
    let uncounted =
        |stack: &&Stack| truth.uncounted.iter().any(|function| stack.contains(function));
    let others = sum(native.stacks.iter().filter(uncounted));
    let total = (
        native.outstanding.bytes.wrapping_sub(others.0),
        native.outstanding.blocks.wrapping_sub(others.1),
    );
    if total != expected {
        found.push(format!(
            "in total {} bytes in {} blocks are outstanding, memtrace shows {} in {}",
            expected.0, expected.1, total.0, total.1
        ));
        let known = |stack: &&Stack| {
            !uncounted(stack) && !truth.sites.iter().any(|site| stack.contains(&site.function))
        };
        for stack in native.stacks.iter().filter(known).filter(|s| s.blocks > 0).take(5) {
            found.push(format!("unexplained: {stack}"));
        }
    }
    let by_stack = sum(native.stacks.iter());
    if by_stack != (native.outstanding.bytes, native.outstanding.blocks) {
        found.push(format!(
            "the stacks sum to {} bytes in {} blocks, the total says {} in {}",
            by_stack.0, by_stack.1, native.outstanding.bytes, native.outstanding.blocks
        ));
    }
    if let Some(bytes) = truth.ranges_bytes
        && native.ranges.bytes != bytes
    {
        found.push(format!(
            "native ranges hold {bytes} bytes, memtrace shows {}",
            native.ranges.bytes
        ));
    }
    if native.losses.is_empty() {
        found.push("`native.losses` is empty: zeros belong in it".to_owned());
    }
    for (label, &count) in &native.losses {
        let provoked = truth.losses.get(label).copied().unwrap_or(0);
        if count != provoked {
            found.push(format!("loss `{label}` is {count}, not {provoked}"));
        }
    }
    for (label, &count) in &truth.tallies {
        let seen = native.tallies.get(label).copied();
        if seen != Some(count) {
            found.push(format!("tally `{label}` is {seen:?}, not {count}"));
        }
    }
    found
}

fn sum<'a>(stacks: impl Iterator<Item = &'a Stack>) -> (u64, u64) {
    stacks.fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::{Frame, Outstanding, Ranges};

    fn stack(functions: &[&str], bytes: u64, blocks: u64) -> Stack {
        let frames = functions
            .iter()
            .map(|function| Frame { function: Some((*function).to_owned()), ..Frame::default() })
            .collect();
        Stack { bytes, blocks, frames, ..Stack::default() }
    }

    fn native(stacks: Vec<Stack>) -> Native {
        let (bytes, blocks) = sum(stacks.iter());
        Native {
            callers: serde_json::Value::Null,
            outstanding: Outstanding { bytes, blocks },
            stacks,
            ranges: Ranges { bytes: 0, stacks: Vec::new() },
            losses: BTreeMap::from([("block_map_full".to_owned(), 0)]),
            tallies: BTreeMap::new(),
        }
    }

    fn truth(function: &str, bytes: u64, blocks: u64) -> Truth {
        let site = Site { function: function.to_owned(), bytes, blocks, through: Vec::new() };
        Truth { sites: vec![site], ..Truth::default() }
    }

    #[test]
    fn equal_books_have_no_difference() {
        let books = native(vec![stack(&["malloc", "leak", "main"], 977, 1)]);
        assert_eq!(differences(&truth("leak", 977, 1), &books), Vec::<String>::new());
    }

    #[test]
    fn one_byte_is_a_difference() {
        let books = native(vec![stack(&["malloc", "leak", "main"], 976, 1)]);
        assert_eq!(differences(&truth("leak", 977, 1), &books).len(), 2);
    }

    #[test]
    fn bytes_under_another_function_are_a_difference_although_the_total_is_right() {
        let books = native(vec![stack(&["malloc", "other", "main"], 977, 1)]);
        assert_eq!(differences(&truth("leak", 977, 1), &books).len(), 1);
    }

    #[test]
    fn a_site_is_found_by_its_name_without_parameters() {
        let books = native(vec![stack(&["malloc", "leak(unsigned long)", "main"], 977, 1)]);
        assert_eq!(differences(&truth("leak", 977, 1), &books), Vec::<String>::new());
    }

    #[test]
    fn a_stack_that_ends_below_the_expected_caller_is_a_difference() {
        let mut expected = truth("leak", 977, 1);
        expected.sites[0].through = vec!["work".to_owned(), "main".to_owned()];
        let whole = native(vec![stack(&["malloc", "leak", "work", "start", "main"], 977, 1)]);
        assert_eq!(differences(&expected, &whole), Vec::<String>::new());
        let cut = native(vec![stack(&["malloc", "leak", "work"], 977, 1)]);
        assert_eq!(differences(&expected, &cut).len(), 1);
    }

    #[test]
    fn an_unprovoked_loss_is_a_difference() {
        let mut books = native(vec![stack(&["leak"], 977, 1)]);
        books.losses.insert("stack_unreadable".to_owned(), 1);
        assert_eq!(differences(&truth("leak", 977, 1), &books).len(), 1);
    }
}
