//! The pre-norm transformer block and a stack of them, with the parameter names of Hugging Face's CLIP.

use super::token::{seen_from, token_at};
use super::{LayerNorm, Linear, Module, Params, Unary};
use crate::error::Result;
use crate::ops::attention::{Attention, attention};
use crate::tape::through;
use crate::tensor::Tensor;

/// x + attention(norm(x)), then x + mlp(norm(x)).
#[derive(Clone)]
pub struct Block {
    heads: usize,
    act: Unary,
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(p: &Params, c: &Config) -> Result<Self> {
        let d = c.width;
        // OpenAI's CLIP initialisation: residual branches shrink with depth.
        let residual = (d as f64).powf(-0.5) * (2.0 * c.depth as f64).powf(-0.5);
        let attn = p.at("self_attn");
        let inner = (d as f64).powf(-0.5);
        Ok(Self {
            heads: c.heads,
            act: c.act,
            layer_norm1: LayerNorm::new(p, "layer_norm1", d, c.eps)?,
            q_proj: Linear::new(&attn, "q_proj", [d, d], true, inner)?,
            k_proj: Linear::new(&attn, "k_proj", [d, d], true, inner)?,
            v_proj: Linear::new(&attn, "v_proj", [d, d], true, inner)?,
            out_proj: Linear::new(&attn, "out_proj", [d, d], true, residual)?,
            layer_norm2: LayerNorm::new(p, "layer_norm2", d, c.eps)?,
            fc1: Linear::new(&p.at("mlp"), "fc1", [d, c.mlp], true, (2.0 * d as f64).powf(-0.5))?,
            fc2: Linear::new(&p.at("mlp"), "fc2", [c.mlp, d], true, residual)?,
        })
    }

    /// x [n, t, width]; key mask u8 [n, t].
    pub fn forward(&self, x: &Tensor, causal: bool, key_mask: Option<&Tensor>) -> Tensor {
        let y = self.input(&self.layer_norm1.forward(x));
        self.attend(x, &y, &y, causal, key_mask)
    }

    /// What [`Self::forward`] says of the tokens at positions i64 `[n]`, [n, 1, width]; nothing is computed for the others but their keys and values.
    pub fn forward_at(&self, at: &Tensor, x: &Tensor, causal: bool, key_mask: Option<&Tensor>) -> Tensor {
        let y = self.layer_norm1.forward(x);
        let seen = causal.then(|| seen_from(at, x.dims()[1], key_mask));
        let queries = self.input(&token_at(&y, at));
        self.attend(&token_at(x, at), &queries, &self.input(&y), false, seen.as_ref().or(key_mask))
    }

    fn input(&self, y: &Tensor) -> Tensor {
        Linear::input([&self.q_proj, &self.k_proj, &self.v_proj], y)
    }

    /// Tokens x [n, r, width], as queries normalised, and the keys of theirs [n, t, width].
    fn attend(&self, x: &Tensor, queries: &Tensor, keys: &Tensor, causal: bool, key_mask: Option<&Tensor>) -> Tensor {
        let [n, d] = [x.dims()[0], x.dims()[2]];
        // [n, t, d] as [n, heads, t, d / heads]: a view.
        let split = |y: Tensor| y.reshape([n, y.dims()[1], self.heads, d / self.heads]).permute(&[0, 2, 1, 3]);
        let [q, k, v] = [(&self.q_proj, queries), (&self.k_proj, keys), (&self.v_proj, keys)]
            .map(|(proj, y)| split(proj.operand(y)));
        let seen = attention(&q, &k, &v, key_mask, Attention { causal, dropout: None });
        let x = x + &self.out_proj.forward(&seen.reshape(*x.dims()), None);
        let y = self.fc1.forward(&self.layer_norm2.forward(&x), Some(self.act));
        x + self.fc2.forward(&y, None)
    }
}

