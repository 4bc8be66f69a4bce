//! The library's tokenizer put together from its parts. Reading a tokenizer.json as the library does takes some 300 bytes of memory
//! for each piece of the vocabulary; here its vocabulary goes into the tables it ends in, and is refused where those alone would be
//! out of proportion to the file.

use std::fmt;
use std::mem::size_of;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper,
    PreTokenizerWrapper, TokenizerBuilder, TruncationParams,
};

use super::guarded;
use crate::error::{Error, Result};
use crate::files::ROOM;

/// Most bytes of a tokenizer.json around its model: rules and special tokens, which the library keeps as trees.
const MAX_AROUND: usize = 512 << 10;
/// What is said of a tokenizer.json that the library refuses.
const UNUSABLE: &str = "not a tokenizer.json that can be used";
/// Of other files that a vocabulary comes in.
const NO_VOCABULARY: &str = "not a vocabulary that can be used";

/// All of a tokenizer.json but its model.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Parts {
    version: Option<String>,
    truncation: Option<TruncationParams>,
    padding: Option<PaddingParams>,
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
}

/// A model, and one more than the largest of its ids.
pub(super) struct Model {
    model: ModelWrapper,
    ids: usize,
}

impl Model {
    /// What the library builds of a vocabulary with so many ids, or `what` and why not.
    fn of<M: Into<ModelWrapper>>(
        what: &str,
        ids: usize,
        build: impl FnOnce() -> tokenizers::Result<M>,
    ) -> Result<Self> {
        guarded(what, || Ok(Self { model: build()?.into(), ids }))
    }
}

/// A tokenizer of the library, and one more than the largest of its ids.
pub(super) struct Assembled {
    pub inner: tokenizers::Tokenizer,
    pub ids: usize,
}

fn unusable(e: impl fmt::Display) -> Error {
    Error::new(format!("{UNUSABLE}: {e}"))
}

/// The tokenizer of some parts, written as JSON, and a model.
pub(super) fn of_json(parts: serde_json::Value, model: Model) -> Result<Assembled> {
    assemble(serde_json::from_value(parts).map_err(unusable)?, model)
}

fn assemble(parts: Parts, Model { model, ids }: Model) -> Result<Assembled> {
    if let Some(version) = parts.version.filter(|version| version != "1.0") {
        return Err(unusable(format!("its version is {version:?}, where 1.0 is known")));
    }
    guarded(UNUSABLE, || {
        let builder = TokenizerBuilder::new()
            .with_truncation(parts.truncation)
            .with_padding(parts.padding)
            .with_normalizer(parts.normalizer)
            .with_pre_tokenizer(parts.pre_tokenizer)
            .with_post_processor(parts.post_processor)
            .with_decoder(parts.decoder)
            .with_model(model);
        let mut tokenizer = builder.build()?;
        tokenizer.add_tokens(parts.added_tokens)?;
        let added = tokenizer.get_added_tokens_decoder().keys().max().map_or(0, |&id| id as usize + 1);
        Ok(Assembled { inner: tokenizer.into(), ids: ids.max(added) })
    })
}

/// The tokenizer of a tokenizer.json.
pub(super) fn read(json: Vec<u8>) -> Result<Assembled> {
    #[derive(Deserialize)]
    struct Outline<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let outline: Outline = serde_json::from_slice(&json).map_err(unusable)?;
    let text = outline.model.get();
    let around = json.len() - text.len();
    if around > MAX_AROUND {
        return Err(unusable(format!("{around} bytes around its model, more than {MAX_AROUND}")));
    }
    let sizes: Sizes = serde_json::from_str(text).map_err(unusable)?;
    check_room(sizes.vocab.0, sizes.merges.0, json.len())?;
    let parts: Parts = serde_json::from_slice(&json).map_err(unusable)?;
    let model: Read = serde_json::from_str(text).map_err(unusable)?;
    drop(json);
    assemble(parts, model.build()?)
}

fn ids(vocabulary: &Vocab) -> usize {
    vocabulary.values().max().map_or(0, |&id| id as usize + 1)
}

/// A vocabulary that maps pieces to ids.
pub(super) fn vocabulary(json: &[u8]) -> serde_json::Result<Vocab> {
    Ok(serde_json::from_slice::<Pieces>(json)?.0)
}

/// How many entries a JSON object has.
pub(super) fn entries(json: &[u8]) -> usize {
    serde_json::from_slice::<Count>(json).map_or(0, |count| count.0)
}

/// Whether so many pieces and merges of a file of so many bytes fit into four times that and 16 MiB.
///
/// # Errors
/// If not: they are many and tiny, as no model's are.
pub(super) fn check_room(pieces: usize, merges: usize, bytes: usize) -> Result<()> {
    // Hash tables have a power of two of places, an eighth of them free, and a byte for each beside the entry.
    let table = |n: usize, entry: usize| (n + n / 7 + 1).next_power_of_two().saturating_mul(entry + 1);
    let tables = 2 * table(pieces, size_of::<(String, u32)>()) + table(merges, size_of::<[u64; 2]>());
    // A list that grows to be twice as long is there twice meanwhile.
    let needs = tables.saturating_add(merges.saturating_mul(3 * size_of::<(String, String)>()));
    let has = 2 * bytes + ROOM;
    if needs > has {
        let [needs, has] = [needs, has].map(|bytes| bytes >> 20);
        return Err(Error::new(format!(
            "{pieces} pieces and {merges} merges in {bytes} bytes would take {needs} MiB, where {has} are allowed; no model has so \
             many so short ones: give its tokenizer.json, or fetch the file again"
        )));
    }
    Ok(())
}

