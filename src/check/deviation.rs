//! How far a model is from another of the same sizes: what weights in fewer bits cost.

use super::Inputs;
use crate::distance;
use crate::error::{Error, Result};
use crate::models::{Network, Said};
use crate::tensor::Tensor;

/// Relative L2 difference |a - e| / |e| of everything that a model makes of the inputs, by name: `image_embeds`, `patch_embeds`, `text_embeds`,
/// `token_embeds`, and `output` where a model of one side is not projected.
///
/// # Errors
/// If the two do not make the same of them.
pub fn deviations(expected: &Network, found: &Network, inputs: &Inputs) -> Result<Vec<(&'static str, f64)>> {
    let (expected, found) = (outputs(expected, inputs), outputs(found, inputs));
    if expected.len() != found.len() {
        return Err(Error::new("two models of different kinds cannot be compared"));
    }
    expected.iter().zip(&found).map(|((name, e), (_, a))| Ok((*name, relative(e, a)?))).collect()
}

/// By name what a model makes of the inputs: see [`deviations`].
pub fn outputs(network: &Network, inputs: &Inputs) -> Vec<(&'static str, Tensor)> {
    let mut out = Vec::new();
    let mut add = |said: Option<Said>, names: [&'static str; 2]| match said {
        Some((_, Some(e))) => out.extend([(names[0], e.whole), (names[1], e.parts)]),
        Some((output, None)) => out.extend(output.map(|output| ("output", output))),
        None => {}
    };
    if let Some(pixels) = &inputs.pixels {
        add(network.say_images(pixels), ["image_embeds", "patch_embeds"]);
    }
    if let Some([ids, mask]) = &inputs.texts {
        add(network.say_texts(ids, mask), ["text_embeds", "token_embeds"]);
    }
    out
}

fn relative(expected: &Tensor, found: &Tensor) -> Result<f64> {
    if expected.dims() != found.dims() {
        return Err(Error::new(format!("{:?} and {:?} cannot be compared", expected.dims(), found.dims())));
    }
    Ok(distance::l2(&found.to_f64_vec(), &expected.to_f64_vec(), 0.0))
}
