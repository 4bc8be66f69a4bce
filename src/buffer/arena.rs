//! Large blocks: parts of a few mappings. A part that comes back joins its free neighbours, so the pages of one step's blocks serve the next
//! step's, whatever their sizes; an allocator of fixed sizes would ask the system for new ones, and each page costs a fault.

use std::alloc;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

use memmap2::MmapMut;

/// Blocks are whole pages, so that those of a free part can be given back.
pub(super) const PAGE: usize = 4096;

/// The shortest mapping; blocks of several sizes share it.
const SEGMENT: usize = 64 << 20;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    segment: usize,
    offset: usize,
}

/// What blocks are cut from: memory, or nothing where it is only counted.
pub(super) trait Pages {
    /// So many bytes of zeros, which take no memory until they are written to.
    fn map(len: usize) -> Self;
    /// Where byte `offset` is.
    fn at(&mut self, offset: usize) -> Option<NonNull<u8>>;
    /// Gives pages back; they read as zeros afterwards. Whether that was possible.
    fn discard(&mut self, offset: usize, len: usize) -> bool;
}

impl Pages for MmapMut {
    fn map(len: usize) -> Self {
        let layout = alloc::Layout::from_size_align(len, PAGE).expect("a tensor's size fits the address space");
        Self::map_anon(len).unwrap_or_else(|_| alloc::handle_alloc_error(layout))
    }

    fn at(&mut self, offset: usize) -> Option<NonNull<u8>> {
        assert!(offset < self.len(), "a place inside of its mapping");
        // SAFETY: inside of the mapping, as was just asked.
        NonNull::new(unsafe { self.as_mut_ptr().add(offset) })
    }

    #[cfg(unix)]
    fn discard(&mut self, offset: usize, len: usize) -> bool {
        // SAFETY: the part is free, so nobody borrows its bytes, and zeros are as good as what was there.
        unsafe { self.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) }.is_ok()
    }

    #[cfg(not(unix))]
    fn discard(&mut self, _offset: usize, _len: usize) -> bool {
        false
    }
}

impl Pages for () {
    fn map(_len: usize) {}

    fn at(&mut self, _offset: usize) -> Option<NonNull<u8>> {
        None
    }

    fn discard(&mut self, _offset: usize, _len: usize) -> bool {
        true
    }
}

struct Segment<P> {
    pages: P,
    len: usize,
    /// By offset.
    free: BTreeMap<usize, Part>,
}

/// A part that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    len: usize,
    /// Bytes that have been in use and not been given back since: those take memory.
    touched: usize,
}

/// The mappings and their free parts.
pub(super) struct Arena<P> {
    segments: BTreeMap<usize, Segment<P>>,
    next: usize,
    /// Free parts by length: the shortest that is long enough is taken, of equal ones the first.
    by_len: BTreeSet<(usize, Place)>,
    /// Bytes of free parts that take memory.
    idle: usize,
}

impl<P: Pages> Arena<P> {
    pub const fn new() -> Self {
        Self { segments: BTreeMap::new(), next: 0, by_len: BTreeSet::new(), idle: 0 }
    }

    /// Bytes that are free and take memory.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// A block of `len` bytes, whole pages, and where it begins (unless memory is only counted).
    pub fn take(&mut self, len: usize) -> (Place, Option<NonNull<u8>>) {
        let start = Place { segment: 0, offset: 0 };
        let place = match self.by_len.range((len, start)..).next() {
            Some(&(_, place)) => place,
            None => self.map(len),
        };
        let part = self.remove(place);
        let used = part.touched.min(len);
        self.idle -= used;
        if part.len > len {
            let rest = Place { offset: place.offset + len, ..place };
            self.insert(rest, Part { len: part.len - len, touched: part.touched - used });
        }
        (place, self.segment(place).pages.at(place.offset))
    }

    /// Takes a block of `len` bytes back.
    pub fn give(&mut self, mut place: Place, len: usize) {
        self.idle += len;
        let mut part = Part { len, touched: len };
        let free = &self.segment(place).free;
        let before = free.range(..place.offset).next_back().map(|(&offset, part)| (offset, part.len));
        let joined = before.filter(|(offset, len)| offset + len == place.offset).map(|(offset, _)| offset);
        let after = Place { offset: place.offset + len, ..place };
        let is_free = free.contains_key(&after.offset);
        for neighbour in is_free.then_some(after).into_iter().chain(joined.map(|offset| Place { offset, ..place })) {
            let Part { len, touched } = self.remove(neighbour);
            part = Part { len: part.len + len, touched: part.touched + touched };
            place = place.min(neighbour);
        }
        self.insert(place, part);
    }

