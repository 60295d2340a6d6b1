//! The processes of the target: what each holds, who came and went, who is not traced.

use super::Page;
use super::layout::{keep_start, pad_left, pad_right};
use crate::outstanding::books::{Librarian, StackLine};
use crate::report::numbers::{bytes, count, duration, grouped};
use crate::sanitize::visible;
use crate::snapshot::{Came, ClosedImage, Ended, Image, ImageTotals};

/// How many processes and untraced processes are told by name.
const MOST_PROCESSES: usize = 20;
/// How many stacks of an image that another one replaced.
const MOST_STACKS: usize = 3;
const HELD_CELLS: usize = 12;
const RSS_CELLS: usize = 12;
const STATE_CELLS: usize = 34;

impl Page<'_> {
    pub(super) fn processes(&mut self, librarian: &Librarian<'_>) {
        let snapshot = self.books.snapshot;
        let untraced = &snapshot.untraced;
        let others = untraced.running + untraced.came_and_went;
        if self.recording.images.len() < 2 && others == 0 {
            return;
        }
        let title = format!(
            "{}{}{}  {}",
            pad_right("PROCESSES", 2),
            pad_left("not freed", HELD_CELLS + 16),
            pad_left("RSS", RSS_CELLS),
            "state"
        );
        self.section(&title);
        // Those that are traced now, then those that ended, the largest first.
        let mut rows: Vec<(bool, u64, &Image, String, String)> = Vec::new();
        for image in &self.recording.images {
            let open = snapshot.images.iter().find(|books| books.image == image.number);
            let closed = self.recording.closed.iter().find(|it| it.image == image.number);
            let row = match (open, closed) {
                (Some(books), _) => {
                    let rss = books.memory.value().map_or("?".to_owned(), |it| bytes(it.rss));
                    let state = if books.ended { "has ended" } else { came(image) };
                    (true, books.totals.outstanding_bytes(), image, rss, state.to_owned())
                }
                (None, Some(closed)) => {
                    let held = ImageTotals::of(&closed.stacks).outstanding_bytes();
                    (false, held, image, String::new(), ended(closed))
                }
                // Of another snapshot's time.
                (None, None) => continue,
            };
            rows.push(row);
        }
        rows.sort_by_key(|(open, held, image, ..)| (!open, std::cmp::Reverse(*held), image.number));
        for (_, held, image, rss, state) in rows.iter().take(MOST_PROCESSES) {
            let name = format!("  {} {}", image.id.pid, visible(&image.comm));
            let row = format!(
                "{}{}{}  {}",
                pad_right(&keep_start(&name, 25), 25),
                pad_left(&bytes(*held), HELD_CELLS),
                pad_left(rss, RSS_CELLS),
                pad_right(state, STATE_CELLS)
            );
            self.line(&keep_start(&row, self.width));
            if let Some(unseen_ns) = image.unseen_ns {
                let text = format!(
                    "not seen: its first {}, until its probes were armed",
                    duration(unseen_ns)
                );
                let text = self.paint.faint(&text);
                self.line(&format!("      {text}"));
            }
        }
        let more = rows.len().saturating_sub(MOST_PROCESSES);
        if more > 0 {
            self.paragraph(2, &format!("{more} more: the JSON has all."));
        }
        self.replaced(librarian);
        self.untraced();
    }

    /// What a program held when another one took its place.
    fn replaced(&mut self, librarian: &Librarian<'_>) {
        let recording = self.recording;
        for closed in recording.closed.iter().filter(|it| it.how == Ended::Replaced) {
            let lines = librarian.closed_lines(closed);
            let held: Vec<&StackLine> =
                lines.iter().filter(|line| line.outstanding.blocks > 0).collect();
            let Some(image) = recording.images.iter().find(|it| it.number == closed.image) else {
                continue;
            };
            if held.is_empty() {
                continue;
            }
            self.blank();
            let text = format!(
                "Held by `{}` (pid {}) when it executed another program:",
                visible(&image.executable),
                image.id.pid
            );
            self.paragraph(2, &text);
            for line in held.iter().take(MOST_STACKS) {
                let text = format!(
                    "{}   {}",
                    pad_left(&bytes(line.outstanding.bytes), 11),
                    count(line.outstanding.blocks, "block")
                );
                self.line(&text);
                let frames = line.frames.clone();
                self.frames(&frames);
            }
        }
    }

    fn untraced(&mut self) {
        let untraced = &self.books.snapshot.untraced;
        if untraced.came_and_went > 0 {
            let text = format!(
                "{} came and went before probes were armed: nothing of them was seen.",
                count(untraced.came_and_went, "process")
            );
            self.paragraph(2, &text);
        }
        if untraced.running > 0 {
            let text = format!("Running and not traced: {}.", grouped(untraced.running));
            self.paragraph(2, &text);
            for process in untraced.some.iter().take(MOST_PROCESSES) {
                let text = format!(
                    "{} {}: {}",
                    process.pid,
                    visible(&process.comm),
                    visible(&process.reason)
                );
                self.paragraph(6, &text);
            }
        }
    }
}

fn came(image: &Image) -> &'static str {
    match image.came {
        Came::AtStart => "runs",
        Came::Forked { .. } => "runs, forked while tracing",
        Came::Executed { .. } => "runs, executed while tracing",
        Came::Found => "runs, came while tracing",
    }
}

fn ended(closed: &ClosedImage) -> String {
    let at = duration(closed.elapsed_ns);
    match closed.how {
        Ended::Exited => format!("exited at {at}"),
        Ended::Replaced => format!("executed another program at {at}"),
    }
}
