//! BERT's encoder (Devlin et al. 2019): post-norm, learned positions, with the parameter names of Hugging Face's BertModel.

use serde::{Deserialize, Serialize};

use super::check_sizes;
use crate::error::Result;
use crate::nn::{Activation, Init, LayerNorm, Linear, Module, Params, Unary};
use crate::ops::attention::{Attention, attention};
use crate::tape::through;
use crate::tensor::Tensor;

/// Sizes of a BERT encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertConfig {
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub max_length: usize,
    /// Width of the stream.
    pub width: usize,
    /// Layers.
    pub depth: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// Width between the two layers of the perceptron.
    pub mlp: usize,
    /// Rows of the table of token types; every token here has type 0.
    #[serde(default = "two")]
    pub token_types: usize,
    /// Whether there is a pooler: a tanh layer on the first token.
    #[serde(default)]
    pub pooler: bool,
    /// Added to the variance in layer norms.
    #[serde(default = "tiny")]
    pub eps: f64,
    /// Inside the layers' perceptrons.
    #[serde(default)]
    pub activation: Activation,
    /// The id of padding, whose row of the word embeddings gets no gradient (padding_idx in PyTorch); -1: there is none.
    #[serde(default)]
    pub padding: i64,
}

fn two() -> usize {
    2
}

fn tiny() -> f64 {
    1e-12
}

impl BertConfig {
    /// # Errors
    /// If the sizes do not divide, or are more than any model has.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("max_length", self.max_length),
            ("mlp", self.mlp),
            ("token_types", self.token_types),
        ];
        check_sizes("text", self.depth, &sizes, &[[("heads", self.heads), ("width", self.width)]])
    }
}

/// Weights start as BERT's: normal with this standard deviation.
const INIT: f64 = 0.02;

/// Self-attention and a perceptron, each added to its input and then normalised.
#[derive(Clone)]
struct Layer {
    heads: usize,
    activation: Unary,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn new(params: &Params, c: &BertConfig) -> Result<Self> {
        let d = c.width;
        let attention = params.at("attention");
        let (inner, outer) = (attention.at("self"), attention.at("output"));
        Ok(Self {
            heads: c.heads,
            activation: c.activation.unary(),
            query: Linear::new(&inner, "query", [d, d], true, INIT)?,
            key: Linear::new(&inner, "key", [d, d], true, INIT)?,
            value: Linear::new(&inner, "value", [d, d], true, INIT)?,
            attention_output: Linear::new(&outer, "dense", [d, d], true, INIT)?,
            attention_norm: LayerNorm::new(&outer, "LayerNorm", d, c.eps)?,
            intermediate: Linear::new(&params.at("intermediate"), "dense", [d, c.mlp], true, INIT)?,
            output: Linear::new(&params.at("output"), "dense", [c.mlp, d], true, INIT)?,
            output_norm: LayerNorm::new(&params.at("output"), "LayerNorm", d, c.eps)?,
        })
    }

    /// x [n, T, width]; key mask u8 [n, T].
    fn forward(&self, x: &Tensor, mask: &Tensor) -> Tensor {
        let y = self.input(x);
        self.attend(x, &y, &y, mask)
    }

    /// What [`Self::forward`] says of the first tokens, [n, 1, width]; nothing is computed for the others but their keys and values.
    fn forward_first(&self, x: &Tensor, mask: &Tensor) -> Tensor {
        let first = x.narrow(1, 0, 1);
        self.attend(&first, &self.input(&first), &self.input(x), mask)
    }

    fn input(&self, x: &Tensor) -> Tensor {
        Linear::input([&self.query, &self.key, &self.value], x)
    }

    /// Tokens x [n, r, width], also as operands of products, and the keys of theirs [n, T, width].
    fn attend(&self, x: &Tensor, queries: &Tensor, keys: &Tensor, mask: &Tensor) -> Tensor {
        let [n, d] = [x.dims()[0], x.dims()[2]];
        // [n, T, d] as [n, heads, T, d / heads]: a view.
        let split = |y: Tensor| y.reshape([n, y.dims()[1], self.heads, d / self.heads]).permute(&[0, 2, 1, 3]);
        let [q, k, v] = [(&self.query, queries), (&self.key, keys), (&self.value, keys)]
            .map(|(linear, y)| split(linear.operand(y)));
        let seen = attention(&q, &k, &v, Some(mask), Attention { causal: false, dropout: None });
        let x = self.attention_norm.forward(&(x + &self.attention_output.forward(&seen.reshape(*x.dims()), None)));
        let y = self.output.forward(&self.intermediate.forward(&x, Some(self.activation)), None);
        self.output_norm.forward(&(x + y))
    }
}

