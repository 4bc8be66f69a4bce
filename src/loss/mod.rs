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

/// Contrastive loss plus TIER for `views` of the same images with their texts. `mask` u8 [n, T] marks real tokens; `groups` i64 `[n]` names texts
/// that count as positives of each other (distinct: pairs as in CLIP). Contrastive loss and penalty are averaged over views; each pair of
/// views adds its image-image contrast to that average.
pub fn tier_loss(
    views: &[Embeddings],
    texts: &Embeddings,
    mask: &Tensor,
    groups: &Tensor,
    logit_scale: &Tensor,
    options: &TierOptions,
) -> Loss {
    assert!(!views.is_empty(), "tier_loss: no views");
    let mean = |parts: Vec<Tensor>| {
        let n = parts.len() as f64;
        parts.into_iter().reduce(|a, b| a + b).expect("at least one") * (1.0 / n)
    };
    let mut contrasts: Vec<Tensor> =
        views.iter().map(|v| logits(&v.whole, &texts.whole, logit_scale).contrastive(groups)).collect();
    for (i, a) in views.iter().enumerate() {
        contrasts.extend(views[i + 1..].iter().map(|b| logits(&a.whole, &b.whole, logit_scale).contrastive(groups)));
    }
    let clip = mean(contrasts);
    let counted = if options.mask_padding { mask.clone() } else { Tensor::full(*mask.dims(), 1.0, mask.dtype()) };
    let penalty =
        |v: &Embeddings| similarities(&texts.parts, &v.parts).tier(&counted, options.eps, options.temperature);
    let entropies = mean(views.iter().map(penalty).collect());
    let [patch_entropy, token_entropy] = [0, 1].map(|i| entropies.narrow(0, i, 1).reshape([]));
    let [lambda_p, lambda_t] =
        if options.swap_lambdas { [options.lambda_t, options.lambda_p] } else { [options.lambda_p, options.lambda_t] };
    let total = &clip + &(&patch_entropy * lambda_p + &token_entropy * lambda_t);
    Loss { total, clip, patch_entropy, token_entropy }
}
