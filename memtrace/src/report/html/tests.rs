use serde_json::Value;

use crate::report::{Format, ReportOptions, render};
use crate::snapshot::Recording;
use crate::snapshot::synthetic::recording;

fn page(recording: &Recording) -> String {
    let bytes = render(Format::Html, recording, &ReportOptions::default()).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn data(page: &str) -> Value {
    let start = page.find("<script type=\"application/json\" id=\"data\">").unwrap();
    let text = &page[start..];
    let text = &text[text.find('>').unwrap() + 1..];
    serde_json::from_str(&text[..text.find("</script>").unwrap()]).unwrap()
}

#[test]
fn the_page_asks_no_network_for_anything() {
    let page = page(&recording());
    let page = &page[..page.find("id=\"data\"").unwrap()];
    for asks in ["src=\"", "<link", "@import", "url(", "fetch(", "XMLHttpRequest"] {
        assert!(!page.contains(asks), "{asks}");
    }
}

#[test]
fn nothing_that_the_tracee_names_becomes_markup() {
    let mut recording = recording();
    let hostile = "</script><script>alert(1)</script><!--{script}--><img src=x onerror=alert(2)>";
    recording.header.tracee.comm = hostile.to_owned();
    recording.names[0].names[0].function = hostile.to_owned();
    let page = page(&recording);
    assert!(!page.contains("<script>alert"));
    assert!(!page.contains("<img"));
    assert_eq!(data(&page)["tracee"]["comm"], hostile);
}

#[test]
fn the_pages_figures_are_the_reports() {
    let recording = recording();
    let document = data(&page(&recording));
    let json = render(Format::Json, &recording, &ReportOptions::default()).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    for (at, snapshot) in json["snapshots"].as_array().unwrap().iter().enumerate() {
        assert_eq!(document["outstanding"][at], snapshot["native"]["outstanding"]["bytes"]);
        assert_eq!(document["instants"][at]["sequence"], snapshot["sequence"]);
        let charge = &snapshot["memory"]["charge"]["bytes"];
        if charge.is_number() {
            assert_eq!(&document["whole"]["bytes"][at], charge);
            let steps = document["waterfalls"][at]["steps"].as_array().unwrap();
            let sum: i64 = steps.iter().map(|step| step["bytes"].as_i64().unwrap()).sum();
            assert_eq!(sum, charge.as_i64().unwrap());
        }
    }
}

#[test]
fn a_recording_without_a_ledger_says_why_instead_of_drawing_nothing() {
    let mut recording = recording();
    for snapshot in &mut recording.snapshots {
        snapshot.memory = crate::snapshot::Known::unknown("smaps was not readable");
    }
    let document = data(&page(&recording));
    assert_eq!(document["instants"][0]["reason"], "smaps was not readable");
    assert_eq!(document["waterfalls"][0]["reason"], "smaps was not readable");
    assert_eq!(document["owners"].as_array().unwrap().len(), 0);
}
