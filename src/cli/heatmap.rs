//! `tier heatmap`: where in an x-ray a text is seen.

use std::path::{Path, PathBuf};

use super::{Global, model, outputs};
use crate::data::Boxes;
use crate::error::{At, Error, Result};
use crate::eval::localisation::PatchMap;
use crate::eval::measure::heat;
use crate::eval::zero_shot::Query;
use crate::files;
use crate::pipeline::{Asked, Pipeline};
use crate::report::heat::{Film, Grid, HeatMap, figure, shared_scale};
use crate::tensor::Tensor;

/// Paints the similarities of an image's patches to a text over the image: untouched at zero, one symmetric scale; what the model did
/// not see is darkened.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    /// What to look for.
    #[arg(long, required = true)]
    text: Vec<String>,
    /// What to weigh against it.
    #[arg(long)]
    negative: Vec<String>,
    /// Boxes (COCO) to draw, of the image of that name.
    #[arg(long)]
    boxes: Option<PathBuf>,
    /// The x-ray.
    image: PathBuf,
    /// The picture to write (.png).
    #[arg(short, long)]
    out: PathBuf,
    /// Also write the scores as JSON, with the part of the image that they cover (`seen`: x, y, width, height).
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Largest |score| of the colours (default: this map's own).
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Blocks instead of a smooth map.
    #[arg(long)]
    blocks: bool,
}

/// What painting and writing a film takes, in bytes.
const PAINTED: u64 = 16 << 20;

/// A picture is written as PNG, so its name must not say another format.
pub(super) fn only_png(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    match path.extension().and_then(|e| e.to_str()) {
        Some(e) if e.eq_ignore_ascii_case("png") => Ok(()),
        _ => Err(Error::usage("pictures are written as PNG: name a file that ends in .png").at(path)),
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    only_png(Some(&args.out))?;
    if let Some(blank) = args.text.iter().chain(&args.negative).find(|text| text.trim().is_empty()) {
        return Err(Error::usage(format!("--text and --negative: {blank:?} says nothing")));
    }
    if let Some(scale) = args.scale.filter(|scale| !(scale.is_finite() && *scale > 0.0)) {
        return Err(Error::usage(format!("--scale {scale}: a number above 0 is needed")));
    }
    let written = [&args.out].into_iter().chain(&args.grid).map(PathBuf::as_path);
    let read = args.boxes.as_deref().into_iter().chain([args.image.as_path()]);
    outputs::apart(written, args.model.paths().chain(read))?;
    let mut pipeline = args.model.open(global)?;
    let asked = Asked { aside: PAINTED, ..Asked::default() };
    let texts: Vec<&str> = args.text.iter().chain(&args.negative).map(String::as_str).collect();
    let asked = asked.files(&pipeline.preprocess, [&args.image].into_iter(), 1, 1).texts(pipeline.dual()?.1, &texts)?;
    model::fitting(&mut pipeline, &asked, model::LESS, global)?;
    let (picture, pixels, _) = model::pixels(&pipeline, &args.image, global)?;
    let query = query(&pipeline, &args.text, &args.negative)?;
    let map = map(&pipeline, &pixels, &query)?;
    let grid = Grid::new(map.height, map.width, map.scores.clone()).at(args.model.name())?;
    let source = (picture.width, picture.height);
    let boxes = match &args.boxes {
        None => Vec::new(),
        Some(path) => own_boxes(&Boxes::open(path)?, &args.image, source, global)?,
    };
    let seen = pipeline.preprocess.seen_part(source);
    let film = Film::new(&picture, seen);
    let boxes: Vec<[f64; 4]> = boxes.into_iter().map(|bbox| film.place(bbox)).collect();
    let scale = args.scale.unwrap_or_else(|| shared_scale([&grid]));
    let painted = HeatMap {
        picture: &film.picture,
        seen: Some(film.seen),
        grid: Some(&grid),
        boxes: &boxes,
        smooth: !args.blocks,
    };
    files::write_atomic(&args.out, &figure(&[("", painted)], &args.text.join(" | "), Some(scale))?)?;
    let rows: Vec<&[f32]> = map.scores.chunks(map.width).collect();
    let text = args.text.join(" | ");
    let line = serde_json::json!({ "image": args.image, "text": text, "grid": rows, "scale": scale, "seen": seen });
    if let Some(path) = &args.grid {
        files::write_atomic(path, format!("{line}\n").as_bytes())?;
    }
    if global.json {
        global.print(line)?;
    }
    global.say(format!("{} written", args.out.display()));
    Ok(())
}

/// The query of some texts against others.
pub(super) fn query(pipeline: &Pipeline, positive: &[String], negative: &[String]) -> Result<Query> {
    let embed = |texts: &[String]| -> Result<Vec<Vec<f32>>> {
        pipeline.embed_whole_texts(&texts.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (positive, negative) = (embed(positive)?, embed(negative)?);
    Query::new(&positive.concat(), &negative.concat(), positive.first().map_or(0, Vec::len))
}

/// The patch scores of one image.
fn map(pipeline: &Pipeline, pixels: &Tensor, query: &Query) -> Result<PatchMap> {
    let (model, _) = pipeline.dual()?;
    pipeline.intact()?;
    let patches = model.encode_image(pixels).parts.at(0, 0);
    let map = heat(&patches, query);
    match map.scores.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(Error::new(format!("a patch scores {x}: the weights are damaged")).at(&pipeline.path)),
        None => Ok(map),
    }
}

/// Boxes of the image whose name in the table ends the path, or shares its file name; they must fit its size.
fn own_boxes(boxes: &Boxes, image: &Path, source: (usize, usize), global: &Global) -> Result<Vec<[f64; 4]>> {
    let by_path = boxes.of.iter().find(|(name, _)| image.ends_with(name));
    let by_name = || boxes.of.iter().find(|(name, _)| Path::new(name).file_name() == image.file_name());
    match by_path.or_else(by_name) {
        Some((name, annotations)) => {
            boxes.check(name, source)?;
            Ok(annotations.iter().map(|a| a.bbox).collect())
        }
        None => {
            global.say(format!("no boxes of {} in the table", image.display()));
            Ok(Vec::new())
        }
    }
}