    /// Gives the system `excess` bytes of free parts back, or as many as there are: of the shortest part that has so many, else of the longest.
    pub fn trim(&mut self, mut excess: usize) {
        while excess > 0 {
            let touched = |arena: &Self, place: Place| arena.segments[&place.segment].free[&place.offset].touched;
            let mut last = None;
            let mut places = self.by_len.iter().map(|&(_, place)| place).filter(|&place| touched(self, place) > 0);
            let enough = places.find(|&place| {
                last = Some(place);
                touched(self, place) >= excess
            });
            let Some(place) = enough.or(last) else { return };
            let segment = self.segment(place);
            let part = segment.free[&place.offset];
            if part.len == segment.len {
                self.remove(place);
                self.segments.remove(&place.segment);
            } else if segment.pages.discard(place.offset, part.len) {
                segment.free.insert(place.offset, Part { touched: 0, ..part });
            } else {
                return;
            }
            self.idle -= part.touched;
            excess = excess.saturating_sub(part.touched);
        }
    }

    fn map(&mut self, len: usize) -> Place {
        let len = len.max(SEGMENT);
        let place = Place { segment: self.next, offset: 0 };
        self.next += 1;
        self.segments.insert(place.segment, Segment { pages: P::map(len), len, free: BTreeMap::new() });
        self.insert(place, Part { len, touched: 0 });
        place
    }

    fn segment(&mut self, place: Place) -> &mut Segment<P> {
        self.segments.get_mut(&place.segment).expect("a place is in a segment that is there")
    }

    fn insert(&mut self, place: Place, part: Part) {
        self.segment(place).free.insert(place.offset, part);
        self.by_len.insert((part.len, place));
    }

    fn remove(&mut self, place: Place) -> Part {
        let part = self.segment(place).free.remove(&place.offset).expect("a free part has an entry");
        self.by_len.remove(&(part.len, place));
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn blocks_never_overlap_and_what_is_free_joins() {
        let mut arena = Arena::<MmapMut>::new();
        let mut rng = Rng::new(3, 0);
        let mut blocks: Vec<(Place, usize, *mut u8, u8)> = Vec::new();
        let mut idle = 0;
        for step in 0..4000u32 {
            if rng.next_u32() % 5 < 3 && blocks.len() < 60 {
                let len = (1 + rng.next_u32() as usize % 3000) * PAGE;
                let before = arena.idle();
                let (place, start) = arena.take(len);
                let start = start.unwrap().as_ptr();
                assert!(before - arena.idle() <= len && (start as usize).is_multiple_of(PAGE));
                for at in (0..len).step_by(PAGE) {
                    // SAFETY: inside of the block that was just taken.
                    unsafe { start.add(at).write(step as u8) };
                }
                blocks.push((place, len, start, step as u8));
            } else if !blocks.is_empty() {
                let (place, len, start, mark) = blocks.swap_remove(rng.next_u32() as usize % blocks.len());
                // SAFETY: inside of a block that is still taken.
                assert!((0..len).step_by(PAGE).all(|at| unsafe { start.add(at).read() } == mark));
                arena.give(place, len);
            }
            if step % 97 == 0 {
                arena.trim(rng.next_u32() as usize % (32 << 20));
            }
            idle = idle.max(arena.idle());
            let parts = |s: &Segment<MmapMut>| s.free.values().map(|part| part.touched).sum::<usize>();
            assert_eq!(arena.idle(), arena.segments.values().map(parts).sum::<usize>());
            for segment in arena.segments.values() {
                let mut ends = segment.free.iter().map(|(&offset, part)| (offset, offset + part.len));
                let first = ends.next();
                ends.fold(first, |last, (from, to)| {
                    assert!(last.is_some_and(|(_, end)| end < from), "free parts that touch, or overlap");
                    Some((from, to))
                });
            }
        }
        assert!(idle > 64 << 20);
        blocks.drain(..).for_each(|(place, len, ..)| arena.give(place, len));
        assert!(arena.segments.values().all(|s| s.free.len() == 1 && s.free[&0].len == s.len));
        arena.trim(usize::MAX);
        assert_eq!((arena.idle(), arena.segments.values().filter(|s| s.free[&0].touched > 0).count()), (0, 0));
    }

    #[test]
    fn blocks_of_other_sizes_take_the_same_pages() {
        let mut arena = Arena::<()>::new();
        let (a, _) = arena.take(8 * PAGE);
        let (b, _) = arena.take(8 * PAGE);
        arena.give(a, 8 * PAGE);
        arena.give(b, 8 * PAGE);
        assert_eq!(arena.idle(), 16 * PAGE);
        // Two to one, one to three, all of it pages that were in use.
        let (c, _) = arena.take(16 * PAGE);
        assert_eq!((c, arena.idle()), (a, 0));
        arena.give(c, 16 * PAGE);
        let parts: Vec<_> = (0..3).map(|_| arena.take(5 * PAGE).0).collect();
        assert_eq!(arena.idle(), PAGE);
        parts.into_iter().for_each(|place| arena.give(place, 5 * PAGE));
        // Pages that were given back are idle no more.
        let (_kept, _) = arena.take(PAGE);
        arena.trim(1);
        assert_eq!(arena.idle(), 0);
    }
}
