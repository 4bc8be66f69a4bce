//! The training objective: contrastive loss plus the TIER penalty (reference: Palepu and Beam, MLHC 2023).

use serde::{Deserialize, Serialize};

use crate::models::dual_encoder::Embeddings;
use crate::tensor::Tensor;

/// Options of the TIER penalty. The defaults are those of the paper's pseudocode, with padding left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierOptions {
    /// Weight of the entropy over patches: how many regions a token speaks of.
    pub lambda_p: f64,
    /// Weight of the entropy over tokens: how many tokens speak of a region.
    pub lambda_t: f64,
    /// Added to every probability before p ln p.
    pub eps: f64,
    /// Divides the similarities before the softmaxes; the paper has none, which is 1.
    pub temperature: f64,
    /// Leave padded tokens out; the paper's code does not.
    pub mask_padding: bool,
    /// The convention of the paper's code and section 3.3: lambda_p weighs the entropy over tokens and lambda_t the one over patches.
    pub swap_lambdas: bool,
}

impl Default for TierOptions {
    fn default() -> Self {
        Self { lambda_p: 0.2, lambda_t: 0.1, eps: 1e-7, temperature: 1.0, mask_padding: true, swap_lambdas: false }
    }
}

impl TierOptions {
    /// Weights of the entropy over patches and of the entropy over tokens.
    pub fn weights(&self) -> [f64; 2] {
        if self.swap_lambdas { [self.lambda_t, self.lambda_p] } else { [self.lambda_p, self.lambda_t] }
    }

    /// The tokens that enter the penalty, of a mask [n, T] of real ones.
    pub fn counted(&self, mask: &Tensor) -> Tensor {
        if self.mask_padding { mask.clone() } else { Tensor::full(*mask.dims(), 1.0, mask.dtype()) }
    }
}

/// The parts of the objective; all scalars.
pub struct Loss {
    /// What is minimised.
    pub total: Tensor,
    /// Symmetric InfoNCE.
    pub clip: Tensor,
    /// Mean over tokens of the entropy over patches, in nats.
    pub patch_entropy: Tensor,
    /// Mean over patches of the entropy over tokens, in nats.
    pub token_entropy: Tensor,
}

/// Cosine similarities [n, T, P] between each pair's own tokens and patches.
pub fn similarities(tokens: &Tensor, patches: &Tensor) -> Tensor {
    tokens.l2_normalise().matmul(&patches.l2_normalise().transpose(1, 2))
}

/// exp(logit_scale) times the cosine of every image with every text: [n, n].
pub fn logits(images: &Tensor, texts: &Tensor, logit_scale: &Tensor) -> Tensor {
    images.l2_normalise().matmul(&texts.l2_normalise().transpose(0, 1)).mul(&logit_scale.exp())
}

/// The contrastive loss of `views` (embeddings of the whole image, [n, d] each) with their texts [n, d]: the mean over views, and over pairs of views,
/// whose image-image contrast is added to it. `groups` i64 `[n]` names texts that count as positives of each other (distinct: pairs as in CLIP).
pub fn contrast(views: &[&Tensor], texts: &Tensor, groups: &Tensor, logit_scale: &Tensor) -> Tensor {
    let mut parts: Vec<Tensor> = views.iter().map(|v| logits(v, texts, logit_scale).contrastive(groups)).collect();
    for (i, a) in views.iter().enumerate() {
        parts.extend(views[i + 1..].iter().map(|b| logits(a, b, logit_scale).contrastive(groups)));
    }
    mean(parts)
}

/// TIER's entropies over patches and over tokens, averaged over views, of patch embeddings [n, P, d] and token embeddings [n, T, d].
pub fn entropies(views: &[&Tensor], tokens: &Tensor, mask: &Tensor, options: &TierOptions) -> [Tensor; 2] {
    let counted = options.counted(mask);
    let both =
        mean(views.iter().map(|v| similarities(tokens, v).tier(&counted, options.eps, options.temperature)).collect());
    [0, 1].map(|i| both.narrow(0, i, 1).reshape([]))
}

fn mean(parts: Vec<Tensor>) -> Tensor {
    let n = parts.len() as f64;
    parts.into_iter().reduce(|a, b| a + b).expect("at least one view") * (1.0 / n)
}

/// Contrastive loss plus TIER for `views` of the same images with their texts. `mask` u8 [n, T] marks real tokens; see [`contrast`] and
/// [`entropies`].
pub fn tier_loss(
    views: &[Embeddings],
    texts: &Embeddings,
    mask: &Tensor,
    groups: &Tensor,
    logit_scale: &Tensor,
    options: &TierOptions,
) -> Loss {
    let [wholes, parts]: [Vec<&Tensor>; 2] =
        [views.iter().map(|v| &v.whole).collect(), views.iter().map(|v| &v.parts).collect()];
    let clip = contrast(&wholes, &texts.whole, groups, logit_scale);
    let [patch_entropy, token_entropy] = entropies(&parts, &texts.parts, mask, options);
    let [over_patches, over_tokens] = options.weights();
    let total = &clip + &(&patch_entropy * over_patches + &token_entropy * over_tokens);
    Loss { total, clip, patch_entropy, token_entropy }
}
