//! Learns byte-pair merges (Sennrich et al. 2016). Written here because the library's trainer breaks ties by the order of a hash map:
//! the same texts must give the same bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::clip::{self, END, END_OF_WORD, Layout, START};
use super::{Hints, Tokenizer};
use crate::error::{Error, Result};

/// The token of padding, id 0.
const PAD: &str = "<|pad|>";

/// A pair is merged only if it occurs as often.
const MIN_FREQUENCY: u64 = 2;

pub(super) fn train(texts: &[&str], vocabulary: usize, max_length: usize) -> Result<Tokenizer> {
    let mut pieces: Vec<String> = std::iter::once(PAD.to_owned()).chain(clip::alphabet()).collect();
    let least = pieces.len() + 2;
    if vocabulary < least {
        return Err(Error::usage(format!(
            "a vocabulary of {vocabulary} has no room for the bytes and special tokens; give at least {least}"
        )));
    }
    let words = count_words(&pieces, texts)?;
    let merges = learn(words, &mut pieces, vocabulary - 2);
    tokenizer(&pieces, &merges, max_length)
}

/// The tokenizer of some pieces: start and end get the last ids.
fn tokenizer(pieces: &[String], merges: &[(String, String)], max_length: usize) -> Result<Tokenizer> {
    let tokens = pieces.iter().cloned().chain([START.to_owned(), END.to_owned()]);
    let layout = Layout {
        vocabulary: tokens.zip(0..).collect(),
        merges: merges.to_vec(),
        pad: PAD.to_owned(),
        fixes_text: false,
    };
    Tokenizer::new(layout.tokenizer(max_length)?, Some(max_length), &Hints::default())
}

/// How often each word occurs, as ids of its bytes: a tokenizer without merges gives them one by one.
fn count_words(bytes: &[String], texts: &[&str]) -> Result<BTreeMap<Vec<u32>, u64>> {
    let tokenizer = tokenizer(bytes, &[], usize::MAX)?;
    let mut counts = BTreeMap::new();
    for text in texts {
        let encoding = tokenizer.encode_one(text)?;
        let mut word = Vec::new();
        for (&id, token) in encoding.get_ids().iter().zip(encoding.get_tokens()) {
            // Start, end, and special tokens that a text spells out are no words.
            if id == 0 || id as usize >= bytes.len() {
                continue;
            }
            word.push(id);
            if token.ends_with(END_OF_WORD) {
                *counts.entry(std::mem::take(&mut word)).or_insert(0) += 1;
            }
        }
    }
    Ok(counts)
}

/// A pair of neighbouring pieces: how often it occurs, and in which words.
#[derive(Default)]
struct Pair {
    count: u64,
    words: BTreeSet<usize>,
}

/// Merges the most frequent pair (of equal ones that of the lowest ids) until `pieces` holds `most`.
fn learn(words: BTreeMap<Vec<u32>, u64>, pieces: &mut Vec<String>, most: usize) -> Vec<(String, String)> {
    let mut words: Vec<(Vec<u32>, u64)> = words.into_iter().collect();
    let mut ids: BTreeMap<String, u32> = pieces.iter().cloned().zip(0..).collect();
    let mut pairs: BTreeMap<[u32; 2], Pair> = BTreeMap::new();
    for (at, word) in words.iter().enumerate() {
        add(&mut pairs, at, word);
    }
    let mut merges = Vec::new();
    while pieces.len() < most {
        let best = pairs.iter().max_by_key(|(key, pair)| (pair.count, Reverse(**key)));
        let Some((&[a, b], _)) = best.filter(|(_, pair)| pair.count >= MIN_FREQUENCY) else { break };
        let [left, right] = [a, b].map(|id| pieces[id as usize].clone());
        // Two ways to the same piece share its id.
        let merged = *ids.entry(format!("{left}{right}")).or_insert_with_key(|piece| {
            pieces.push(piece.clone());
            pieces.len() as u32 - 1
        });
        merges.push((left, right));
        let touched = pairs.get(&[a, b]).map(|pair| pair.words.clone()).unwrap_or_default();
        for at in touched {
            remove(&mut pairs, at, &words[at]);
            words[at].0 = merge(&words[at].0, [a, b], merged);
            add(&mut pairs, at, &words[at]);
        }
    }
    merges
}

fn add(pairs: &mut BTreeMap<[u32; 2], Pair>, at: usize, (word, count): &(Vec<u32>, u64)) {
    for two in word.windows(2) {
        let pair = pairs.entry([two[0], two[1]]).or_default();
        pair.count += count;
        pair.words.insert(at);
    }
}

fn remove(pairs: &mut BTreeMap<[u32; 2], Pair>, at: usize, (word, count): &(Vec<u32>, u64)) {
    for two in word.windows(2) {
        let key = [two[0], two[1]];
        if let Some(pair) = pairs.get_mut(&key) {
            pair.count -= count;
            pair.words.remove(&at);
            if pair.count == 0 {
                pairs.remove(&key);
            }
        }
    }
}

/// `word` with every occurrence of the pair as one piece, from left to right.
fn merge(word: &[u32], pair: [u32; 2], merged: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        if rest.starts_with(&pair) {
            out.push(merged);
            rest = &rest[2..];
        } else {
            out.push(first);
            rest = after;
        }
    }
    out
}
