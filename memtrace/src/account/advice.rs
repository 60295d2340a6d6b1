//! What could be done, each with its arithmetic and its evidence. No advice without a figure.

use serde::Serialize;

use super::classes::Class;
use super::row::How;
use super::{Ledger, go, native};
use crate::snapshot::Known;
use crate::snapshot::facts::{Facts, NO_LIMIT};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// Stable, for programs.
    pub key: &'static str,
    /// One line that can be acted on.
    pub what: String,
    /// The figure it is about.
    pub bytes: i128,
    pub how: How,
    /// How the figure was made, with the numbers.
    pub arithmetic: String,
    /// What was read that says so.
    pub evidence: String,
}

/// Room left for what a moment does not show, as a part of a limit: one twentieth.
const MARGIN: i128 = 20;
/// Less than this is not worth a change.
const WORTHWHILE: i128 = 8 << 20;
const MIB: i128 = 1 << 20;

pub(super) fn advice(facts: &Facts, ledger: &Ledger) -> Vec<Advice> {
    let mut advice = Vec::new();
    headroom(&mut advice, ledger);
    request_and_limit(&mut advice, ledger);
    go_limit(&mut advice, facts, ledger);
    retention(&mut advice, facts, ledger);
    cache(&mut advice, ledger);
    advice
}

fn shown(bytes: i128) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}

fn headroom(advice: &mut Vec<Advice>, ledger: &Ledger) {
    let (Known::Value(charge), Some(limits)) = (&ledger.figures, &ledger.limits) else { return };
    let Some(limit) = &limits.effective else { return };
    let Some(usage) = limit.usage.map(i128::from) else { return };
    let bytes = i128::from(limit.bytes);
    let room = bytes - usage;
    let reclaimable = i128::from(charge.usage.known()) - i128::from(charge.unreclaimable());
    advice.push(Advice {
        key: "headroom",
        what: format!(
            "{} can be charged before reclaim begins, about {} before the OOM killer does",
            shown(room),
            shown(room + reclaimable.max(0))
        ),
        bytes: room,
        how: How::Derived,
        arithmetic: format!(
            "{} {} − charge {}; and {} that can be taken back",
            limit.file,
            shown(bytes),
            shown(usage),
            shown(reclaimable.max(0))
        ),
        evidence: format!("{} of {}; {}", limit.file, limit.path, charge.usage.source),
    });
}

fn request_and_limit(advice: &mut Vec<Advice>, ledger: &Ledger) {
    let Known::Value(charge) = &ledger.figures else { return };
    let Some(limits) = &ledger.limits else { return };
    let working_set = i128::from(charge.working_set());
    let round_up = |bytes: i128| (bytes + 16 * MIB - 1) / (16 * MIB) * (16 * MIB);
    advice.push(Advice {
        key: "request",
        what: format!(
            "request at least {} (memory as it is used now)",
            shown(round_up(working_set))
        ),
        bytes: round_up(working_set),
        how: How::Derived,
        arithmetic: format!("working set {} rounded up to 16 MiB", shown(working_set)),
        evidence: format!("{} − {}", charge.usage.source, charge.inactive_file.source),
    });
    let Some(peak) = limits.peak.bytes.value().map(|peak| i128::from(*peak)) else { return };
    // Cold cache fills whatever is free: it is no need.
    let need = (peak - i128::from(charge.inactive_file.known())).max(working_set);
    let suggested = round_up(need + need / 4);
    advice.push(Advice {
        key: "limit",
        what: format!("limit of about {}", shown(suggested)),
        bytes: suggested,
        how: How::Derived,
        arithmetic: format!(
            "(peak {} − cold cache {}) × 1.25, rounded up to 16 MiB",
            shown(peak),
            shown(charge.inactive_file.known().into())
        ),
        evidence: format!("{}, {}", limits.peak.source, charge.inactive_file.source),
    });
}

