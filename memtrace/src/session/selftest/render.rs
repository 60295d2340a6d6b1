//! How a self-check is told: text for people, JSON for scripts. Pure.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kernel::SelftestCounters;
use crate::report::{grouped, visible};
use crate::stacks::compare::{Stop, Summary};

pub struct Report {
    pub pid: u32,
    pub comm: String,
    pub kernel: String,
    pub ended: String,
    pub duration: Duration,
    pub probes: usize,
    pub summary: Summary,
    pub outdated: u64,
    pub counters: SelftestCounters,
    pub disputes: Vec<ToldDispute>,
}

/// A contradiction with names.
pub struct ToldDispute {
    pub tid: u32,
    pub kind: &'static str,
    /// The first frame that differs.
    pub frame: usize,
    pub walk: Vec<Frame>,
    pub walk_end: &'static str,
    pub framehop: Vec<Frame>,
    pub framehop_end: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub address: u64,
    pub name: String,
    /// What the walk's table says there.
    pub row: Option<String>,
}

impl Report {
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let sums = &self.summary;
        writeln!(
            out,
            "memtrace selftest: PID {} ({}), {:.1} s, {} probes, kernel {}",
            self.pid,
            visible(&self.comm),
            self.duration.as_secs_f64(),
            self.probes,
            self.kernel
        )?;
        writeln!(out, "ended because {}\n", self.ended)?;
        writeln!(
            out,
            "Each stack was walked twice: in the kernel by memtrace's tables, and by framehop, from \
             the objects'\nown unwind information, over a copy of the same memory.\n"
        )?;
        let share = |part: u64| percent(part, sums.compared);
        line(out, 0, "stacks compared", sums.compared, &format!("of {} threads", sums.threads()))?;
        line(out, 1, "identical", sums.identical, &share(sums.identical))?;
        if sums.identical_in_part > 0 {
            line(
                out,
                2,
                "of them with steps that nothing describes",
                sums.identical_in_part,
                "frame-pointer steps: Go's or generated code",
            )?;
        }
        let early: u64 = sums.framehop_ended_early.values().sum();
        line(out, 1, "framehop ended early", early, &share(early))?;
        for (stop, count) in &sums.framehop_ended_early {
            line(out, 2, stop.label(), *count, "its frames are the walk's up to there")?;
        }
        let early: u64 = sums.walk_ended_early.values().sum();
        line(out, 1, "the walk ended early", early, &share(early))?;
        for (reason, count) in &sums.walk_ended_early {
            line(out, 2, reason, *count, "its frames are framehop's up to there")?;
        }
        line(out, 1, "contradictions", sums.contradictions, &share(sums.contradictions))?;
        writeln!(out)?;
        line(out, 0, "walks complete", sums.complete, &share(sums.complete))?;
        for (truncation, count) in &sums.truncated {
            let reason = format!("truncated: {}", truncation.reason);
            line(out, 1, &reason, *count, &format!("in {}", visible(&truncation.object)))?;
        }
        line(out, 0, "steps confirmed", sums.checked_steps, "from a frame to its caller")?;
        if sums.evaluated_steps > 0 {
            line(out, 1, "by gimli in place of framehop", sums.evaluated_steps, "expressions")?;
        }
        if sums.go_steps > 0 {
            line(out, 1, "by Go's own table of frame sizes", sums.go_steps, "compiled Go")?;
        }
        line(out, 0, "steps not checked", sums.unchecked_steps, "no unwind information")?;
        if let Some(mean) = sums.mean_frames() {
            writeln!(out, "{:<46}{mean:>12.1}  the most: {}", "frames, mean", sums.most_frames)?;
        }
        writeln!(out)?;
        let SelftestCounters { calls, paced, dropped } = self.counters;
        line(out, 0, "calls at the probes", calls, "each is a trap; sampled per thread")?;
        line(out, 1, "passed over to keep the pace", paced, "")?;
        line(out, 1, "passed over because the ring was full", dropped, "LOST samples")?;
        line(out, 1, "outdated", self.outdated, "mappings changed before they were compared")?;
        for (number, dispute) in (1..).zip(&self.disputes) {
            dispute.write_text(out, number)?;
        }
        let kept = self.disputes.len() as u64;
        if sums.contradictions > kept {
            writeln!(out, "\n{} more contradictions", grouped(sums.contradictions - kept))?;
        }
        writeln!(out, "\n{}", self.verdict())
    }

    fn verdict(&self) -> &'static str {
        match (self.summary.compared, self.summary.contradictions) {
            (0, _) => "Nothing was compared: this says nothing about the walk.",
            (_, 0) => "The walk agrees with the objects' own unwind information.",
            _ => {
                "The walk contradicts the objects' own unwind information: one of them is wrong. \
                 Please report it\nwith this text."
            }
        }
    }

    pub fn json(&self) -> serde_json::Result<String> {
        let sums = &self.summary;
        let by_stop: serde_json::Map<String, Value> = Stop::ALL
            .iter()
            .map(|stop| {
                let count = sums.framehop_ended_early.get(stop).copied().unwrap_or(0);
                (stop.key().to_owned(), json!(count))
            })
            .collect();
        let truncated: Vec<Value> = sums
            .truncated
            .iter()
            .map(|(truncation, stacks)| {
                let object = visible(&truncation.object);
                json!({ "reason": truncation.reason, "object": object, "stacks": stacks })
            })
            .collect();
        let document = json!({
            "pid": self.pid,
            "comm": visible(&self.comm),
            "kernel_release": self.kernel,
            "ended": self.ended,
            "duration_ns": u64::try_from(self.duration.as_nanos()).unwrap_or(u64::MAX),
            "probes": self.probes,
            "stacks_compared": sums.compared,
            "threads": sums.threads(),
            "identical": sums.identical,
            "identical_with_unchecked_steps": sums.identical_in_part,
            "framehop_ended_early": by_stop,
            "walk_ended_early": sums.walk_ended_early,
            "contradictions": sums.contradictions,
            "walks_complete": sums.complete,
            "walks_truncated": truncated,
            "steps_checked": sums.checked_steps,
            "steps_evaluated": sums.evaluated_steps,
            "steps_by_go": sums.go_steps,
            "steps_unchecked": sums.unchecked_steps,
            "frames_mean": sums.mean_frames(),
            "frames_most": sums.most_frames,
            "calls": self.counters.calls,
            "calls_paced": self.counters.paced,
            "calls_dropped": self.counters.dropped,
            "samples_outdated": self.outdated,
            "disputes": self.disputes.iter().map(ToldDispute::json).collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&document).map(|text| text + "\n")
    }
}

