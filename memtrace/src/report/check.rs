//! `memtrace check`: how it is told, as text, JSON and JUnit XML.

use serde_json::json;

use super::ReportError;
use super::json::{SafeStrings, number};
use super::numbers::{bytes, rate};
use super::style::Paint;
use crate::sanitize::visible;
use crate::verdict::check::{Offender, Outcome};

pub fn text(outcome: &Outcome, colour: bool) -> String {
    let paint = Paint::new(colour);
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    for rule in &outcome.rules {
        let word = if rule.holds { "ok  ".to_owned() } else { paint.warning("FAIL") };
        line(format!("{word}  {}: {}", rule.name, visible(&rule.what)));
        for offender in &rule.offenders {
            line(format!("        {}", summary(offender)));
            for frame in &offender.frames {
                line(format!("            {}", visible(frame)));
            }
        }
    }
    for (pattern, (stacks, held)) in &outcome.suppressed {
        line(format!(
            "      suppressed by leak:{}: {stacks} stacks, {}",
            visible(pattern),
            bytes(*held)
        ));
    }
    for doubt in &outcome.doubts {
        line(format!("      mind: {}", visible(doubt)));
    }
    out
}

fn summary(offender: &Offender) -> String {
    format!(
        "{}: {}, {} ({} not freed)",
        visible(&offender.place),
        offender.behaviour,
        rate(offender.bytes_per_second),
        bytes(offender.outstanding_bytes)
    )
}

/// The contract of `docs/json.md`, `check`.
pub fn json(outcome: &Outcome) -> Result<Vec<u8>, ReportError> {
    use serde::Serialize;
    let document = json!({
        "schema": 1,
        "memtrace": env!("CARGO_PKG_VERSION"),
        "holds": outcome.holds(),
        "rules": outcome.rules.iter().map(|rule| json!({
            "name": rule.name,
            "holds": rule.holds,
            "what": rule.what,
            "offenders": rule.offenders.iter().map(|it| json!({
                "place": it.place,
                "behaviour": it.behaviour,
                "growth_bytes": number(it.growth_bytes),
                "bytes_per_second": it.bytes_per_second,
                "outstanding_bytes": it.outstanding_bytes,
                "frames": it.frames,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "suppressed": outcome.suppressed.iter().map(|(pattern, (stacks, held))| json!({
            "pattern": pattern,
            "stacks": stacks,
            "outstanding_bytes": held,
        })).collect::<Vec<_>>(),
        "doubts": outcome.doubts,
    });
    let mut out = Vec::new();
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut out, SafeStrings))?;
    out.push(b'\n');
    Ok(out)
}

/// One test case per rule, as CI servers show it.
pub fn junit(outcome: &Outcome) -> String {
    let failures = outcome.rules.iter().filter(|rule| !rule.holds).count();
    let tests = outcome.rules.len();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites tests=\"{tests}\" failures=\"{failures}\">\n\
         <testsuite name=\"memtrace check\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\">\n"
    );
    for rule in &outcome.rules {
        out.push_str(&format!("<testcase classname=\"memtrace\" name=\"{}\">", xml(rule.name)));
        if !rule.holds {
            out.push_str(&format!("<failure message=\"{}\">", xml(&rule.what)));
            for offender in &rule.offenders {
                out.push_str(&xml(&summary(offender)));
                out.push('\n');
                for frame in &offender.frames {
                    out.push_str(&format!("    {}\n", xml(frame)));
                }
            }
            out.push_str("</failure>");
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}

/// Escaped, and without the characters that XML cannot hold.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::check::Rule;

    fn outcome() -> Outcome {
        Outcome {
            rules: vec![
                Rule {
                    name: "max-outstanding",
                    holds: true,
                    what: "12 B are not freed".to_owned(),
                    offenders: Vec::new(),
                },
                Rule {
                    name: "no-leak-candidates",
                    holds: false,
                    what: "1 found: std::vector<int>::push & \u{1b}[31m".to_owned(),
                    offenders: vec![Offender {
                        place: "parse (a.c:7)".to_owned(),
                        behaviour: "growing",
                        growth_bytes: 4096,
                        bytes_per_second: 409.6,
                        outstanding_bytes: 8192,
                        frames: vec!["malloc".to_owned(), "parse<\"x\"> a.c:7".to_owned()],
                    }],
                },
            ],
            ..Outcome::default()
        }
    }

    #[test]
    fn junit_counts_failures_and_escapes_names() {
        let xml = junit(&outcome());
        assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
        assert!(xml.contains("std::vector&lt;int&gt;::push &amp; "), "{xml}");
        assert!(xml.contains("parse&lt;&quot;x&quot;&gt;"), "{xml}");
        assert!(!xml.contains('\u{1b}'));
    }

    #[test]
    fn text_and_json_say_what_failed() {
        let text = text(&outcome(), false);
        assert!(text.contains("ok    max-outstanding"), "{text}");
        assert!(text.contains("FAIL  no-leak-candidates"), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&json(&outcome()).unwrap()).unwrap();
        assert_eq!(json["holds"], false);
        assert_eq!(json["rules"][1]["offenders"][0]["growth_bytes"], 4096);
    }
}