fn go_limit(advice: &mut Vec<Advice>, facts: &Facts, ledger: &Ledger) {
    let (Known::Value(charge), Some(limits)) = (&ledger.figures, &ledger.limits) else { return };
    let Some(limit) = &limits.effective else { return };
    let mut go_processes = facts.processes.iter().filter(|process| process.go_version.is_some());
    // The limit of one container is not to be shared by guess among several Go programs.
    let (Some(process), None) = (go_processes.next(), go_processes.next()) else { return };
    let Some(own) = ledger.processes.iter().find(|it| it.pid == process.id.pid) else { return };
    let (go_bytes, go_source) = match go::memory(process) {
        Some((books, memory)) => {
            (go::retained(memory), format!("Sys − HeapReleased ({})", books.source))
        }
        None => (
            i128::from(own.resident_of(Class::is_go)),
            format!("/proc/{}/smaps of Go's arenas (the runtime's books were not read)", own.pid),
        ),
    };
    let rest = i128::from(charge.unreclaimable()) - go_bytes;
    let total = i128::from(limit.bytes);
    let others_in_cgroup = i128::from(limit.usage.unwrap_or(0)) - i128::from(charge.usage.known());
    let suggested = total - rest.max(0) - others_in_cgroup.max(0) - total / MARGIN;
    if suggested <= 0 || go_bytes <= 0 {
        return;
    }
    let set = match process.go.value().map(|go| &go.memory_limit) {
        Some(Known::Value(NO_LIMIT)) => "; it is not set now".to_owned(),
        Some(Known::Value(now)) => format!("; it is {} now", shown((*now).into())),
        _ => String::new(),
    };
    let tight = if suggested < go_bytes {
        ", less than Go holds now: native memory, not Go, fills this container"
    } else {
        ""
    };
    advice.push(Advice {
        key: "gomemlimit",
        what: format!("GOMEMLIMIT={}MiB{tight}{set}", suggested / MIB),
        bytes: suggested,
        how: How::Derived,
        arithmetic: format!(
            "limit {} − not Go's and not reclaimable {} − 5 % of the limit {}",
            shown(total),
            shown(rest.max(0) + others_in_cgroup.max(0)),
            shown(total / MARGIN)
        ),
        evidence: format!("{} of {}; {go_source}", limit.file, limit.path),
    });
}

fn retention(advice: &mut Vec<Advice>, facts: &Facts, ledger: &Ledger) {
    for process in &facts.processes {
        let Some(own) = ledger.processes.iter().find(|it| it.pid == process.id.pid) else {
            continue;
        };
        let resident = i128::from(own.resident_of(Class::is_c_heap));
        let Some(census) = process.heap.value() else { continue };
        let arenas = census.arenas.len();
        if let Some(trimmable) = census.trimmable_resident.value().map(|bytes| i128::from(*bytes))
            && trimmable >= WORTHWHILE
        {
            advice.push(Advice {
                key: "malloc_trim",
                what: format!(
                    "malloc_trim(0) in pid {} would give back {}; a lower MALLOC_TRIM_THRESHOLD_ \
                     keeps less",
                    own.pid,
                    shown(trimmable)
                ),
                bytes: trimmable,
                how: How::Measured,
                arithmetic: format!(
                    "whole free pages that are resident, in {arenas} arenas; the C heap has {} \
                     resident",
                    shown(resident)
                ),
                evidence: census.source.clone(),
            });
        }
        let Some(in_use) = native::in_use_of_others(process).map(i128::from) else { continue };
        let others = own.class(Class::Arena).map_or(0, |class| i128::from(class.rss));
        let kept = others - in_use;
        if arenas > 2 && kept >= WORTHWHILE && kept * 10 >= resident {
            advice.push(Advice {
                key: "arena_max",
                what: format!(
                    "MALLOC_ARENA_MAX=2 for pid {}: {} arenas besides the main one keep {}, each \
                     for its own threads",
                    own.pid,
                    arenas - 1,
                    shown(kept)
                ),
                bytes: kept,
                how: How::Derived,
                arithmetic: format!(
                    "resident in them {} − in use {}",
                    shown(others),
                    shown(in_use)
                ),
                evidence: format!("/proc/{}/smaps; {}", own.pid, census.source),
            });
        }
    }
}

fn cache(advice: &mut Vec<Advice>, ledger: &Ledger) {
    let Known::Value(charge) = &ledger.figures else { return };
    let active = i128::from(charge.active_file.known());
    let usage = i128::from(charge.usage.known());
    if active >= WORTHWHILE && active * 4 >= usage {
        advice.push(Advice {
            key: "hot_cache",
            what: format!(
                "{} of what docker stats and kubectl top show is page cache that the kernel can \
                 take back: no leak",
                shown(active)
            ),
            bytes: active,
            how: How::Measured,
            arithmetic: format!(
                "{:.0} % of the charge {}",
                100.0 * active as f64 / usage.max(1) as f64,
                shown(usage)
            ),
            evidence: charge.active_file.source.clone(),
        });
    }
}
