//! The engine alone, as an embedding program uses it: a model of any layout, on inputs that are prepared already.
//!
//! `cargo run --release --no-default-features --example embed -- MODEL INPUTS.safetensors OUT.safetensors [lean|fast]`, where INPUTS has
//! `pixel_values` [n, c, h, w], or `input_ids` and `attention_mask` [n, T], or both. Weights are mapped; `fast` packs them first.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tiergrad::check::Inputs;
use tiergrad::checkpoints::Checkpoint;
use tiergrad::error::{Error, Result};
use tiergrad::formats::safetensors;
use tiergrad::models::{Planned, Planning};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, inputs, out, planning) = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [model, inputs, out] | [model, inputs, out, "lean"] => (*model, *inputs, *out, Planning::Never),
        [model, inputs, out, "fast"] => (*model, *inputs, *out, Planning::AtOnce),
        _ => return Err(Error::usage("usage: embed MODEL INPUTS.safetensors OUT.safetensors [lean|fast]")),
    };
    let checkpoint = Checkpoint::open(Path::new(model), true)?;
    let inputs = Inputs::open(Path::new(inputs), true)?;
    inputs.fits(&checkpoint.config, false)?;
    let network = checkpoint.network()?;
    let planned = Planned::with(&network, planning, Arc::default());

    let images = inputs.pixels.as_ref().and_then(|pixels| planned.say_images(pixels));
    let texts = inputs.texts.as_ref().and_then(|[ids, mask]| planned.say_texts(ids, mask));
    // A model has an output of its own, or embeds whole inputs and their parts, or both.
    let mut tensors = BTreeMap::new();
    for (side, said) in [("image", images), ("text", texts)] {
        let (output, embeddings) = said.unwrap_or_default();
        tensors.extend(output.map(|output| (format!("{side}_output"), output)));
        if let Some(embeddings) = embeddings {
            tensors.insert(format!("{side}_embeds"), embeddings.whole);
            tensors.insert(format!("{side}_part_embeds"), embeddings.parts);
        }
    }
    let named = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
    safetensors::save(out, named, &BTreeMap::new())?;
    tensors.iter().for_each(|(name, tensor)| println!("{name} {:?}", &tensor.dims()[..]));
    Ok(())
}
