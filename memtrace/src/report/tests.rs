use super::*;
use crate::snapshot::synthetic::recording;

#[test]
fn show() {
    let r = recording();
    let mut o = ReportOptions::default();
    if let Ok(w) = std::env::var("W") {
        o.width = w.parse().unwrap();
    }
    o.colour = std::env::var("C").is_ok();
    println!("{}", String::from_utf8(render(Format::Text, &r, &o).unwrap()).unwrap());
    if let Ok(d) = std::env::var("D") {
        o.merge_go = std::env::var("G").is_ok();
        for (f, n) in
            [(Format::Json, "r.json"), (Format::Folded, "r.folded"), (Format::Pprof, "r.pb.gz")]
        {
            std::fs::write(format!("{d}/{n}"), render(f, &r, &o).unwrap()).unwrap();
        }
    }
}
