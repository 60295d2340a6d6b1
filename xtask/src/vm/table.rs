//! The figures of all guests, as the table of `docs/kernels.md`. Pure.

use std::collections::BTreeSet;

use super::event::Told;
use super::kernels::Expectation;

/// What came of one kernel.
pub struct Row {
    pub package: String,
    pub expectation: Expectation,
    pub told: Told,
    pub wall_seconds: f64,
    /// Everything that did not hold; empty when all did.
    pub failures: Vec<String>,
}

/// Two tables of Markdown: what held, and what the verifier had to do.
pub fn render(rows: &[Row]) -> String {
    let mut out = String::from(
        "| kernel | boots in | doctor | kernel side loads in | exact programs | the rest | whole run |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let told = &row.told;
        let (exact, rest): (Vec<_>, Vec<_>) =
            told.checks.iter().partition(|check| is_program(&check.name));
        let passed = |checks: &[&super::event::Check]| {
            let good = checks.iter().filter(|check| check.error.is_none()).count();
            format!("{good} of {}", checks.len())
        };
        let rest: Vec<_> = rest.into_iter().filter(|check| !is_doctor(&check.name)).collect();
        let exact = match row.expectation {
            Expectation::Works => passed(&exact),
            Expectation::Lacks => "—".to_owned(),
        };
        out.push_str(&format!(
            "| {} | {} | {} | {} | {exact} | {} | {:.0} s |\n",
            told.release.as_deref().unwrap_or(&row.package),
            told.boot_seconds.map_or("not at all".to_owned(), |s| format!("{s:.1} s")),
            doctor(row),
            told.loaded.as_ref().map_or("—".to_owned(), |l| format!("{} ms", l.milliseconds)),
            passed(&rest),
            row.wall_seconds,
        ));
    }
    let programs: BTreeSet<&String> = rows
        .iter()
        .filter_map(|row| row.told.loaded.as_ref())
        .flat_map(|l| l.programs.keys())
        .collect();
    if programs.is_empty() {
        return out;
    }
    out.push_str("\n| verified instructions |");
    let loading: Vec<&Row> = rows.iter().filter(|row| row.told.loaded.is_some()).collect();
    for row in &loading {
        out.push_str(&format!(" {} |", row.told.release.as_deref().unwrap_or(&row.package)));
    }
    out.push_str(&format!("\n|---|{}\n", "---|".repeat(loading.len())));
    for program in programs {
        out.push_str(&format!("| `{program}` |"));
        for row in &loading {
            let count = row.told.loaded.as_ref().and_then(|loaded| loaded.programs.get(program));
            out.push_str(&format!(" {} |", count.map_or("—".to_owned(), |n| grouped(*n))));
        }
        out.push('\n');
    }
    out
}

/// `c/malloc`, and not `after SIGKILL …`.
fn is_program(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, _)| ["c", "cpp", "go", "rust"].contains(&folder))
}

fn is_doctor(name: &str) -> bool {
    name.starts_with("doctor")
}

fn doctor(row: &Row) -> String {
    let check = row.told.checks.iter().find(|check| is_doctor(&check.name));
    match (check, row.expectation) {
        (None, _) => "not asked",
        (Some(check), _) if check.error.is_some() => "wrong",
        (_, Expectation::Works) => "can record",
        (_, Expectation::Lacks) => "cannot record",
    }
    .to_owned()
}

/// `123456` → `123,456`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::event::{Check, Loaded};

    fn check(name: &str, error: Option<&str>) -> Check {
        Check { name: name.to_owned(), seconds: 1.0, error: error.map(str::to_owned) }
    }

    #[test]
    fn what_did_not_hold_is_not_counted_as_passed() {
        let told = Told {
            release: Some("6.1.0".to_owned()),
            boot_seconds: Some(2.36),
            checks: vec![
                check("doctor", None),
                check("load", None),
                check("c/malloc", None),
                check("go/allocations", Some("differs")),
            ],
            loaded: Some(Loaded {
                milliseconds: 812,
                programs: [("exec".to_owned(), 1_234_567)].into(),
            }),
            done: true,
            ..Told::default()
        };
        let row = Row {
            package: "linux".to_owned(),
            expectation: Expectation::Works,
            told,
            wall_seconds: 30.4,
            failures: Vec::new(),
        };
        let table = render(&[row]);
        assert!(
            table.contains("| 6.1.0 | 2.4 s | can record | 812 ms | 1 of 2 | 1 of 1 | 30 s |"),
            "{table}"
        );
        assert!(table.contains("| `exec` | 1,234,567 |"), "{table}");
    }

    #[test]
    fn a_kernel_that_did_not_boot_has_no_figures() {
        let row = Row {
            package: "linux-image-6.1".to_owned(),
            expectation: Expectation::Works,
            told: Told::default(),
            wall_seconds: 3.0,
            failures: vec!["crashed".to_owned()],
        };
        let table = render(&[row]);
        assert!(
            table.contains("| linux-image-6.1 | not at all | not asked | — | 0 of 0 |"),
            "{table}"
        );
    }
}
