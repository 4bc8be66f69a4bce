//! Which accesses since the last barrier a new one has to wait for.

/// Bytes of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// The buffer's handle.
    pub buffer: u64,
    pub start: u64,
    pub end: u64,
    pub writes: bool,
}

impl Access {
    fn conflicts(&self, other: &Self) -> bool {
        (self.writes || other.writes) && self.buffer == other.buffer && self.start < other.end && other.start < self.end
    }
}

/// The accesses since the last barrier.
#[derive(Default)]
pub(crate) struct Hazards(Vec<Access>);

/// More are not kept: looking through them would take longer than a barrier.
const MOST: usize = 256;

impl Hazards {
    /// Notes the accesses of one command, and tells whether a barrier has to stand before it.
    pub fn note(&mut self, accesses: impl Iterator<Item = Access> + Clone) -> bool {
        let conflict = self.0.len() >= MOST || accesses.clone().any(|new| self.0.iter().any(|old| new.conflicts(old)));
        if conflict {
            self.0.clear();
        }
        self.0.extend(accesses);
        conflict
    }

    /// After a barrier.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every pair of accesses to one byte of which one writes has a barrier between; and there is none without a reason.
        #[test]
        fn barriers_stand_where_they_must_and_only_there(
            commands in prop::collection::vec(prop::collection::vec((0u64..2, 0u64..12, 1u64..4, any::<bool>()), 1..4), 1..40)
        ) {
            let (mut hazards, mut since): (Hazards, Vec<Access>) = (Hazards::default(), Vec::new());
            for command in commands {
                let new: Vec<Access> =
                    command.iter().map(|&(buffer, start, len, writes)| Access { buffer, start, end: start + len, writes }).collect();
                let bytes = |a: &Access| (a.start..a.end).map(|byte| (a.buffer, byte)).collect::<Vec<_>>();
                let clash = new.iter().any(|n| since.iter().any(|o| (n.writes || o.writes) && bytes(n).iter().any(|b| bytes(o).contains(b))));
                prop_assert_eq!(hazards.note(new.iter().copied()), clash);
                if clash { since.clear(); }
                since.extend(new);
            }
        }
    }
}
