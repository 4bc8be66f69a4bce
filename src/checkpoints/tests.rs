use std::path::Path;

use super::*;
use crate::models::dual_encoder::Embeddings;

/// Embeddings of both sides of any network; batch norms go by the batch's statistics where `train`.
fn embed(network: &Network, case: &Weights, train: bool) -> [Option<Embeddings>; 2] {
    let pixels = case.get("pixel_values");
    let texts = case.get("input_ids").map(|ids| (ids, case.get("attention_mask").unwrap().to_dtype(DType::U8)));
    let images = pixels.and_then(|pixels| match network {
        Network::Dual(model) if train => Some(model.encode_image_train(pixels).0),
        Network::Dual(model) => Some(model.encode_image(pixels)),
        Network::Image(model) => model.forward(pixels).1,
        _ => None,
    });
    let texts = texts.and_then(|(ids, mask)| match network {
        Network::Dual(model) => Some(model.encode_text(ids, &mask)),
        Network::Text(model) => model.forward(ids, &mask).1,
        _ => None,
    });
    [images, texts]
}

fn open(folder: &Path, model: &str) -> Result<Checkpoint> {
    match model.split_once(" + ") {
        Some((image, text)) => Checkpoint::join(&folder.join(image), &folder.join(text), true),
        None => Checkpoint::open(&folder.join(model), true),
    }
}

fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let length = |x: Tensor| x.square().sum_all().item().sqrt();
    length(ours.sub(theirs)) / length(theirs.clone())
}

/// Every case of the parity folder, where TIER_SHARED names the folder that has it.
#[test]
fn embeddings_of_every_layout_are_those_of_pytorch() {
    let Ok(shared) = std::env::var("TIER_SHARED") else {
        return println!("skipped: TIER_SHARED is not set");
    };
    let folder = Path::new(&shared).join("parity");
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".case.safetensors") {
            continue;
        }
        let case = Weights::open(&path, true).unwrap();
        let said = case.metadata();
        let (name, rtol) = (&said["case"], said["rtol"].parse::<f64>().unwrap());
        let train = said.get("train_mode").is_some_and(|mode| mode == "train");
        let checkpoint = open(&folder, &said["model"]).unwrap();
        let network = checkpoint.network().unwrap();
        let [images, texts] = embed(&network, &case, train);
        let mut found: Vec<(&str, Tensor)> = Vec::new();
        if let Some(e) = &images {
            found.extend([("image_embeds", e.whole.clone()), ("patch_embeds", e.parts.clone())]);
        }
        if let Some(e) = &texts {
            found.extend([("text_embeds", e.whole.clone()), ("token_embeds", e.parts.clone())]);
        }
        if let (Some(image), Some(text), Network::Dual(model)) = (&images, &texts, &network) {
            found.push(("logits_per_image", crate::loss::logits(&image.whole, &text.whole, &model.logit_scale)));
        }
        let wanted = case.iter().filter(|(name, _)| name.ends_with("embeds") || name.ends_with("per_image")).count();
        assert_eq!(found.len(), wanted, "{name}: {}", checkpoint.layout.name);
        for (what, ours) in found {
            let error = relative_error(&ours, case.get(&format!("expect.{what}")).unwrap());
            println!("{name} ({}): {what} {error:.1e}", checkpoint.layout.name);
            assert!(error <= rtol, "{name}: {what} {error:.2e} > {rtol:.1e}");
            compared += 1;
        }
    }
    assert!(compared > 0, "no cases in {}", folder.display());
}
