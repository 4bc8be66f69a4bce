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

impl Loss {
    /// The values alone, without a graph.
    pub fn detach(&self) -> Self {
        let Self { total, clip, patch_entropy, token_entropy } = self;
        let [total, clip, patch_entropy, token_entropy] =
            [total, clip, patch_entropy, token_entropy].map(Tensor::detach);
        Self { total, clip, patch_entropy, token_entropy }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::rng::Rng;

    /// Three views of five pairs, three of which share two texts.
    fn drawn() -> ([Embeddings; 3], Embeddings, Tensor, Tensor, Tensor) {
        let mut rng = Rng::new(4, 0);
        let mut draw = |dims: &[usize]| Tensor::randn(dims, DType::F64, &mut rng);
        let mut embeddings = |parts| Embeddings { whole: draw(&[5, 6]), parts: draw(&[5, parts, 6]) };
        let views = [embeddings(4), embeddings(4), embeddings(4)];
        let mask = Tensor::from_slice(&[1u8, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], [5, 3]);
        let groups = Tensor::from_slice(&[0i64, 1, 0, 3, 4], [5]);
        (views, embeddings(3), mask, groups, Tensor::scalar(1.3))
    }

    #[test]
    fn several_views_are_contrasted_with_their_texts_and_with_each_other() {
        let (views, texts, mask, groups, scale) = drawn();
        let options = TierOptions { lambda_p: 0.7, lambda_t: 0.4, ..TierOptions::default() };
        let of = |views: &[Embeddings]| tier_loss(views, &texts, &mask, &groups, &scale, &options);
        let alone = views
            .each_ref()
            .map(|v| of(std::slice::from_ref(&Embeddings { whole: v.whole.clone(), parts: v.parts.clone() })));
        // Symmetric InfoNCE by its definition, where rows of one group are positives with equal shares.
        let info_nce = |a: &Tensor, b: &Tensor| {
            let [a, b] = [a, b].map(|x| x.l2_normalise().to_vec::<f64>());
            let logit = |i: usize, j: usize| 1.3f64.exp() * (0..6).map(|k| a[i * 6 + k] * b[j * 6 + k]).sum::<f64>();
            let g = groups.to_vec::<i64>();
            let side = |logit: &dyn Fn(usize, usize) -> f64| {
                let row = |i: usize| {
                    let all = (0..5).map(|j| logit(i, j).exp()).sum::<f64>().ln();
                    let own: Vec<f64> = (0..5).filter(|&j| g[j] == g[i]).map(|j| all - logit(i, j)).collect();
                    own.iter().sum::<f64>() / own.len() as f64
                };
                (0..5).map(row).sum::<f64>() / 5.0
            };
            (side(&logit) + side(&|i, j| logit(j, i))) / 2.0
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        for (loss, view) in alone.iter().zip(&views) {
            near(loss.clip.item(), info_nce(&view.whole, &texts.whole));
        }
        let all = of(&views);
        let with_texts: f64 = alone.iter().map(|loss| loss.clip.item()).sum();
        let with_each_other: f64 =
            [(0, 1), (0, 2), (1, 2)].iter().map(|&(i, j)| info_nce(&views[i].whole, &views[j].whole)).sum();
        near(all.clip.item(), (with_texts + with_each_other) / 6.0);
        near(all.patch_entropy.item(), alone.iter().map(|loss| loss.patch_entropy.item()).sum::<f64>() / 3.0);
        near(all.token_entropy.item(), alone.iter().map(|loss| loss.token_entropy.item()).sum::<f64>() / 3.0);
        near(all.total.item(), all.clip.item() + 0.7 * all.patch_entropy.item() + 0.4 * all.token_entropy.item());
    }

    #[test]
    fn each_option_does_what_it_is_called() {
        let (views, texts, mask, groups, scale) = drawn();
        let of = |options: TierOptions| tier_loss(&views[..1], &texts, &mask, &groups, &scale, &options);
        let usual = TierOptions { lambda_p: 0.7, lambda_t: 0.4, ..TierOptions::default() };
        let base = of(usual);
        let [clip, over_patches, over_tokens] =
            [&base.clip, &base.patch_entropy, &base.token_entropy].map(|part| part.item());
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        let swapped = of(TierOptions { swap_lambdas: true, ..usual });
        near(swapped.total.item(), clip + 0.4 * over_patches + 0.7 * over_tokens);
        // Without a mask every token counts, as if none were padded.
        let unmasked = of(TierOptions { mask_padding: false, ..usual });
        let full = tier_loss(&views[..1], &texts, &Tensor::full([5, 3], 1.0, DType::U8), &groups, &scale, &usual);
        near(unmasked.patch_entropy.item(), full.patch_entropy.item());
        near(unmasked.token_entropy.item(), full.token_entropy.item());
        assert!((unmasked.token_entropy.item() - over_tokens).abs() > 1e-3);
        // Colder softmaxes are sharper.
        assert!(of(TierOptions { temperature: 0.2, ..usual }).patch_entropy.item() < over_patches);
    }
}