/// `label   figure  note`, indented.
fn line(out: &mut String, depth: usize, label: &str, figure: u64, note: &str) -> std::fmt::Result {
    const LABEL: usize = 46;
    let width = LABEL - 2 * depth;
    let row =
        format!("{:indent$}{label:<width$}{:>12}  {note}", "", grouped(figure), indent = 2 * depth);
    writeln!(out, "{}", row.trim_end())
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => String::new(),
        whole => format!("{:.2} %", part as f64 * 100.0 / whole as f64),
    }
}

impl ToldDispute {
    fn write_text(&self, out: &mut String, number: usize) -> std::fmt::Result {
        writeln!(
            out,
            "\ncontradiction {number} (thread {}): {}, from frame #{} on",
            self.tid, self.kind, self.frame
        )?;
        let length = self.walk.len().max(self.framehop.len());
        for index in 0..length {
            let (walk, framehop) = (self.walk.get(index), self.framehop.get(index));
            match (walk, framehop) {
                (Some(walk), Some(framehop)) if walk == framehop => {
                    writeln!(out, "      both      {}", walk.text(index))?;
                }
                (walk, framehop) => {
                    if let Some(walk) = walk {
                        writeln!(out, "    > the walk  {}", walk.text(index))?;
                    }
                    if let Some(framehop) = framehop {
                        writeln!(out, "    > framehop  {}", framehop.text(index))?;
                    }
                }
            }
        }
        writeln!(out, "      the walk ended: {}", self.walk_end)?;
        writeln!(out, "      framehop ended: {}", self.framehop_end)
    }