impl Module for Layer {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.query.visit(&format!("{at}.attention.self.query"), f);
        self.key.visit(&format!("{at}.attention.self.key"), f);
        self.value.visit(&format!("{at}.attention.self.value"), f);
        self.attention_output.visit(&format!("{at}.attention.output.dense"), f);
        self.attention_norm.visit(&format!("{at}.attention.output.LayerNorm"), f);
        self.intermediate.visit(&format!("{at}.intermediate.dense"), f);
        self.output.visit(&format!("{at}.output.dense"), f);
        self.output_norm.visit(&format!("{at}.output.LayerNorm"), f);
    }
}

/// A BERT encoder.
pub struct Bert {
    padding: i64,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
}

impl Bert {
    /// Asks for `embeddings.*`, `encoder.layer.N.*` and, where the config has one, `pooler.dense.*`.
    ///
    /// # Errors
    /// If the sizes do not fit each other, or a parameter is missing or has other dims.
    pub fn new(params: &Params, config: &BertConfig) -> Result<Self> {
        config.check()?;
        let (d, embeddings) = (config.width, params.at("embeddings"));
        let table = |name, rows| embeddings.at(name).get("weight", &[rows, d], Init::Normal(INIT));
        let layer = |i| Layer::new(&params.at(&format!("encoder.layer.{i}")), config);
        let pooler = || Linear::new(&params.at("pooler"), "dense", [d, d], true, INIT);
        Ok(Self {
            padding: config.padding,
            word_embeddings: table("word_embeddings", config.vocabulary)?,
            position_embeddings: table("position_embeddings", config.max_length)?,
            token_type_embeddings: table("token_type_embeddings", config.token_types)?,
            embedding_norm: LayerNorm::new(&embeddings, "LayerNorm", d, config.eps)?,
            layers: (0..config.depth).map(layer).collect::<Result<_>>()?,
            pooler: config.pooler.then(pooler).transpose()?,
        })
    }

    /// Ids i64 [n, T] and mask u8 [n, T] (1 where a token is real) to tokens [n, T, width].
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        forward(&self.layers, self.embed(ids), mask)
    }

    /// The first token of [`Self::forward`], [n, 1, width], without what the others alone need.
    pub fn forward_first(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        let x = self.embed(ids);
        let Some((last, layers)) = self.layers.split_last() else { return x.narrow(1, 0, 1) };
        let (x, mask) = (forward(layers, x, mask), mask.clone());
        through(last, &x, move |layer, x| layer.forward_first(x, &mask))
    }

    /// Ids to what goes into the first layer.
    fn embed(&self, ids: &Tensor) -> Tensor {
        let (t, most) = (ids.dims()[1], self.position_embeddings.dims()[0]);
        assert!(t <= most, "bert: {t} tokens, at most {most}");
        let x = self.words(ids) + self.token_type_embeddings.narrow(0, 0, 1) + self.position_embeddings.narrow(0, 0, t);
        self.embedding_norm.forward(&x)
    }

    /// Rows of the word embeddings [n, T, width]. Padding's is a constant, which matters where a loss counts padded positions.
    fn words(&self, ids: &Tensor) -> Tensor {
        let words = self.word_embeddings.embedding(ids);
        if !self.word_embeddings.is_tracked() {
            return words;
        }
        let real: Vec<f64> = ids.to_vec::<i64>().iter().map(|&id| f64::from(id != self.padding)).collect();
        if !real.contains(&0.0) {
            return words;
        }
        let real = Tensor::from_slice(&real, ids.dims().followed_by(&[1])).to_dtype(words.dtype());
        words.mul(&real) + words.detach().mul(&real.affine(-1.0, 1.0))
    }

    /// Tokens [n, T, width] to BertModel's pooler_output [n, width]; `None` where there is no pooler.
    pub fn pool(&self, tokens: &Tensor) -> Option<Tensor> {
        Some(self.pooler.as_ref()?.forward(&tokens.at(1, 0), Some(Unary::Tanh)))
    }
}

fn forward(layers: &[Layer], x: Tensor, mask: &Tensor) -> Tensor {
    layers.iter().fold(x, |x, layer| {
        let mask = mask.clone();
        through(layer, &x, move |layer, x| layer.forward(x, &mask))
    })
}