/// The model of a tokenizer.json.
#[derive(Deserialize)]
struct Read {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Pieces,
    merges: Option<Pairs>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<usize>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
}

impl Read {
    fn build(self) -> Result<Model> {
        let ids = ids(&self.vocab.0);
        // Older files do not say what they are.
        let kind = self.kind.as_deref().unwrap_or(match (&self.merges, &self.continuing_subword_prefix) {
            (Some(_), _) => "BPE",
            (None, Some(_)) => "WordPiece",
            (None, None) => "WordLevel",
        });
        let needed =
            |value: Option<String>, key: &str| value.ok_or_else(|| unusable(format!("its model has no {key}")));
        match kind {
            "BPE" => {
                let pairs = self.merges.ok_or_else(|| unusable("its model has no merges"))?;
                let mut builder = BPE::builder()
                    .vocab_and_merges(self.vocab.0, pairs.0)
                    .fuse_unk(self.fuse_unk.unwrap_or_default())
                    .byte_fallback(self.byte_fallback.unwrap_or_default())
                    .ignore_merges(self.ignore_merges.unwrap_or_default());
                if let Some(dropout) = self.dropout {
                    builder = builder.dropout(dropout);
                }
                if let Some(token) = self.unk_token {
                    builder = builder.unk_token(token);
                }
                if let Some(prefix) = self.continuing_subword_prefix {
                    builder = builder.continuing_subword_prefix(prefix);
                }
                if let Some(suffix) = self.end_of_word_suffix {
                    builder = builder.end_of_word_suffix(suffix);
                }
                Model::of(UNUSABLE, ids, || builder.build())
            }
            "WordPiece" => word_pieces(
                self.vocab.0,
                needed(self.unk_token, "unk_token")?,
                needed(self.continuing_subword_prefix, "continuing_subword_prefix")?,
                self.max_input_chars_per_word.ok_or_else(|| unusable("its model has no max_input_chars_per_word"))?,
            ),
            "WordLevel" => {
                let builder = WordLevel::builder().vocab(self.vocab.0).unk_token(needed(self.unk_token, "unk_token")?);
                Model::of(UNUSABLE, ids, || builder.build())
            }
            other => Err(unusable(format!("its model is {other:?}; BPE, WordPiece and WordLevel are read here"))),
        }
    }
}

/// BERT's model of a vocabulary.
pub(super) fn word_pieces(vocabulary: Vocab, unknown: String, prefix: String, longest: usize) -> Result<Model> {
    let ids = ids(&vocabulary);
    let builder = WordPiece::builder()
        .vocab(vocabulary)
        .unk_token(unknown)
        .continuing_subword_prefix(prefix)
        .max_input_chars_per_word(longest);
    Model::of(NO_VOCABULARY, ids, || builder.build())
}

/// CLIP's model of a vocabulary and merges.
pub(super) fn byte_pairs(vocabulary: Vocab, merges: Merges, unknown: &str, end_of_word: &str) -> Result<Model> {
    let ids = ids(&vocabulary);
    let builder = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token(unknown.to_owned())
        .end_of_word_suffix(end_of_word.to_owned());
    Model::of(NO_VOCABULARY, ids, || builder.build())
}

/// Pieces to ids.
struct Pieces(Vocab);

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pieces;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("pieces with their ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pieces, A::Error> {
                let mut pieces = Vocab::new();
                while let Some((piece, id)) = map.next_entry()? {
                    pieces.insert(piece, id);
                }
                Ok(Pieces(pieces))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Pieces, A::Error> {
                Err(A::Error::custom(
                    "a SentencePiece (Unigram) vocabulary; BPE, WordPiece and WordLevel are read here",
                ))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Merges, each two pieces, or both in one text with a space between.
struct Pairs(Merges);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        struct Pair;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = seq.next_element_seed(Pair)? {
                    pairs.extend(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        impl<'de> serde::de::DeserializeSeed<'de> for Pair {
            type Value = Option<(String, String)>;
            fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
                deserializer.deserialize_any(self)
            }
        }
        impl<'de> Visitor<'de> for Pair {
            type Value = Option<(String, String)>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge of two pieces")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let two = (seq.next_element()?, seq.next_element()?, seq.next_element::<IgnoredAny>()?);
                let (Some(left), Some(right), None) = two else {
                    return Err(A::Error::custom("a merge is two pieces"));
                };
                Ok(Some((left, right)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                if text.starts_with("#version") {
                    return Ok(None);
                }
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(Some((left.to_owned(), right.to_owned()))),
                    _ => Err(E::custom(format!("a merge is two pieces with a space between, not {text:?}"))),
                }
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

/// The sizes of a model, learned without holding it.
#[derive(Deserialize)]
struct Sizes {
    vocab: Count,
    #[serde(default)]
    merges: Count,
}

#[derive(Default)]
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object or a list")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
            fn visit_unit<E>(self) -> Result<Count, E> {
                Ok(Count(0))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
