//! How the verdict is told: text for people, JSON for scripts. No decisions here.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::{Area, DoctorReport, State};

/// Narrower than this the columns do not fit.
const LEAST_WIDTH: usize = 60;
const MARK_COLUMNS: usize = 5;

impl DoctorReport {
    /// The checks by area, then what works; wrapped at `width` columns.
    pub fn render_text(&self, color: bool, width: usize) -> String {
        let width = width.max(LEAST_WIDTH);
        let names = self.checks.iter().map(|check| check.name.chars().count());
        let modes = self.modes.iter().map(|mode| mode.mode.chars().count());
        let name_columns = names.chain(modes).max().unwrap_or_default().min(width / 2);
        let mut text = String::new();
        let mut row = |area: Option<&str>, state: State, name: &str, detail: &str, advice| {
            if let Some(area) = area {
                let bold = if color { Style::new().bold() } else { Style::new() };
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{bold}{area}{bold:#}");
            }
            let style = if color { style_of(state) } else { Style::new() };
            let indent = MARK_COLUMNS + 2 + name_columns + 2;
            let mut lines = wrap(detail, width.saturating_sub(indent));
            lines.extend(wrap_advice(advice, width.saturating_sub(indent)));
            let mut lines = lines.iter();
            let first = lines.next().map(String::as_str).unwrap_or_default();
            let mark = mark_of(state);
            let _ = writeln!(
                text,
                "{style}{mark:>MARK_COLUMNS$}{style:#}  {name:<name_columns$}  {first}"
            );
            for line in lines {
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        };
        let mut area_before = None;
        for check in &self.checks {
            let area = (area_before != Some(check.area)).then(|| title_of(check.area));
            area_before = Some(check.area);
            row(area, check.state, &check.name, &check.detail, check.try_.as_deref());
        }
        for (index, mode) in self.modes.iter().enumerate() {
            let state = if mode.usable { State::Ok } else { State::Fail };
            row((index == 0).then_some("What works here"), state, &mode.mode, &mode.needs, None);
        }
        text
    }

    /// `{"can_record": …, "checks": […], "modes": […]}`
    pub fn render_json(&self) -> String {
        let document = serde_json::json!({
            "can_record": self.can_record(),
            "checks": self.checks,
            "modes": self.modes,
        });
        format!("{document:#}\n")
    }
}

fn title_of(area: Area) -> &'static str {
    match area {
        Area::Host => "Host",
        Area::Privileges => "Privileges",
        Area::Kernel => "Kernel",
        Area::Cgroups => "Cgroups",
        Area::Containers => "Container runtimes",
    }
}

fn mark_of(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Fail => "FAIL",
        State::Info => "-",
    }
}

fn style_of(state: State) -> Style {
    let color = match state {
        State::Ok => AnsiColor::Green,
        State::Warn => AnsiColor::Yellow,
        State::Fail => return AnsiColor::Red.on_default().bold(),
        State::Info => return Style::new().dimmed(),
    };
    color.on_default()
}

fn wrap_advice(advice: Option<&str>, columns: usize) -> Vec<String> {
    advice.map(|advice| wrap(&format!("try: {advice}"), columns)).unwrap_or_default()
}

/// Lines of at most `columns`, broken at blanks; a longer word stands alone. Control characters,
/// which a path could bring in, are replaced.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_ascii_whitespace() {
        let word = word.replace(char::is_control, "\u{fffd}");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::super::{Check, Mode};
    use super::*;

    fn report() -> DoctorReport {
        DoctorReport {
            checks: vec![Check {
                area: Area::Privileges,
                name: "CAP_SYS_ADMIN".to_owned(),
                state: State::Fail,
                detail: "missing: it is to attach uprobes and to open mapped files".to_owned(),
                try_: Some("run memtrace as root".to_owned()),
            }],
            modes: vec![Mode {
                mode: "report".to_owned(),
                usable: true,
                needs: "nothing but the recording".to_owned(),
            }],
        }
    }

    #[test]
    fn text_is_laid_out_in_columns_within_the_width() {
        let text = report().render_text(false, 60);
        assert_eq!(
            text,
            "\
Privileges
 FAIL  CAP_SYS_ADMIN  missing: it is to attach uprobes and
                      to open mapped files
                      try: run memtrace as root

What works here
   ok  report         nothing but the recording
"
        );
    }

    #[test]
    fn color_changes_nothing_but_color() {
        let plain = report().render_text(false, 80);
        let colored = report().render_text(true, 80);
        assert_ne!(plain, colored);
        assert_eq!(anstream::adapter::strip_str(&colored).to_string(), plain);
    }

    #[test]
    fn the_verdict_stands_in_the_json() {
        let json: serde_json::Value = serde_json::from_str(&report().render_json()).unwrap();
        assert_eq!(json["can_record"], false);
        assert_eq!(json["checks"][0]["state"], "fail");
        assert_eq!(json["checks"][0]["area"], "privileges");
        assert_eq!(json["checks"][0]["try"], "run memtrace as root");
        assert_eq!(json["modes"][0]["usable"], true);
    }

    #[test]
    fn a_hostile_path_reaches_no_terminal() {
        assert_eq!(wrap("`/x\u{1b}[2J/y`", 40), ["`/x\u{fffd}[2J/y`"]);
    }
}
