//! Where a heap can lie: the private writable mappings of a process. Every pointer that is
//! followed is checked against them first.

use std::ops::Range;

use crate::tracee::mappings::MapLine;

/// Disjoint ranges, sorted; neighbours are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regions(Vec<Range<u64>>);

impl Regions {
    /// The mappings that malloc can have its books or blocks in.
    pub fn writable(lines: &[MapLine]) -> Self {
        let usable = lines.iter().filter(|line| line.readable && line.writable && !line.shared);
        Self::of(usable.map(|line| line.start..line.end).collect())
    }

    pub fn of(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// The range that `address` lies in.
    pub fn around(&self, address: u64) -> Option<Range<u64>> {
        let at = self.0.partition_point(|range| range.end <= address);
        self.0.get(at).filter(|range| range.start <= address).cloned()
    }

    /// Whether `address..address + length` lies in one range.
    pub fn hold(&self, address: u64, length: u64) -> bool {
        self.around(address).is_some_and(|range| length <= range.end - address)
    }

    /// The parts of `range` that lie in these.
    pub fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let parts = self.0.iter().map(|r| r.start.max(range.start)..r.end.min(range.end));
        parts.filter(|part| part.start < part.end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_must_lie_in_one_range_to_its_end() {
        let regions = Regions::of(vec![0x3000..0x4000, 0x1000..0x2000, 0x2000..0x2800]);
        assert_eq!(regions.around(0x1fff), Some(0x1000..0x2800));
        assert_eq!(regions.around(0x2800), None);
        assert!(regions.hold(0x1000, 0x1800) && !regions.hold(0x1000, 0x1801));
        assert!(!regions.hold(0xfff, 1) && !regions.hold(u64::MAX, u64::MAX));
        assert_eq!(regions.within(&(0x2700..0x3001)), [0x2700..0x2800, 0x3000..0x3001]);
    }
}
