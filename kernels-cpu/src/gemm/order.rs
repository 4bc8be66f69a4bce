//! The order of a job's tiles: which operand passes by what of the other stays in the second-level cache.

use super::words::Words;
use crate::isa::Isa;

/// Numbers that stay in a second-level cache of 1 MiB beside what passes through.
const NEAR: usize = 1 << 17;
/// And in one of 2 MiB, beside rows that are asked for.
const MORE_NEAR: usize = 1 << 18;
/// From so many rows of A on, whatever part of them a job has, it pays to bring all of B near at once. For fewer it comes panel by panel, as from memory
/// it takes as long as their products.
const MANY_ROWS: usize = 256;

/// When rows of A pass by B in the jobs of a product.
#[derive(Clone, Copy)]
pub(super) struct Passing {
    /// Numbers of B that stay near.
    pub near: usize,
    /// Whether that is so many, and rows late enough where nobody asked for them, that B is worth taking part by part.
    by_parts: bool,
    /// From so many rows for so many columns of a job on.
    tall: [usize; 2],
}

impl Passing {
    /// For a product with `m` rows. `in_place`: they are rows of a matrix, read where they lie, so that a tile can ask for those of the next.
    pub fn new(isa: Isa, words: Words, m: usize, in_place: bool) -> Self {
        // Processors with AMX have 2 MiB of second-level cache. What it writes goes to rows that are whole where rows pass.
        let by_parts = isa == Isa::Amx && !words.in_tiles() && in_place && m >= MANY_ROWS;
        Self {
            near: if by_parts { MORE_NEAR } else { NEAR },
            by_parts,
            tall: if words.in_tiles() || by_parts { [1, 2] } else { [3, 1] },
        }
    }

    /// Whether a job of [m, k, n] over a slab goes through all of its B for each tile of rows, which then is read once. Else a panel of B stays near for
    /// all tiles, while the next one comes.
    pub fn by_rows(&self, [m, k, n]: [usize; 3]) -> bool {
        let [rows, columns] = self.tall;
        columns * m >= rows * n && n * k <= self.near
    }

    /// Parts of a B of so many numbers, by each of which all rows pass.
    pub fn parts(&self, numbers: usize) -> usize {
        if self.by_parts { numbers.div_ceil(self.near) } else { 1 }
    }
}

/// A tile of an order: of the outer loop, of the inner one, the part, and how many of the outer one's came before.
pub(super) struct At {
    pub outer: usize,
    pub inner: usize,
    pub part: usize,
    pub nth: usize,
}

/// Two loops over tiles, of which the inner one is gone through by groups, each once for every part.
pub(super) struct Order {
    loops: [usize; 2],
    parts: usize,
    together: usize,
    group: usize,
    next: At,
}

impl Order {
    #[inline(always)]
    pub fn new(loops: [usize; 2], parts: usize, together: usize) -> Self {
        Self { loops, parts, together, group: 0, next: At { outer: 0, inner: 0, part: 0, nth: 0 } }
    }
}

impl Iterator for Order {
    type Item = At;
    #[inline(always)]
    fn next(&mut self) -> Option<At> {
        let [outer, inner] = self.loops;
        let mut next = At { nth: self.next.nth + 1, inner: self.next.inner + 1, ..self.next };
        if next.outer == outer {
            return None;
        }
        let end = inner.min(self.group + self.together);
        if next.inner == end {
            next.part += 1;
            if next.part == self.parts {
                (self.group, next.part) = (end, 0);
            }
            if self.group == inner {
                (self.group, next.outer, next.nth) = (0, next.outer + 1, 0);
            }
            next.inner = self.group;
        }
        Some(core::mem::replace(&mut self.next, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_part_of_every_tile_comes_once_and_in_order() {
        for ([outer, inner], parts, together) in
            [([2, 5], 3, 2), ([1, 1], 1, 1), ([3, 4], 1, 4), ([2, 16], 2, 16), ([0, 3], 1, 3)]
        {
            let tiles: Vec<At> = Order::new([outer, inner], parts, together).collect();
            for (i, at) in tiles.iter().enumerate() {
                assert_eq!((at.outer, at.nth), (i / (inner * parts), i % (inner * parts)), "tile {i}");
            }
            for tile in 0..outer * inner {
                let of = tiles.iter().filter(|at| at.outer * inner + at.inner == tile);
                assert!(of.map(|at| at.part).eq(0..parts), "tile {tile} of {outer} x {inner}");
            }
            // So many sums wait at most.
            let waiting =
                |at: &At| tiles.iter().filter(|t| t.outer == at.outer && t.part == 0 && t.nth <= at.nth).count();
            assert!(tiles.iter().all(|at| waiting(at) - at.inner <= together), "{together} together");
        }
    }

    #[test]
    fn rows_pass_by_no_more_than_stays_near() {
        for isa in [Isa::Scalar, Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx] {
            for in_place in [false, true] {
                for m in [1, MANY_ROWS - 1, MANY_ROWS, 4096] {
                    let passing = Passing::new(isa, Words::F32, m, in_place);
                    for numbers in [1, NEAR, MORE_NEAR, MORE_NEAR + 1, 10 * MORE_NEAR] {
                        let parts = passing.parts(numbers);
                        assert!(parts == 1 || numbers.div_ceil(parts) <= passing.near, "{isa}: {numbers} in {parts}");
                    }
                    assert!(
                        !passing.by_rows([1 << 30, passing.near + 1, 1]) && passing.by_rows([1 << 30, passing.near, 1])
                    );
                }
            }
        }
    }
}
