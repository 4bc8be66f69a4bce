//! The text side of a dual encoder: CLIP's causal transformer or BERT.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::bert::{Bert, BertConfig};
use super::clip_text::{ClipText, TextConfig};
use crate::error::Result;
use crate::nn::{Module, Params, token_at};
use crate::tensor::Tensor;

/// Which text transformer, and its sizes. In a file the key `kind` says which: `clip` (also where it is absent) or `bert`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TextTowerConfig {
    /// CLIP's causal transformer; the whole text is its end token, found as its config says.
    Clip(TextConfig),
    /// BERT; the whole text is its first token.
    Bert(BertConfig),
}

impl Default for TextTowerConfig {
    fn default() -> Self {
        Self::Clip(TextConfig::default())
    }
}

impl<'de> Deserialize<'de> for TextTowerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keys = serde_json::Map::deserialize(deserializer)?;
        let kind = keys.remove("kind");
        let sizes = serde_json::Value::Object(keys);
        match kind.as_ref().map(|k| k.as_str()) {
            None | Some(Some("clip")) => serde_json::from_value(sizes).map(Self::Clip),
            Some(Some("bert")) => serde_json::from_value(sizes).map(Self::Bert),
            Some(_) => return Err(D::Error::custom("text: kind must be \"clip\" or \"bert\"")),
        }
        .map_err(|e| D::Error::custom(format!("text: {e}")))
    }
}

impl From<TextConfig> for TextTowerConfig {
    fn from(config: TextConfig) -> Self {
        Self::Clip(config)
    }
}

impl From<BertConfig> for TextTowerConfig {
    fn from(config: BertConfig) -> Self {
        Self::Bert(config)
    }
}

impl TextTowerConfig {
    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Clip(c) => c.vocabulary,
            Self::Bert(c) => c.vocabulary,
        }
    }

    /// Sets the number of token ids.
    pub fn set_vocabulary(&mut self, vocabulary: usize) {
        match self {
            Self::Clip(c) => c.vocabulary = vocabulary,
            Self::Bert(c) => c.vocabulary = vocabulary,
        }
    }

    /// Longest text in tokens.
    pub fn max_length(&self) -> usize {
        match self {
            Self::Clip(c) => c.max_length,
            Self::Bert(c) => c.max_length,
        }
    }

    /// Width of the stream.
    pub fn width(&self) -> usize {
        match self {
            Self::Clip(c) => c.width,
            Self::Bert(c) => c.width,
        }
    }

    /// # Errors
    /// If the sizes do not fit each other.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Clip(c) => c.check(),
            Self::Bert(c) => c.check(),
        }
    }
}

/// A text transformer of either kind.
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum TextTower {
    /// CLIP's.
    Clip(ClipText),
    /// BERT.
    Bert(Bert),
}

impl TextTower {
    /// Asks for the parameters of its kind.
    pub fn new(params: &Params, config: &TextTowerConfig) -> Result<Self> {
        Ok(match config {
            TextTowerConfig::Clip(c) => Self::Clip(ClipText::new(params, c)?),
            TextTowerConfig::Bert(c) => Self::Bert(Bert::new(params, c)?),
        })
    }

    /// Ids i64 [n, T] and mask u8 [n, T] (1 where a token is real) to tokens [n, T, width].
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        match self {
            Self::Clip(text) => text.forward(ids, mask),
            Self::Bert(text) => text.forward(ids, mask),
        }
    }

    /// The token of [`Self::forward`] that stands for the whole text, [n, 1, width], without what the others alone need.
    pub fn forward_whole(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        match self {
            Self::Clip(text) => text.forward_whole(ids, mask),
            Self::Bert(text) => text.forward_first(ids, mask),
        }
    }

    /// Of tokens [n, T, d] of texts (ids i64 [n, T], mask u8 [n, T]) those that stand for the whole texts: [n, d].
    pub fn whole(&self, tokens: &Tensor, ids: &Tensor, mask: &Tensor) -> Tensor {
        match self {
            Self::Clip(text) => token_at(tokens, &text.whole(ids, mask)).at(1, 0),
            Self::Bert(_) => tokens.at(1, 0),
        }
    }

    /// Tokens [n, T, width] to BertModel's pooler_output [n, width], where there is a pooler.
    pub fn pool(&self, tokens: &Tensor) -> Option<Tensor> {
        match self {
            Self::Clip(_) => None,
            Self::Bert(text) => text.pool(tokens),
        }
    }
}

impl Module for TextTower {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Clip(text) => text.visit(at, f),
            Self::Bert(text) => text.visit(at, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_without_kind_is_clip_and_wrong_keys_are_named() {
        let old = r#"{"vocabulary": 9, "max_length": 5, "width": 8, "depth": 1, "heads": 2, "quick_gelu": false}"#;
        let clip: TextTowerConfig = serde_json::from_str(old).unwrap();
        assert!(matches!(&clip, TextTowerConfig::Clip(c) if c.width == 8));
        let bert =
            r#"{"kind": "bert", "vocabulary": 9, "max_length": 5, "width": 8, "depth": 1, "heads": 2, "mlp": 16}"#;
        let bert: TextTowerConfig = serde_json::from_str(bert).unwrap();
        assert!(matches!(&bert, TextTowerConfig::Bert(c) if c.eps == 1e-12 && c.token_types == 2 && !c.pooler));
        for config in [clip, bert] {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<TextTowerConfig>(&json).unwrap(), config, "{json}");
        }
        let wrong = |json: &str| serde_json::from_str::<TextTowerConfig>(json).unwrap_err().to_string();
        assert!(wrong(&old.replace("heads", "haeds")).contains("haeds"));
        assert!(wrong(r#"{"kind": "lstm"}"#).contains("\"bert\""));
    }
}
