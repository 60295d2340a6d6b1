//! `record --mark NAME[@TIME]`: phases whose beginnings are known beforehand.

use std::collections::VecDeque;
use std::time::Instant;

use crate::cli::PlannedMark;

/// Those to come, the next one first.
pub struct Marks(VecDeque<(Instant, String)>);

impl Marks {
    /// Two at the same instant stay in the order in which they were given.
    pub fn new(planned: &[PlannedMark], armed_at: Instant) -> Self {
        let mut planned: Vec<_> = planned.iter().collect();
        planned.sort_by_key(|mark| mark.after);
        let due = planned.into_iter().filter_map(|mark| {
            // One that no clock reaches is never due.
            Some((armed_at.checked_add(mark.after)?, mark.name.clone()))
        });
        Self(due.collect())
    }

    /// When the next one is due.
    pub fn due(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }

    pub fn next(&mut self) -> Option<String> {
        self.0.pop_front().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn marks_come_in_the_order_of_their_times() {
        let mark = |name: &str, seconds| PlannedMark {
            name: name.to_owned(),
            after: Duration::from_secs(seconds),
        };
        let armed = Instant::now();
        let never = PlannedMark { name: "never".to_owned(), after: Duration::MAX };
        let mut marks =
            Marks::new(&[mark("idle", 60), never, mark("warm-up", 0), mark("load", 30)], armed);
        for (name, seconds) in [("warm-up", 0), ("load", 30), ("idle", 60)] {
            assert_eq!(marks.due(), Some(armed + Duration::from_secs(seconds)));
            assert_eq!(marks.next().as_deref(), Some(name));
        }
        assert_eq!(marks.due(), None);
    }
}
