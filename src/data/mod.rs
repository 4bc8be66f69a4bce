//! Tables of pairs, labels, prompts and boxes; the deterministic loader.