impl Module for Bert {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.embeddings.word_embeddings.weight"), &mut self.word_embeddings);
        f(&format!("{at}.embeddings.position_embeddings.weight"), &mut self.position_embeddings);
        f(&format!("{at}.embeddings.token_type_embeddings.weight"), &mut self.token_type_embeddings);
        self.embedding_norm.visit(&format!("{at}.embeddings.LayerNorm"), f);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.visit(&format!("{at}.encoder.layer.{i}"), f);
        }
        if let Some(pooler) = &mut self.pooler {
            pooler.visit(&format!("{at}.pooler.dense"), f);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::formats::Weights;
    use crate::nn::{ProjectionHead, Source};

    fn small(pooler: bool) -> BertConfig {
        BertConfig {
            vocabulary: 9,
            max_length: 5,
            width: 8,
            depth: 2,
            heads: 2,
            mlp: 12,
            token_types: 2,
            pooler,
            eps: 1e-12,
            activation: Activation::Gelu,
            padding: 0,
        }
    }

    #[test]
    fn padding_changes_nothing_and_the_pooler_reads_the_first_token() {
        let bert = Bert::new(&Source::drawn(3, DType::F64).params(), &small(true)).unwrap();
        let ids = Tensor::from_slice(&[1i64, 4, 2, 7, 7], [1, 5]);
        let mask = Tensor::from_slice(&[1u8, 1, 1, 0, 0], [1, 5]);
        let padded = bert.forward(&ids, &mask);
        let short = bert.forward(&ids.narrow(1, 0, 3), &mask.narrow(1, 0, 3));
        crate::gradcheck::assert_close("padded", &padded.narrow(1, 0, 3), &short, 1e-12);
        assert_eq!(bert.pool(&padded).unwrap().dims()[..], [1, 8]);
        let without = Bert::new(&Source::drawn(3, DType::F64).params(), &small(false)).unwrap();
        assert!(without.pool(&padded).is_none());
    }

    #[test]
    fn the_row_of_padding_gets_no_gradient_from_padded_positions() {
        let gradient = |padding: i64| {
            let config = BertConfig { padding, ..small(false) };
            let mut bert = Bert::new(&Source::drawn(3, DType::F64).params(), &config).unwrap();
            bert.visit("", &mut |_, p| *p = p.trainable());
            let ids = Tensor::from_slice(&[1i64, 4, 2, 0, 0], [1, 5]);
            let mask = Tensor::from_slice(&[1u8, 1, 1, 0, 0], [1, 5]);
            let y = bert.forward(&ids, &mask);
            let grads = y.square().sum_all().backward();
            (y.to_f64_vec(), grads.get(&bert.word_embeddings).unwrap().to_f64_vec())
        };
        let ((with, kept), (without, moved)) = (gradient(0), gradient(-1));
        assert_eq!(with, without);
        assert!(kept[..8].iter().all(|&g| g == 0.0) && moved[..8].iter().all(|&g| g != 0.0));
        assert_eq!(kept[8..], moved[8..]);
    }

    /// Embeddings that PyTorch computes with a CXR-BERT checkpoint, where TIER_SHARED names the folder that has them.
    #[test]
    fn the_reference_embeddings_are_reproduced() {
        let Some(folder) = crate::shared::shared("parity") else { return };
        let weights = Weights::open(folder.join("cxr-bert-tiny/model.safetensors"), true).unwrap();
        let case = Weights::open(folder.join("cxr-bert-tiny.case.safetensors"), true).unwrap();
        let config = BertConfig {
            vocabulary: 180,
            max_length: 32,
            width: 48,
            depth: 3,
            heads: 4,
            mlp: 96,
            token_types: 2,
            pooler: false,
            eps: 1e-12,
            activation: Activation::Gelu,
            padding: 0,
        };
        let source = Source::file(&weights);
        let bert = Bert::new(&source.params().at("bert"), &config).unwrap();
        let head = ProjectionHead::new(&source.params(), "cls_projection_head", [48, 24]).unwrap();
        let mask = case.get("attention_mask").unwrap().to_dtype(DType::U8);
        let tokens = head.forward(&bert.forward(case.get("input_ids").unwrap(), &mask));
        let error = |ours: &Tensor, name: &str| {
            let theirs = case.get(name).unwrap();
            let length = |x: Tensor| x.square().sum_all().item().sqrt();
            length(ours.sub(theirs)) / length(theirs.clone())
        };
        assert!(error(&tokens, "expect.token_embeds") < 2e-5);
        assert!(error(&tokens.at(1, 0), "expect.text_embeds") < 2e-5);
    }
}