impl Module for Block {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.layer_norm1.visit(&format!("{at}.layer_norm1"), f);
        self.q_proj.visit(&format!("{at}.self_attn.q_proj"), f);
        self.k_proj.visit(&format!("{at}.self_attn.k_proj"), f);
        self.v_proj.visit(&format!("{at}.self_attn.v_proj"), f);
        self.out_proj.visit(&format!("{at}.self_attn.out_proj"), f);
        self.layer_norm2.visit(&format!("{at}.layer_norm2"), f);
        self.fc1.visit(&format!("{at}.mlp.fc1"), f);
        self.fc2.visit(&format!("{at}.mlp.fc2"), f);
    }
}

/// Sizes of a stack of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Width of the stream.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// Width between the two layers of the perceptron.
    pub mlp: usize,
    /// Its activation.
    pub act: Unary,
    /// Of the norms.
    pub eps: f64,
}

/// Blocks one after the other: `layers.0`, `layers.1`, ...
pub struct Encoder {
    layers: Vec<Block>,
}

impl Encoder {
    /// Asks for the parameters of every block.
    pub fn new(params: &Params, config: &Config) -> Result<Self> {
        Ok(Self {
            layers: (0..config.depth)
                .map(|i| Block::new(&params.at(&format!("layers.{i}")), config))
                .collect::<Result<_>>()?,
        })
    }

    /// x [n, t, width].
    pub fn forward(&self, x: Tensor, causal: bool, key_mask: Option<&Tensor>) -> Tensor {
        forward(&self.layers, x, causal, key_mask)
    }

    /// What [`Self::forward`] says of the tokens at positions i64 `[n]`, [n, 1, width], without what they alone do not need.
    pub fn forward_at(&self, at: &Tensor, x: Tensor, causal: bool, key_mask: Option<&Tensor>) -> Tensor {
        let Some((last, layers)) = self.layers.split_last() else { return token_at(&x, at) };
        let (at, mask) = (at.clone(), key_mask.cloned());
        let x = forward(layers, x, causal, key_mask);
        through(last, &x, move |block, x| block.forward_at(&at, x, causal, mask.as_ref()))
    }
}

fn forward(layers: &[Block], x: Tensor, causal: bool, key_mask: Option<&Tensor>) -> Tensor {
    layers.iter().fold(x, |x, block| {
        let mask = key_mask.cloned();
        through(block, &x, move |block, x| block.forward(x, causal, mask.as_ref()))
    })
}

impl Module for Encoder {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        for (i, block) in self.layers.iter_mut().enumerate() {
            block.visit(&format!("{at}.layers.{i}"), f);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::gradcheck::assert_close;
    use crate::nn::Source;
    use crate::rng::Rng;

    /// Values and gradients, of whichever positions, whether later tokens and padding are seen or not.
    #[test]
    fn one_token_of_each_row_is_what_all_tokens_have_there() {
        let config = Config { width: 8, depth: 2, heads: 2, mlp: 12, act: Unary::Gelu, eps: 1e-5 };
        for depth in [0, 1, 2] {
            let params = Source::drawn(3, DType::F64);
            let mut encoder = Encoder::new(&params.params(), &Config { depth, ..config }).unwrap();
            encoder.visit("", &mut |_, p| *p = p.trainable());
            let x = Tensor::randn([3, 5, 8], DType::F64, &mut Rng::new(5, 0)).trainable();
            let at = Tensor::from_slice(&[4i64, 0, 2], [3]);
            let mask = Tensor::from_slice(&[1u8, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0], [3, 5]);
            for (causal, mask) in [(false, None), (true, None), (false, Some(&mask)), (true, Some(&mask))] {
                let all = token_at(&encoder.forward(x.clone(), causal, mask), &at);
                let one = encoder.forward_at(&at, x.clone(), causal, mask);
                assert_eq!(one.dims()[..], [3, 1, 8]);
                assert_close("tokens", &one, &all, 1e-13);
                let [all, one] = [all, one].map(|y| y.square().sum_all().backward());
                assert_close("gradient of the input", one.get(&x).unwrap(), all.get(&x).unwrap(), 1e-12);
                encoder.visit("", &mut |name, p| {
                    assert_close(name, one.get(p).unwrap(), all.get(p).unwrap(), 1e-12);
                });
            }
        }
    }
}
