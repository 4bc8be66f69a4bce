//! Counter-based random numbers (Philox 4x32-10; Salmon, Moraes, Dror and Shaw, SC 2011).
//!
//! A number is a pure function of (key, counter), so that dropout masks, augmentations and drawn
//! phantoms are the same for any thread count and can be recomputed instead of stored.

/// One Philox 4x32-10 block: four words from a 64-bit key and a 128-bit counter.
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut k = [key as u32, (key >> 32) as u32];
    let mut c = counter;
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A stream of random numbers named by a seed and a stream number; streams never overlap.
#[derive(Clone, Debug)]
pub struct Rng {
    key: u64,
    stream: u64,
    block: u64,
    words: [u32; 4],
    used: usize,
}

impl Rng {
    /// The stream `stream` of `seed`, from its beginning.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: seed, stream, block: 0, words: [0; 4], used: 4 }
    }

    /// 32 uniform bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let (b, s) = (self.block, self.stream);
            self.words = philox(self.key, [b as u32, (b >> 32) as u32, s as u32, (s >> 32) as u32]);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// The same stream after `draws` further draws of 32 bits: so threads draw parts of one tensor.
    pub fn after(&self, draws: u64) -> Self {
        let draw = 4 * self.block + self.used as u64 - 4 + draws;
        let mut there = Self { block: draw / 4, used: 4, ..self.clone() };
        (0..draw % 4).for_each(|_| _ = there.next_u32());
        there
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n (Lemire's multiply-shift; the bias is below 2^-32 for the sizes used here).
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "Rng::below needs at least one choice");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box-Muller; `libm`, so the same bits on every platform).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(core::f64::consts::TAU * self.uniform())
    }

    /// Fisher-Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // From the authors' Random123 distribution, kat_vectors.
        assert_eq!(philox(0, [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox(0x299f31d0_a4093822, [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn moments_and_ranges() {
        let mut rng = Rng::new(7, 1);
        let n = 20_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            sum += x;
            squares += x * x;
            assert!((0.0..1.0).contains(&rng.uniform()));
            assert!(rng.below(7) < 7);
        }
        assert!((sum / n as f64).abs() < 0.03 && (squares / n as f64 - 1.0).abs() < 0.05);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| Rng::new(seed, stream).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..101).collect();
        Rng::new(3, 0).shuffle(&mut items);
        assert_ne!(items, (0..101).collect::<Vec<_>>());
        items.sort();
        assert_eq!(items, (0..101).collect::<Vec<_>>());
    }

    /// The numbers themselves: what is drawn today must be drawn tomorrow.
    #[test]
    fn numbers_follow_from_the_blocks() {
        let (seed, stream) = (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321);
        let words: Vec<u64> = (0..6u32)
            .flat_map(|block| philox(seed, [block, 0, stream as u32, (stream >> 32) as u32]))
            .map(u64::from)
            .collect();
        let mut rng = Rng::new(seed, stream);
        assert!(words.iter().all(|&w| u64::from(rng.next_u32()) == w));
        let longs: Vec<u64> = words.chunks(2).map(|pair| pair[0] | pair[1] << 32).collect();
        let uniform = |n: usize| (longs[n] >> 11) as f64 / (1u64 << 53) as f64;
        let mut rng = Rng::new(seed, stream);
        assert_eq!((rng.next_u64(), rng.uniform()), (longs[0], uniform(1)));
        assert_eq!(rng.range(-3.0, 5.0), -3.0 + 8.0 * uniform(2));
        assert_eq!(rng.below(1000), (uniform(3) * 1000.0) as usize);
        assert!(!rng.chance(uniform(4)));
        assert!(rng.chance(uniform(5) + 1e-9));
        let normal = libm::sqrt(-2.0 * libm::log(1.0 - uniform(6))) * libm::cos(core::f64::consts::TAU * uniform(7));
        assert_eq!(rng.normal(), normal);
        // A block beyond the 32nd bit.
        let mut far = Rng { block: 1 << 32, ..Rng::new(seed, stream) };
        assert_eq!(far.next_u32(), philox(seed, [0, 1, stream as u32, (stream >> 32) as u32])[0]);
    }

    #[test]
    fn a_stream_goes_on_where_it_is_after_some_draws() {
        let mut words = Rng::new(5, 2);
        let words: Vec<u32> = (0..40).map(|_| words.next_u32()).collect();
        for from in 0..10 {
            let mut rng = Rng::new(5, 2);
            (0..from).for_each(|_| _ = rng.next_u32());
            for draws in 0..20 {
                let mut there = rng.after(draws as u64);
                assert!(words[from + draws..].iter().all(|&word| word == there.next_u32()), "{from} and {draws}");
            }
        }
    }

    /// Each of the six orders of three as often as the others.
    #[test]
    fn shuffle_is_fair() {
        let mut rng = Rng::new(4, 0);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let mut items = [0, 1, 2];
            rng.shuffle(&mut items);
            *seen.entry(items).or_insert(0) += 1;
        }
        assert!(seen.len() == 6 && seen.values().all(|n| (850..1150).contains(n)), "{seen:?}");
    }

    /// n items take n - 1 draws.
    #[test]
    fn shuffle_draws_no_more_than_it_needs() {
        let (mut rng, mut same) = (Rng::new(4, 0), Rng::new(4, 0));
        rng.shuffle(&mut [0, 1, 2]);
        for _ in 0..2 {
            same.next_u64();
        }
        assert_eq!(rng.next_u64(), same.next_u64());
    }
}
