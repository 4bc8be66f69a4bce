//! `tier report`: one x-ray as a page.

use std::path::PathBuf;

use super::{Global, model, outputs};
use crate::data::Prompts;
use crate::error::{At, Result};
use crate::eval::measure::{heat, queries};
use crate::eval::zero_shot::{Rule, scores};
use crate::files;
use crate::nn::Module;
use crate::pipeline::Asked;
use crate::report::heat::{Film, Grid};
use crate::report::results::Provenance;
use crate::report::xray::{self, XrayLabel, XrayReport};

/// Writes one self-contained page on one x-ray: scores, heat maps per label, what was loaded and how the picture was prepared.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    /// Table of prompts: label, polarity, text.
    #[arg(long)]
    prompts: PathBuf,
    /// The x-ray.
    image: PathBuf,
    /// The page to write (.html).
    #[arg(short, long)]
    out: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    outputs::apart([args.out.as_path()], args.model.paths().chain([args.prompts.as_path(), &args.image]))?;
    let mut pipeline = args.model.open(global)?;
    let mut parameters = 0;
    pipeline.network.visit("", &mut |_, p| parameters += p.numel());
    let prompts = Prompts::open(&args.prompts)?;
    let mut asked = Asked::default().files(&pipeline.preprocess, [&args.image].into_iter(), 1, 1);
    // Of the film, 4 bytes a pixel as it is painted, and half a byte for each label as it is written; a small one is enlarged.
    asked.aside = Film::LARGEST.min(asked.loading[1]) * (8 + prompts.0.len() as u64) / 2;
    let asked = asked.texts(pipeline.dual()?.1, &prompts.texts())?;
    model::fitting(&mut pipeline, &asked, model::LESS, global)?;
    let (dual, _) = pipeline.dual()?;
    let queries = queries(&pipeline, &prompts)?;
    let (picture, pixels, mut warnings) = model::pixels(&pipeline, &args.image, global)?;
    warnings.extend(super::classify::cut(&pipeline, &prompts)?);
    pipeline.intact()?;
    let seen = dual.encode_image(&pixels);
    let (whole, patches) = (seen.whole.to_vec::<f32>(), seen.parts.at(0, 0));
    let z = scores(&whole, &queries, Rule::Difference);
    let p = scores(&whole, &queries, Rule::Softmax { scale: dual.logit_scale.item().exp() });
    let mut labels = Vec::new();
    for (k, (prompt, query)) in prompts.0.iter().zip(&queries).enumerate() {
        let map = heat(&patches, query);
        labels.push(XrayLabel {
            label: prompt.label.clone(),
            score: z[k][0],
            probability: (!prompt.negative.is_empty()).then(|| p[k][0]),
            grid: Some(Grid::new(map.height, map.width, map.scores).at(args.model.name())?),
            positive: prompt.positive.clone(),
            negative: prompt.negative.clone(),
        });
    }
    let report = XrayReport {
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: super::command_line(),
            seed: None,
            more: pipeline.origin.notes.iter().map(|note| ("Note".to_owned(), note.clone())).collect(),
        },
        image: args.image.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        source: (picture.width, picture.height),
        film: Film::new(&picture, pipeline.preprocess.seen_part((picture.width, picture.height))),
        picture: pipeline.preprocess.seen(&picture),
        model: vec![
            ("Weights".to_owned(), args.model.name()),
            ("Parameters".to_owned(), parameters.to_string()),
            ("Layout".to_owned(), pipeline.origin.layout.clone()),
            ("Tokenizer".to_owned(), pipeline.tokenizer_line()),
        ],
        preprocessing: pipeline.pictures_line(),
        labels,
        warnings,
    };
    files::write_atomic(&args.out, xray::html(&report)?.as_bytes())?;
    global.say(format!("{} written", args.out.display()));
    Ok(())
}
