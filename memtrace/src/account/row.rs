//! One row of a ledger, and the law that every row with parts obeys:
//!
//! `whole = Σ parts + residual`, the residual with its sign.

use serde::Serialize;

use crate::snapshot::Known;

/// How a figure came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Counted by the kernel or a runtime.
    Measured,
    /// Computed from measured figures.
    Derived,
    /// Estimated by its source from samples.
    Sampled,
}

impl How {
    pub fn word(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Derived => "derived",
            Self::Sampled => "sampled",
        }
    }
}

/// How a row stands to the row above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Adds up, with its siblings, to the row above.
    Part,
    /// What the parts leave of the whole, signed.
    Residual,
    /// Contained in the row above, and overlapping its parts: no addend.
    Within,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Stable, for programs.
    pub key: String,
    /// For people.
    pub label: String,
    pub kind: Kind,
    pub bytes: Known<i128>,
    pub how: How,
    /// The file and the key it was read from, or the formula.
    pub source: String,
    /// What a reader should know beside it.
    pub note: Option<String>,
    pub rows: Vec<Row>,
}

impl Row {
    pub fn new(
        key: impl Into<String>,
        label: impl Into<String>,
        bytes: Known<i128>,
        how: How,
        source: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            label: label.into(),
            kind: Kind::Part,
            bytes,
            how,
            source: source.into(),
            note: None,
            rows: Vec::new(),
        }
    }

    pub fn measured(key: &str, label: &str, bytes: Known<u64>, source: impl Into<String>) -> Self {
        Self::new(key, label, wide(&bytes), How::Measured, source)
    }

    pub fn derived(
        key: &str,
        label: impl Into<String>,
        bytes: i128,
        source: impl Into<String>,
    ) -> Self {
        Self::new(key, label, Known::Value(bytes), How::Derived, source)
    }

    pub fn within(mut self) -> Self {
        self.kind = Kind::Within;
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub fn with(mut self, rows: impl IntoIterator<Item = Row>) -> Self {
        self.rows.extend(rows);
        self
    }

    /// The largest first; what overlaps comes last.
    pub fn sorted(mut self) -> Self {
        self.rows.sort_by_key(|row| {
            let bytes = row.bytes.value().copied().unwrap_or(0);
            (row.kind == Kind::Within, std::cmp::Reverse(bytes))
        });
        self
    }

    pub fn value(&self) -> Option<i128> {
        self.bytes.value().copied()
    }

    /// The sum of the parts that are known, residuals included.
    pub fn sum_of_parts(&self) -> i128 {
        self.rows.iter().filter(|row| row.kind != Kind::Within).filter_map(Row::value).sum()
    }

    /// Adds what the parts leave of the whole as a row of its own, behind the parts. A row whose
    /// whole is unknown, or that has no parts, is left as it is.
    pub fn closed(mut self, key: &str, label: &str, note: &str) -> Self {
        let Some(whole) = self.value() else { return self };
        if !self.rows.iter().any(|row| row.kind == Kind::Part) {
            return self;
        }
        let unknown: Vec<&str> = self
            .rows
            .iter()
            .filter(|row| row.kind == Kind::Part && row.bytes.value().is_none())
            .map(|row| row.label.as_str())
            .collect();
        let mut residual = Self::derived(key, label, whole - self.sum_of_parts(), "the rest");
        residual.kind = Kind::Residual;
        if unknown.is_empty() {
            residual.note = (!note.is_empty()).then(|| note.to_owned());
        } else {
            residual.note = Some(format!("contains what is unknown: {}", unknown.join(", ")));
        }
        let place = self.rows.iter().position(|row| row.kind == Kind::Within);
        self.rows.insert(place.unwrap_or(self.rows.len()), residual);
        self
    }

    /// The same tree for a reader: parts smaller than `least` share one row, rows of nothing are
    /// left out, and every sum stays what it was.
    pub fn folded(&self, least: u64) -> Row {
        let mut row = Row { rows: Vec::new(), ..self.clone() };
        let small = |child: &Row| {
            let bytes = child.value().map(i128::unsigned_abs);
            child.kind == Kind::Part && bytes.is_some_and(|bytes| bytes < u128::from(least))
        };
        let (small, shown): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|it| small(it));
        for child in shown {
            let is_nothing = child.value() == Some(0) && child.key != "epsilon";
            if !is_nothing {
                row.rows.push(child.folded(least));
            }
        }
        let some: Vec<&&Row> = small.iter().filter(|child| child.value() != Some(0)).collect();
        let folded = match some.as_slice() {
            [] => return row,
            [one] => one.folded(least),
            many => {
                let sum = many.iter().filter_map(|child| child.value()).sum();
                let names: Vec<&str> = many.iter().map(|child| child.label.as_str()).collect();
                Self::derived("smaller", format!("{} smaller", many.len()), sum, "Σ of them")
                    .note(names.join(", "))
            }
        };
        let place = row.rows.iter().position(|child| child.kind != Kind::Part);
        row.rows.insert(place.unwrap_or(row.rows.len()), folded);
        row
    }

    /// Every row of the tree that does not add up, with what its parts come to.
    pub fn broken<'a>(&'a self, broken: &mut Vec<(&'a Row, i128)>) {
        let sum = self.sum_of_parts();
        let has_parts = self.rows.iter().any(|row| row.kind == Kind::Part);
        let all_known =
            self.rows.iter().all(|row| row.kind == Kind::Within || row.bytes.value().is_some());
        let has_residual = self.rows.iter().any(|row| row.kind == Kind::Residual);
        if let Some(whole) = self.value()
            && has_parts
            && (all_known || has_residual)
            && whole != sum
        {
            broken.push((self, sum));
        }
        for row in &self.rows {
            row.broken(broken);
        }
    }

    /// The first row of this key, this one included.
    pub fn find(&self, key: &str) -> Option<&Row> {
        if self.key == key {
            return Some(self);
        }
        self.rows.iter().find_map(|row| row.find(key))
    }
}

pub fn wide(known: &Known<u64>) -> Known<i128> {
    known.map(|value| (*value).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: i128) -> Row {
        Row::derived("part", "part", bytes, "")
    }

    #[test]
    fn a_residual_closes_the_sum_with_its_sign() {
        let row = part(100).with([part(70), part(50)]).closed("rest", "rest", "");
        assert_eq!(row.find("rest").and_then(Row::value), Some(-20));
        assert_eq!(row.sum_of_parts(), 100);
        let mut broken = Vec::new();
        row.broken(&mut broken);
        assert!(broken.is_empty());
    }

    #[test]
    fn an_unknown_part_goes_into_the_residual_which_says_so() {
        let unknown = Row::new("x", "the unknown", Known::unknown("why"), How::Measured, "");
        let row = part(100).with([part(70), unknown]).closed("rest", "rest", "");
        let rest = row.find("rest").unwrap();
        assert_eq!(rest.value(), Some(30));
        assert!(rest.note.as_deref().unwrap().contains("the unknown"));
    }

    #[test]
    fn what_is_contained_is_no_addend() {
        let row = part(100).with([part(100), part(60).within()]).closed("rest", "rest", "");
        assert_eq!(row.find("rest").and_then(Row::value), Some(0));
    }

    #[test]
    fn a_sum_that_does_not_add_up_is_found_at_any_depth() {
        let row = part(100).with([part(100).with([part(99)])]);
        let mut broken = Vec::new();
        row.broken(&mut broken);
        assert_eq!(broken.len(), 1);
        assert_eq!(broken[0].1, 99);
    }
}
