//! Whether a recording keeps what a pipeline asks of it. Pure.
//!
//! What cannot be judged does not hold: a check that saw too little must not pass.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::stacks::StackVerdict;
use super::suppress::Suppressions;
use super::trend::Trend;
use super::{Finding, Kind, Verdict, judge, remedy};
use crate::outstanding::books::Librarian;
use crate::outstanding::diff::key;
use crate::outstanding::frames::Frame;
use crate::snapshot::{Known, Recording};

/// A candidate that is in the baseline may grow this many times as fast as it did there.
const FASTER: f64 = 1.5;
/// Stacks named with a rule that does not hold.
const MOST_OFFENDERS: usize = 20;

/// What is asked; what is not asked is `None` or false.
#[derive(Clone, Debug, Default)]
pub struct Asked<'a> {
    /// Bytes per second, of all native blocks together.
    pub max_native_growth: Option<f64>,
    /// Bytes, at the end.
    pub max_outstanding: Option<u64>,
    pub no_leak_candidates: bool,
    /// An older recording: its candidates are known.
    pub baseline: Option<&'a Recording>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Stable, as on the command line.
    pub name: &'static str,
    pub holds: bool,
    /// One sentence with the figures.
    pub what: String,
    /// Who breaks it, the worst first.
    pub offenders: Vec<Offender>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Offender {
    pub place: String,
    pub behaviour: &'static str,
    pub growth_bytes: i128,
    pub bytes_per_second: f64,
    pub outstanding_bytes: u64,
    /// Function and place, leaf first.
    pub frames: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub rules: Vec<Rule>,
    /// By pattern: stacks and outstanding bytes that were left out.
    pub suppressed: BTreeMap<String, (usize, u64)>,
    pub doubts: Vec<String>,
}

impl Outcome {
    pub fn holds(&self) -> bool {
        self.rules.iter().all(|rule| rule.holds)
    }
}

pub fn check(recording: &Recording, asked: &Asked<'_>, known: &Suppressions) -> Outcome {
    let (left, suppressed) = without(recording, known);
    let librarian = Librarian::new(&left);
    let verdict = judge(&librarian);
    let mut rules = Vec::new();
    if let Some(most) = asked.max_native_growth {
        rules.push(growth(&verdict, most));
    }
    if let Some(most) = asked.max_outstanding {
        rules.push(outstanding(&librarian, &verdict, most));
    }
    if asked.no_leak_candidates {
        rules.push(candidates(&verdict));
    }
    if let Some(old) = asked.baseline {
        let (old, _) = without(old, known);
        rules.push(baseline(&verdict, &judge(&Librarian::new(&old))));
    }
    let doubts = verdict.value().map(|verdict| verdict.doubts.clone()).unwrap_or_default();
    Outcome { rules, suppressed, doubts }
}

/// The recording without the stacks that are suppressed, and what was left out.
fn without(
    recording: &Recording,
    known: &Suppressions,
) -> (Recording, BTreeMap<String, (usize, u64)>) {
    let librarian = Librarian::new(recording);
    let mut pattern_of: HashMap<usize, Option<String>> = HashMap::new();
    let mut gone: HashSet<u64> = HashSet::new();
    let mut suppressed: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut counted: HashSet<usize> = HashSet::new();
    for (position, snapshot) in recording.snapshots.iter().enumerate() {
        let is_last = position + 1 == recording.snapshots.len();
        for row in &snapshot.native.stacks {
            let Some(group) = librarian.group_of(row.stack) else { continue };
            let pattern = pattern_of.entry(group).or_insert_with(|| {
                let frames = librarian.frames_of(group);
                known.of(frames.iter().map(|frame| &**frame)).map(str::to_owned)
            });
            let Some(pattern) = pattern else { continue };
            gone.insert(row.stack);
            if is_last {
                let sum = suppressed.entry(pattern.clone()).or_default();
                sum.0 += usize::from(counted.insert(group));
                sum.1 = sum.1.saturating_add(row.allocated_bytes.saturating_sub(row.freed_bytes));
            }
        }
    }
    let mut left = recording.clone();
    for snapshot in &mut left.snapshots {
        snapshot.native.stacks.retain(|row| !gone.contains(&row.stack));
        snapshot.native.cohorts.rows.retain(|row| !gone.contains(&row.stack));
    }
    (left, suppressed)
}

