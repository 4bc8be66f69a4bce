//! Parts of a block of memory: which are free, and until when the device may still use them.

use std::collections::BTreeMap;

/// Free parts of a block, none next to another.
pub(crate) struct Ranges {
    size: u64,
    /// By start: length, and the submission after which nothing uses it any more.
    free: BTreeMap<u64, (u64, u64)>,
}

impl Ranges {
    pub fn new(size: u64) -> Self {
        Self { size, free: BTreeMap::from([(0, (size, 0))]) }
    }

    /// Takes the smallest part that holds `len`: its start, and the submission after which nothing uses it any more.
    pub fn take(&mut self, len: u64) -> Option<(u64, u64)> {
        let fits = self.free.iter().filter(|(_, (free, _))| *free >= len);
        let (&start, &(free, busy)) = fits.min_by_key(|(start, (free, _))| (*free, **start))?;
        self.free.remove(&start);
        if free > len {
            self.free.insert(start + len, (free - len, busy));
        }
        Some((start, busy))
    }

    /// Gives back what [`Self::take`] gave.
    pub fn give(&mut self, mut start: u64, mut len: u64, mut busy: u64) {
        if let Some((&before, &(size, until))) = self.free.range(..start).next_back()
            && before + size == start
        {
            self.free.remove(&before);
            (start, len, busy) = (before, len + size, busy.max(until));
        }
        if let Some((size, until)) = self.free.remove(&(start + len)) {
            (len, busy) = (len + size, busy.max(until));
        }
        self.free.insert(start, (len, busy));
    }

    /// Whether nothing is taken.
    pub fn is_empty(&self) -> bool {
        self.free.get(&0).is_some_and(|(len, _)| *len == self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a map of which byte belongs to whom.
        #[test]
        fn parts_never_overlap_and_all_comes_back(steps in prop::collection::vec((any::<bool>(), 1u64..40), 1..120)) {
            let (mut ranges, mut held, mut owner) = (Ranges::new(200), Vec::new(), vec![false; 200]);
            for (seq, (take, n)) in steps.into_iter().enumerate() {
                if take {
                    let Some((start, busy)) = ranges.take(n) else {
                        let longest = owner.split(|&taken| taken).map(<[bool]>::len).max().unwrap_or(0);
                        prop_assert!((longest as u64) < n, "{n} fit into {longest}");
                        continue;
                    };
                    prop_assert!(busy <= seq as u64);
                    for byte in &mut owner[start as usize..(start + n) as usize] {
                        prop_assert!(!std::mem::replace(byte, true));
                    }
                    held.push((start, n));
                } else if !held.is_empty() {
                    let (start, n) = held.swap_remove(n as usize % held.len());
                    owner[start as usize..(start + n) as usize].fill(false);
                    ranges.give(start, n, seq as u64);
                }
            }
            for (start, n) in held { ranges.give(start, n, 0); }
            prop_assert!(ranges.is_empty());
        }
    }

    #[test]
    fn what_is_joined_is_busy_as_long_as_its_parts() {
        let mut ranges = Ranges::new(30);
        let parts: Vec<u64> = (0..3).map(|_| ranges.take(10).unwrap().0).collect();
        for (start, busy) in parts.into_iter().zip([4, 9, 2]) {
            ranges.give(start, 10, busy);
        }
        assert_eq!(ranges.take(25), Some((0, 9)));
    }
}
