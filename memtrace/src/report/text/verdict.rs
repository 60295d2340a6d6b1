//! What it means over time: findings with their figures, what would refute them, and the remedy.

use super::Page;
use crate::report::numbers::{bytes, count, duration, grouped, rate};
use crate::report::verdict_json::number;
use crate::sanitize::visible;
use crate::snapshot::Known;
use crate::verdict::stacks::Behaviour;
use crate::verdict::{Figure, Finding, How, Unit, Verdict};

/// Findings told in full.
const MOST_FINDINGS: usize = 8;

impl Page<'_> {
    pub(super) fn verdict(&mut self, verdict: &Known<Verdict>) {
        self.section("VERDICT OVER TIME");
        let verdict = match verdict {
            Known::Value(verdict) => verdict,
            Known::Unknown { reason } => {
                self.paragraph(2, &format!("None: {reason}."));
                return;
            }
        };
        if let Some(window) = verdict.window {
            let findings = match verdict.findings.len() {
                0 => "Nothing grows that should not".to_owned(),
                found => count(found as u64, "finding"),
            };
            self.paragraph(
                2,
                &format!(
                    "{findings}, over {} of load in {} snapshots.",
                    duration(window.to_ns.saturating_sub(window.from_ns)),
                    window.last - window.first + 1
                ),
            );
        }
        for finding in verdict.findings.iter().take(MOST_FINDINGS) {
            self.finding(finding);
        }
        if verdict.findings.len() > MOST_FINDINGS {
            let more = verdict.findings.len() - MOST_FINDINGS;
            self.paragraph(2, &format!("{more} more findings: JSON holds all."));
        }
        let of = |behaviour| verdict.sites.iter().filter(move |it| it.behaviour == behaviour);
        let told: Vec<String> = [
            (Behaviour::Plateau, "level off (caches, pools)"),
            (Behaviour::Churn, "churn"),
            (Behaviour::Held, "hold what they have"),
            (Behaviour::Shrinking, "shrink"),
            (Behaviour::Unclear, "are unclear"),
        ]
        .into_iter()
        .filter_map(|(behaviour, what)| {
            let (calls, held) = of(behaviour)
                .fold((0u64, 0u64), |sum, it| (sum.0 + 1, sum.1.saturating_add(it.last)));
            (calls > 0).then(|| format!("{} {what} ({})", grouped(calls), bytes(held)))
        })
        .collect();
        if !told.is_empty() {
            self.paragraph(2, &format!("Of the other calls {}.", told.join(", ")));
        }
        for doubt in &verdict.doubts {
            self.paragraph(2, &format!("Mind: {}.", visible(doubt)));
        }
    }

    fn finding(&mut self, finding: &Finding) {
        let what = self.paint.figure(&visible(&finding.what));
        self.paragraph(2, &format!("• {what}"));
        let figures: Vec<String> = finding.figures.iter().map(shown).collect();
        self.paragraph(4, &format!("Rests on: {}.", figures.join("; ")));
        self.paragraph(4, &format!("Refuted by: {}.", visible(&finding.refuted_by)));
        self.paragraph(4, &format!("Remedy: {}.", visible(&finding.remedy)));
    }
}

fn shown(figure: &Figure) -> String {
    let Figure { label, value, unit, how, .. } = figure;
    let whole = || value.round().max(0.0) as u64;
    let value = match unit {
        Unit::Bytes if *value < 0.0 => format!("−{}", bytes((-value).round() as u64)),
        Unit::Bytes => bytes(whole()),
        Unit::BytesPerSecond => rate(*value),
        Unit::Blocks => count(whole(), "block"),
        Unit::Share => format!("{:.0} %", value * 100.0),
        Unit::Probability if *value < 0.001 => "< 0.001".to_owned(),
        Unit::Probability => format!("{value:.3}"),
        Unit::Count if value.fract() != 0.0 => format!("{value:.2}"),
        Unit::Count => number(*value).to_string(),
        Unit::Seconds => format!("{value:.1} s"),
    };
    match how {
        How::Derived => format!("{label} {value} (derived)"),
        How::Sampled => format!("{label} {value} (sampled)"),
        How::Measured => format!("{label} {value}"),
    }
}
