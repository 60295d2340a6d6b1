//! Every dependency's licence is one of `deny.toml`'s list, by `cargo metadata`: what cargo-deny
//! checks too, without building it first (minutes on a small machine).

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{paths, shell};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

pub fn check() -> Result<()> {
    let path = paths::workspace().join("deny.toml");
    let policy =
        std::fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
    let allowed = allowed(&policy).context("deny.toml has no `allow = [...]` of licences")?;
    let metadata = shell::ask(
        Command::new(paths::cargo())
            .args(["metadata", "--format-version", "1", "--locked"])
            .current_dir(paths::workspace()),
    )?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    let mut refused = Vec::new();
    for package in &metadata.packages {
        let license = package.license.as_deref().unwrap_or("");
        if !permits(license, &allowed) {
            refused.push(format!("{} {}: `{license}`", package.name, package.version));
        }
    }
    ensure!(refused.is_empty(), "licences that deny.toml does not allow: {}", refused.join(", "));
    eprintln!("{} packages, all under {}", metadata.packages.len(), {
        let names: Vec<&str> = allowed.iter().map(String::as_str).collect();
        names.join(", ")
    });
    Ok(())
}

/// The strings of the first `allow = [ … ]`.
fn allowed(policy: &str) -> Option<BTreeSet<String>> {
    let list = policy.split("\nallow = [").nth(1)?.split(']').next()?;
    Some(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Whether an SPDX expression is met by the allowed licences alone.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    // Before SPDX, a slash meant "or".
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words, allowed) == Some(true) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

// `None` is an expression that is none.

fn any(words: &mut Words, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed)?;
    }
    Some(met)
}

fn all(words: &mut Words, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed)?;
    }
    Some(met)
}

fn one(words: &mut Words, allowed: &BTreeSet<String>) -> Option<bool> {
    let license = words.next()?;
    if license == "(" {
        let met = any(words, allowed)?;
        return (words.next()? == ")").then_some(met);
    }
    // `Apache-2.0 WITH LLVM-exception` permits more than without.
    if words.next_if_eq(&"WITH").is_some() {
        words.next()?;
    }
    Some(allowed.contains(license))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(expression: &str) -> bool {
        let policy =
            "[licenses]\nallow = [\n  \"MIT\",\n  \"Apache-2.0\",\n  \"BSD-3-Clause\",\n]\n";
        permits(expression, &allowed(policy).expect("a list"))
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert!(met("MIT"));
        assert!(met("GPL-2.0 OR MIT"));
        assert!(met("MIT/GPL-2.0"));
        assert!(met("Apache-2.0 WITH LLVM-exception OR GPL-2.0"));
    }

    #[test]
    fn all_of_a_conjunction_must_be_allowed() {
        assert!(met("MIT AND (GPL-2.0 OR BSD-3-Clause)"));
        assert!(!met("MIT AND GPL-2.0"));
        assert!(!met("GPL-2.0 OR (MIT AND GPL-3.0)"));
    }

    #[test]
    fn no_licence_and_broken_expressions_are_refused() {
        assert!(!met(""));
        assert!(!met("MIT MIT"));
        assert!(!met("(MIT"));
        assert!(!met("MIT OR"));
    }
}
