//! Hugging Face's BertModel and what contains one: CXR-BERT, whose `cls_projection_head` leads into its joint space.

use serde_json::json;

use super::{Evidence, Layout, Pixels};
use crate::checkpoints::keys::Keys;
use crate::checkpoints::sizes::Shapes;
use crate::error::Result;
use crate::models::bert::BertConfig;
use crate::models::single::TextOutput;
use crate::models::{NetworkConfig, TextModelConfig};
use crate::nn::Activation;

pub(super) const LAYOUT: Layout = Layout {
    name: "BERT",
    assumed: super::no_config,
    pixels: Pixels::Nothing,
    fits: |e| ["bert.", ""].iter().any(|at| e.has(&format!("{at}embeddings.word_embeddings.weight"))),
    names: || [model(""), encoder("")].concat(),
    config,
};

/// A BertModel's names below `at`; `gamma` and `beta` are what TensorFlow's checkpoints left.
pub(super) fn encoder(at: &str) -> String {
    "
    @embeddings.position_ids -> ignored: the numbers of the positions
    @*.LayerNorm.gamma ~> text_model.*.LayerNorm.weight
    @*.LayerNorm.beta ~> text_model.*.LayerNorm.bias
    @embeddings.* -> text_model.embeddings.*
    @encoder.layer.* -> text_model.encoder.layer.*
    @pooler.* -> text_model.pooler.*
    "
    .replace('@', at)
}

/// The names of a model around a BertModel, below `at`.
pub(super) fn model(at: &str) -> String {
    let heads = "
    @cls.* -> ignored: the head of the masked language model
    @cls_projection_head.* -> text_projection.*
    ";
    [heads.replace('@', at), encoder(&format!("{at}bert."))].concat()
}

/// BERT by the keys of its config.json, where there is one.
pub(super) fn bert(shapes: &Shapes, keys: &Keys) -> Result<BertConfig> {
    // Where a config is silent, what BertConfig has.
    let heads = if keys.is_some() { Some(keys.count("num_attention_heads")?.unwrap_or(12)) } else { None };
    let bert = BertConfig {
        eps: keys.number("layer_norm_eps")?.unwrap_or(1e-12),
        activation: keys.activation("hidden_act")?.unwrap_or(Activation::Gelu),
        padding: keys.count("pad_token_id")?.and_then(|id| i64::try_from(id).ok()).unwrap_or(0),
        ..shapes.bert(heads)?
    };
    keys.only("model_type", &[json!("bert"), json!("cxr-bert")])?;
    keys.only("position_embedding_type", &[json!("absolute")])?;
    keys.only("is_decoder", &[json!(false)])?;
    keys.agree(&[
        ("hidden_size", bert.width),
        ("num_hidden_layers", bert.depth),
        ("intermediate_size", bert.mlp),
        ("vocab_size", bert.vocabulary),
        ("max_position_embeddings", bert.max_length),
        ("type_vocab_size", bert.token_types),
    ])?;
    Ok(bert)
}

fn config(shapes: &Shapes, evidence: &Evidence) -> Result<NetworkConfig> {
    let mut text = bert(shapes, &evidence.config)?;
    let output = match shapes.text_projection()? {
        Some((joint, projection)) => {
            evidence.config.agree(&[("projection_size", joint)])?;
            text.pooler = false;
            TextOutput::Joint { joint, projection }
        }
        None => TextOutput::Features,
    };
    Ok(NetworkConfig::TiergradTextModel(TextModelConfig { text: text.into(), output }))
}
