//! Hashes of contents, the same on every machine: what keys random streams and caches, and tells files that are whole. Not against those who mean harm.

/// FNV-1a of what was added, one piece after the other.
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// With more bytes at the end.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// The hash.
    pub fn sum(self) -> u64 {
        self.0
    }
}

/// FNV-1a.
pub fn fnv(bytes: &[u8]) -> u64 {
    Fnv::default().with(bytes).sum()
}

/// A quick one of whole words, of which `start` is the first (rotate, xor and multiply, as in Firefox and rustc).
pub fn of_words(start: u64, words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(start, |hash, word| (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the authors' page, <http://www.isthe.com/chongo/tech/comp/fnv/>.
    #[test]
    fn fnv_is_as_published() {
        assert_eq!(
            [&b""[..], b"a", b"foobar"].map(fnv),
            [0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8]
        );
        assert_eq!(Fnv::default().with(b"foo").with(b"bar").sum(), fnv(b"foobar"));
    }

    #[test]
    fn words_count_by_what_and_where_they_are() {
        let all = [[1, 2, 3], [3, 2, 1], [1, 2, 4], [0, 2, 3]].map(|words| of_words(3, words));
        assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])), "{all:x?}");
    }
}