fn unjudged(name: &'static str, reason: &str) -> Rule {
    Rule { name, holds: false, what: format!("not judged: {reason}"), offenders: Vec::new() }
}

fn growth(verdict: &Known<Verdict>, most: f64) -> Rule {
    const NAME: &str = "max-native-growth";
    let verdict = match verdict {
        Known::Value(verdict) => verdict,
        Known::Unknown { reason } => return unjudged(NAME, reason),
    };
    let Some(native) = &verdict.native else { return unjudged(NAME, "too few snapshots") };
    // No trend is told where next to nothing moved.
    let still = Trend { slope: 0.0, low: 0.0, high: 0.0, p: 1.0, points: 0 };
    let trend = native.trend.unwrap_or(still);
    let per_hour = |bytes: f64| format!("{:.2} MiB/h", bytes * 3600.0 / f64::from(1 << 20));
    let holds = trend.slope <= most;
    let mut sites: Vec<&StackVerdict> =
        verdict.sites.iter().filter(|site| site.trend.is_some_and(|it| it.slope > 0.0)).collect();
    sites.sort_by(|a, b| b.rate().total_cmp(&a.rate()));
    Rule {
        name: NAME,
        holds,
        what: format!(
            "native blocks grow by {} (95 %: {} to {}, p {:.3}); {} are allowed",
            per_hour(trend.slope),
            per_hour(trend.low),
            per_hour(trend.high),
            trend.p,
            per_hour(most)
        ),
        offenders: if holds { Vec::new() } else { offenders(sites) },
    }
}

fn outstanding(librarian: &Librarian<'_>, verdict: &Known<Verdict>, most: u64) -> Rule {
    const NAME: &str = "max-outstanding";
    let Some(last) = librarian.recording().snapshots.last() else {
        return unjudged(NAME, "the recording holds no snapshot");
    };
    let bytes = last.native.stacks.iter().fold(0u64, |sum, row| {
        sum.saturating_add(row.allocated_bytes.saturating_sub(row.freed_bytes))
    });
    let holds = bytes <= most;
    let mut sites: Vec<&StackVerdict> =
        verdict.value().map(|verdict| verdict.sites.iter().collect()).unwrap_or_default();
    sites.sort_by_key(|site| std::cmp::Reverse(site.last));
    Rule {
        name: NAME,
        holds,
        what: format!("{bytes} B are not freed at the end; {most} B are allowed"),
        offenders: if holds { Vec::new() } else { offenders(sites) },
    }
}

fn native(verdict: &Verdict) -> impl Iterator<Item = &Finding> {
    verdict.findings.iter().filter(|finding| finding.kind.is_native())
}

fn candidates(verdict: &Known<Verdict>) -> Rule {
    const NAME: &str = "no-leak-candidates";
    let verdict = match verdict {
        Known::Value(verdict) => verdict,
        Known::Unknown { reason } => return unjudged(NAME, reason),
    };
    let found: Vec<&Finding> = native(verdict).collect();
    let sites = found.iter().filter_map(|finding| verdict.sites.get(finding.site?));
    Rule {
        name: NAME,
        holds: found.is_empty(),
        what: match found.first() {
            None => "no leak candidate".to_owned(),
            Some(first) => format!("{} found; the largest: {}", found.len(), first.what),
        },
        offenders: offenders(sites.collect()),
    }
}

/// By what a site reads as: lines move from one build to the next.
fn name(site: &StackVerdict) -> String {
    let frames: Vec<_> = site.site.iter().chain(&site.go_caller).cloned().collect();
    key(&frames, true)
}

