//! The recording as one page that opens from disk, without a network: memory over time by owner,
//! the steps from pprof's figure to the container's, the flame graph between two instants, the
//! ledger, every tool's figure, losses.
//!
//! Everything the tracee named reaches the page as JSON text and is set as text, never as markup.

use super::{ReportError, ReportOptions};
use crate::outstanding::books::{Books, Librarian};

mod data;
mod stacks;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// Parts of one script, in the order in which they build on each other.
const SCRIPTS: [&str; 6] = [
    include_str!("script/base.js"),
    include_str!("script/findings.js"),
    include_str!("script/over_time.js"),
    include_str!("script/flame.js"),
    include_str!("script/lists.js"),
    include_str!("script/main.js"),
];
const LIBRARIES: [&str; 2] =
    [include_str!("vendor/uPlot.iife.min.js"), include_str!("vendor/flame.min.js")];
const LIBRARY_STYLES: [&str; 2] =
    [include_str!("vendor/uPlot.min.css"), include_str!("vendor/flame.min.css")];
const LICENCES: &str = include_str!("vendor/LICENCES");

pub(super) fn render<'a>(
    librarian: &Librarian<'a>,
    books: &Books<'a>,
    options: &'a ReportOptions,
) -> Result<Vec<u8>, ReportError> {
    let data = serde_json::to_string(&data::page(librarian, books, options))?;
    let mut page = String::with_capacity(data.len() + (1 << 19));
    let mut rest = PAGE;
    // The places are those of the template alone: what is put in is never searched for places.
    while let Some((before, after)) = rest.split_once("<!--{") {
        let (place, after) = after.split_once("}-->").unwrap_or((after, ""));
        page.push_str(before);
        match place {
            "style" => {
                page.push_str("<style>");
                page.extend(LIBRARY_STYLES);
                page.extend([STYLE, "</style>"]);
            }
            "libraries" => {
                for library in LIBRARIES {
                    page.extend(["<script>", library, "</script>\n"]);
                }
            }
            "data" => page.push_str(&in_script(&data)),
            "script" => {
                page.push_str("<script>\n\"use strict\";\n(() => {\n");
                page.extend(SCRIPTS);
                page.push_str("})();\n</script>");
            }
            "licences" => page.push_str(&escaped(LICENCES)),
            other => debug_assert!(false, "a place `{other}` that nothing goes to"),
        }
        rest = after;
    }
    page.push_str(rest);
    Ok(page.into_bytes())
}

/// JSON inside a script element: what could end the element, or start a comment in it, is written
/// as an escape that JSON reads as the same character.
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests;
