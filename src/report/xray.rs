//! The report of `tier report`: one x-ray, its scores and heat maps, and what produced them.

use super::axis::Axis;
use super::colour::SERIES;
use super::heat::{self, Film, Grid, HeatMap};
use super::page::{Cell, Page, Table};
use super::parts;
use super::plot::{BarChart, Bars};
use super::results::{Estimate, Provenance};
use crate::error::Result;
use crate::image::Picture;

/// One x-ray as a model sees it.
#[derive(Clone, Debug)]
pub struct XrayReport {
    /// Where it comes from.
    pub provenance: Provenance,
    /// The image file's name.
    pub image: String,
    /// Width and height of the file's picture.
    pub source: (usize, usize),
    /// The x-ray, and what of it the model saw.
    pub film: Film,
    /// What the model saw: resized and cropped.
    pub picture: Picture,
    /// What was loaded: pairs of name and value (weights, layout, tokenizer, parameters).
    pub model: Vec<(String, String)>,
    /// The preprocessing in words.
    pub preprocessing: String,
    /// Scores, in the prompts' order.
    pub labels: Vec<XrayLabel>,
    /// What the reader must know: untrusted defaults, texts cut off.
    pub warnings: Vec<String>,
}

/// One label's score.
#[derive(Clone, Debug)]
pub struct XrayLabel {
    /// Its name.
    pub label: String,
    /// Z: similarity to the positive minus similarity to the negative prompts.
    pub score: f64,
    /// The softmax over both similarities, where asked for.
    pub probability: Option<f64>,
    /// Patch scores, where the model has local embeddings.
    pub grid: Option<Grid>,
    /// The positive prompts.
    pub positive: Vec<String>,
    /// The negative prompts.
    pub negative: Vec<String>,
}

/// The page as HTML.
pub fn html(report: &XrayReport) -> Result<String> {
    let (width, height) = report.source;
    let mut page = Page::new(&format!("X-ray {}", report.image), &format!("{width} \u{D7} {height} pixels."));
    page.notice(
        "Not a medical device: for research only. The scores are not probabilities of disease and must not guide care.",
    );
    report.warnings.iter().for_each(|warning| page.notice(warning));

    page.section("Scores");
    page.paragraph(
        "Z is the similarity of the image to the label's positive prompts minus that to its negative ones. Above zero leans to the \
         finding; how far is far enough is known only from a validation set.",
    );
    let chart = BarChart {
        title: String::new(),
        axis: Axis::new("score Z"),
        from: 0.0,
        groups: report.labels.iter().map(|l| l.label.clone()).collect(),
        bars: vec![Bars {
            name: String::new(),
            colour: SERIES[0],
            values: report.labels.iter().map(|l| Some(Estimate::new(l.score))).collect(),
        }],
        width: 640.0,
    };
    page.figure(&chart.draw(), "Bars of the score of each label; the table holds the numbers.", "")?;
    let probable = report.labels.iter().any(|l| l.probability.is_some());
    let mut columns = vec!["Label".to_string(), "Score Z".into()];
    columns.extend(probable.then(|| "Softmax over both".to_string()));
    let rows = (report.labels.iter())
        .map(|l| {
            let mut row = vec![Cell::text(&l.label), Cell::value(Some(l.score), 4)];
            row.extend(probable.then(|| Cell::value(l.probability, 3)));
            row
        })
        .collect();
    page.table(&Table { caption: String::new(), columns, rows });

    page.section("Heat maps");
    page.paragraph(
        "The x-ray as the model saw it, and on the whole x-ray each patch's similarity to the label's prompts: orange above zero, blue \
         below, untouched at zero; what the model did not see is darkened. All maps share one scale.",
    );
    let seen = HeatMap { picture: &report.picture, seen: None, grid: None, boxes: &[], smooth: true };
    let grids = || report.labels.iter().filter_map(|l| l.grid.as_ref());
    let scale = heat::shared_scale(grids());
    let mut shown = vec![parts::shown(seen, 1.0, "as the model saw it", "The x-ray as the model saw it.")?];
    for label in &report.labels {
        if let Some(grid) = &label.grid {
            let alt = format!("Heat map of {} over the x-ray.", label.label);
            let map = HeatMap { picture: &report.film.picture, seen: Some(report.film.seen), grid: Some(grid), ..seen };
            shown.push(parts::shown(map, scale, &label.label, &alt)?);
        }
    }
    page.gallery(&shown, grids().next().map(|_| scale), "");

    page.section("What was loaded");
    let mut rows: Vec<Vec<Cell>> = report.model.iter().map(|(k, v)| vec![Cell::text(k), Cell::text(v)]).collect();
    rows.push(vec![Cell::text("Preprocessing"), Cell::text(&report.preprocessing)]);
    page.table(&Table { caption: String::new(), columns: vec!["Part".into(), "Value".into()], rows });
    page.details("Prompts", |page| {
        for label in &report.labels {
            page.heading(&label.label);
            let signed = |sign: &str, texts: &[String]| texts.iter().map(|t| format!("{sign} {t}")).collect::<Vec<_>>();
            page.list(&[signed("+", &label.positive), signed("\u{2212}", &label.negative)].concat());
        }
    });
    page.provenance(&report.provenance);
    Ok(page.finish())
}