    fn json(&self) -> Value {
        let frames = |frames: &[Frame]| -> Vec<Value> {
            frames
                .iter()
                .map(|frame| {
                    let address = format!("{:#x}", frame.address);
                    json!({ "address": address, "name": visible(&frame.name), "row": frame.row })
                })
                .collect()
        };
        json!({
            "tid": self.tid,
            "kind": self.kind,
            "frame": self.frame,
            "walk": frames(&self.walk),
            "walk_end": self.walk_end,
            "framehop": frames(&self.framehop),
            "framehop_end": self.framehop_end,
        })
    }
}

impl Frame {
    fn text(&self, index: usize) -> String {
        let row = self.row.as_deref().unwrap_or("no row");
        format!("#{index:<3} {:#014x}  {}  [{row}]", self.address, visible(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::compare::{Opinion, OpinionEnd, Verdict, summary::Compared};
    use memtrace_common::unwind::WalkEnd;

    fn report() -> Report {
        let mut summary = Summary::default();
        let add = |summary: &mut Summary, verdict, walk_end| {
            let framehop = Opinion {
                frames: vec![1, 2],
                end: OpinionEnd::Complete,
                evaluated_steps: 0,
                go_steps: 0,
                unchecked_steps: 0,
            };
            let walk = vec![1, 2];
            summary.add(Compared { tid: 7, verdict, walk, walk_end, framehop }, |_| {
                "/lib/evil\u{1b}[2J.so".to_owned()
            });
        };
        for _ in 0..1999 {
            add(&mut summary, Verdict::Identical, WalkEnd::Complete);
        }
        let early = Verdict::WalkEndedEarly(WalkEnd::NoUnwindRow);
        add(&mut summary, early, WalkEnd::NoUnwindRow);
        Report {
            pid: 7,
            comm: "a\u{1b}b".into(),
            kernel: "6.1".into(),
            ended: "the duration is over".into(),
            duration: Duration::from_millis(1500),
            probes: 3,
            summary,
            outdated: 4,
            counters: SelftestCounters { calls: 9000, paced: 6990, dropped: 6 },
            disputes: Vec::new(),
        }
    }

    #[test]
    fn every_figure_is_told_and_nothing_that_a_terminal_acts_on() {
        let text = report().text();
        for part in ["99.95 %", "2,000", "1,999", "no unwind row", "LOST", "6,990", "agrees"] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        let json = report().json().expect("it serializes");
        assert!(!json.contains('\u{1b}'));
        let json: Value = serde_json::from_str(&json).expect("it is JSON");
        assert_eq!(json["stacks_compared"], 2000);
        assert_eq!(json["walks_truncated"][0]["stacks"], 1);
        assert_eq!(json["calls_dropped"], 6);
    }

    #[test]
    fn scripts_learn_of_a_contradiction_and_of_silence() {
        use super::super::{CONTRADICTED, exit_code};
        let mut report = report();
        assert_eq!(exit_code(&report).ok(), Some(0));
        report.summary.contradictions = 1;
        assert_eq!(exit_code(&report).ok(), Some(CONTRADICTED));
        report.summary = Summary::default();
        assert!(exit_code(&report).is_err());
        assert!(report.text().contains("says nothing about the walk"));
    }

    #[test]
    fn a_contradiction_is_shown_side_by_side_from_where_it_begins() {
        let frame = |address, name: &str| Frame { address, name: name.into(), row: None };
        let mut report = report();
        report.summary.contradictions = 2;
        report.disputes.push(ToldDispute {
            tid: 7,
            kind: "another frame",
            frame: 1,
            walk: vec![frame(0x10, "malloc"), frame(0x20, "wrong")],
            walk_end: "the end of the stack",
            framehop: vec![frame(0x10, "malloc"), frame(0x30, "right"), frame(0x40, "main")],
            framehop_end: "the end of the stack",
        });
        let text = report.text();
        for part in [
            "both      #0   0x000000000010  malloc",
            "> the walk  #1   0x000000000020  wrong",
            "> framehop  #1   0x000000000030  right",
            "> framehop  #2   0x000000000040  main",
            "1 more contradictions",
            "contradicts",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }
}