fn baseline(verdict: &Known<Verdict>, old: &Known<Verdict>) -> Rule {
    const NAME: &str = "baseline";
    let (verdict, old) = match (verdict, old) {
        (Known::Value(verdict), Known::Value(old)) => (verdict, old),
        (Known::Unknown { reason }, _) => return unjudged(NAME, reason),
        (_, Known::Unknown { reason }) => {
            return unjudged(NAME, &format!("in the baseline, {reason}"));
        }
    };
    let before: HashMap<String, f64> = native(old)
        .filter_map(|finding| old.sites.get(finding.site?))
        .map(|site| (name(site), site.rate()))
        .collect();
    let worse: Vec<&StackVerdict> = native(verdict)
        .filter(|finding| finding.kind == Kind::LeakCandidate)
        .filter_map(|finding| verdict.sites.get(finding.site?))
        .filter(|site| before.get(&name(site)).is_none_or(|old| site.rate() > old * FASTER))
        .collect();
    Rule {
        name: NAME,
        holds: worse.is_empty(),
        what: match worse.first() {
            None => format!(
                "no leak candidate that the baseline does not have ({} there)",
                before.len()
            ),
            Some(first) => format!(
                "{} new, or growing more than {FASTER} times as fast; the largest: {}",
                worse.len(),
                remedy::place(first)
            ),
        },
        offenders: offenders(worse),
    }
}

fn offenders(sites: Vec<&StackVerdict>) -> Vec<Offender> {
    let frame = |frame: &Frame| match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{} {file}:{line}", frame.label()),
        _ => frame.label(),
    };
    let told = sites.into_iter().take(MOST_OFFENDERS).map(|site| Offender {
        place: remedy::place(site),
        behaviour: site.behaviour.key(),
        growth_bytes: site.growth_bytes,
        bytes_per_second: site.rate(),
        outstanding_bytes: site.last,
        frames: site.frames.iter().map(|it| frame(it)).collect(),
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::super::scenarios_tests::{leaking, steady};
    use super::*;

    fn outcome(recording: &Recording, asked: &Asked<'_>) -> Outcome {
        check(recording, asked, &Suppressions::default())
    }

    fn holds(recording: &Recording, asked: &Asked<'_>) -> bool {
        outcome(recording, asked).holds()
    }

    fn all() -> Asked<'static> {
        Asked {
            max_native_growth: Some(1024.0),
            max_outstanding: Some(1 << 20),
            no_leak_candidates: true,
            baseline: None,
        }
    }

    #[test]
    fn a_steady_program_keeps_every_limit_and_a_leaking_one_breaks_them() {
        let steady = outcome(&steady(), &all());
        assert!(steady.holds(), "{steady:#?}");
        let found = outcome(&leaking(5), &all());
        let broken: Vec<_> = found.rules.iter().filter(|it| !it.holds).map(|it| it.name).collect();
        assert_eq!(broken, ["max-native-growth", "no-leak-candidates"], "{found:#?}");
        let candidates = &found.rules[2];
        assert!(candidates.offenders[0].frames[0].contains("malloc"), "{candidates:#?}");
        assert!(!holds(&leaking(5), &Asked { max_outstanding: Some(10), ..Asked::default() }));
    }

    #[test]
    fn what_is_suppressed_breaks_nothing_and_is_told() {
        let known = Suppressions::parse("leak:sqlite3MemMalloc").unwrap();
        let outcome = check(&leaking(5), &all(), &known);
        assert!(outcome.holds(), "{outcome:#?}");
        let (stacks, bytes) = outcome.suppressed["sqlite3MemMalloc"];
        assert!(stacks == 1 && bytes > 0);
    }

    #[test]
    fn the_baselines_candidates_are_known_until_they_grow_faster() {
        let old = leaking(5);
        let against = |old| Asked { baseline: Some(old), ..Asked::default() };
        assert!(holds(&leaking(5), &against(&old)));
        assert!(holds(&leaking(6), &against(&old)));
        assert!(!holds(&leaking(10), &against(&old)));
        assert!(!holds(&leaking(5), &against(&steady())));
    }

    #[test]
    fn what_cannot_be_judged_does_not_hold() {
        let short = crate::snapshot::synthetic::recording();
        let asked = Asked { no_leak_candidates: true, ..Asked::default() };
        let outcome = outcome(&short, &asked);
        assert!(!outcome.holds());
        assert!(outcome.rules[0].what.starts_with("not judged"), "{outcome:#?}");
    }
}
