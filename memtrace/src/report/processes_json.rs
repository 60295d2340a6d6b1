//! The processes of a recording in JSON: who they are, how they came and went, what each holds.

use serde_json::{Value, json};

use super::json::stack;
use crate::outstanding::books::Librarian;
use crate::snapshot::{Came, ClosedImage, Ended, Image, ImageBooks, ImageTotals, ProcessMemory};

/// Every image of the recording, with its last figures.
pub(super) fn processes(librarian: &Librarian<'_>) -> Vec<Value> {
    let recording = librarian.recording();
    let of_image = |image: &Image| {
        let closed = recording.closed.iter().find(|closed| closed.image == image.number);
        let last =
            recording.snapshots.iter().rev().find_map(|snapshot| {
                snapshot.images.iter().find(|books| books.image == image.number)
            });
        let last_totals = match closed {
            Some(closed) => Some(ImageTotals::of(&closed.stacks)),
            None => last.map(|books| books.totals),
        };
        let (how, of) = match image.came {
            Came::AtStart => ("at_start", None),
            Came::Forked { parent } => ("forked", Some(parent)),
            Came::Executed { before } => ("executed", Some(before)),
            Came::Found => ("found", None),
        };
        json!({
            "process": image.number,
            "pid": image.id.pid,
            "start_time_ticks": image.id.start_time_ticks,
            "comm": image.comm,
            "executable": image.executable,
            "command_line": image.command_line,
            "go_version": image.go_version,
            "came": how,
            "came_from": of.filter(|from| *from != 0),
            "armed_elapsed_ns": image.armed_elapsed_ns,
            "unseen_ns": image.unseen_ns,
            "totals": last_totals.map(|sum| totals(&sum)),
            "closed": closed.map(|closed| self::closed(librarian, closed)),
        })
    };
    recording.images.iter().map(of_image).collect()
}

/// The last state of an image that ended while others went on.
fn closed(librarian: &Librarian<'_>, closed: &ClosedImage) -> Value {
    let lines = librarian.closed_lines(closed);
    json!({
        "how": match closed.how {
            Ended::Exited => "exited",
            Ended::Replaced => "executed",
        },
        "elapsed_ns": closed.elapsed_ns,
        "stacks": lines.iter().map(stack).collect::<Vec<_>>(),
    })
}

/// Figures of one image at one snapshot.
pub(super) fn at_snapshot(books: &ImageBooks) -> Value {
    json!({
        "process": books.image,
        "ended": books.ended,
        "totals": totals(&books.totals),
        "memory": books.memory.value().map(|memory: &ProcessMemory| json!(memory)),
        "memory_reason": books.memory.reason(),
    })
}

fn totals(sum: &ImageTotals) -> Value {
    let amount = |bytes: u64, blocks: u64| json!({ "bytes": bytes, "blocks": blocks });
    json!({
        "outstanding": amount(sum.outstanding_bytes(), sum.outstanding_blocks()),
        "allocated": amount(sum.allocated_bytes, sum.allocated_blocks),
        "freed": amount(sum.freed_bytes, sum.freed_blocks),
    })
}
