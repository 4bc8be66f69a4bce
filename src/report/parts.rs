//! Sections that several reports share: a model, alone or against another, and galleries.

use super::axis::Axis;
use super::colour::{BASELINE, Colour, MUTED, SERIES};
use super::drawing::{self, Drawing};
use super::heat::{self, HeatMap};
use super::page::{self, Card, Cell, Page, Shown, Table};
use super::plot::{BarChart, Bars, LineChart, PairChart, Pairs};
use super::results::{Differences, Estimate, Example, LabelResult, ModelResult, Ranked};
use crate::error::Result;

/// The model that a report is about and what it is compared with.
pub(super) struct Comparison<'a> {
    pub baseline: Option<&'a ModelResult>,
    pub model: &'a ModelResult,
    pub differences: Option<&'a Differences>,
}

/// Panels of ROC curves that stand open; more are folded away.
const OPEN_PANELS: usize = 12;
/// Points of a curve beyond which it is thinned.
const POINTS: usize = 300;

impl<'a> Comparison<'a> {
    /// The models with their colours, the baseline first.
    fn models(&self) -> Vec<(&'a ModelResult, Colour)> {
        let baseline = self.baseline.map(|b| (b, BASELINE));
        baseline.into_iter().chain([(self.model, SERIES[0])]).collect()
    }

    fn against(&self) -> String {
        self.baseline.map_or(String::new(), |b| b.name.clone())
    }

    fn marked(&self) -> &'static str {
        if self.differences.is_none() {
            return "";
        }
        " Marked: the better value, only where the interval of the difference excludes zero."
    }

    /// The large numbers: what there is, at most four.
    pub fn cards(&self) -> Vec<Card> {
        let differences = self.differences.cloned().unwrap_or_default();
        let mut cards = Vec::new();
        let mut push =
            |name: &str, value: Option<Estimate>, decimals: usize, base: Option<f64>, by: Option<Estimate>| {
                let Some(value) = value.filter(|v| v.value.is_finite()) else { return };
                let decimals = by.map_or(decimals, |by| page::decimals(by, decimals));
                let mut note = match (value.ci95, by, base) {
                    (_, Some(by), _) => format!("{} against {}", page::difference(by, decimals), self.against()),
                    (_, None, Some(base)) => format!("{} with {}", page::number(base, decimals), self.against()),
                    (Some(_), ..) => interval(value, decimals),
                    _ => String::new(),
                };
                if name.starts_with("Sparsity") && note.is_empty() {
                    note = "nats below the uniform entropy".into();
                }
                cards.push(Card { name: name.into(), value: page::number(value.value, decimals), note });
            };
        let of =
            |f: &dyn Fn(&ModelResult) -> Option<Estimate>| (f(self.model), self.baseline.and_then(f).map(|e| e.value));
        let (value, base) = of(&|m| m.auc_mean);
        push("Mean zero-shot AUROC", value, 3, base, differences.auc_mean);
        let (value, base) = of(&|m| m.localisation.as_ref()?.inside_minus_outside);
        push("Similarity inside \u{2212} outside", value, 3, base, differences.inside_minus_outside);
        let (value, base) = of(&|m| m.localisation.as_ref()?.pointing_game);
        push("Pointing game", value, 2, base, differences.pointing_game);
        let (value, base) = of(&|m| Some(Estimate::new(m.sparsity?.patches)));
        push("Sparsity over patches, nats", value, 3, base, differences.sparsity_patches);
        if let Some(retrieval) = self.model.retrieval.filter(|_| cards.len() < 4) {
            cards.push(Card {
                name: "Report retrieval, first of all".into(),
                value: page::number(retrieval.recall_at_1, 2),
                note: format!("chance {}", page::number(retrieval.chance_at_1, 4)),
            });
        }
        cards
    }

    /// Zero-shot classification: bars, tables, ROC curves.
    pub fn labels(&self, page: &mut Page) -> Result<()> {
        let model = self.model;
        if model.labels.is_empty() && model.auc_mean.is_none() {
            return Ok(());
        }
        page.section("Zero-shot classification");
        page.paragraph(
            "AUROC is the chance that an image with the finding scores above one without it: 0.5 is guessing. Brackets and \
             whiskers are 95% intervals from resampled patients (images, where there are no patients).",
        );
        let bars = BarChart {
            title: String::new(),
            axis: Axis::new("AUROC (bars begin at chance)"),
            from: 0.5,
            groups: model.labels.iter().map(|l| l.label.clone()).collect(),
            bars: (self.models().into_iter())
                .map(|(m, colour)| Bars {
                    name: m.name.clone(),
                    colour,
                    values: model.labels.iter().map(|l| find(m, &l.label)?.auroc).collect(),
                })
                .collect(),
            width: 640.0,
        };
        page.figure(&bars.draw(), "Bars of the AUROC per label; the table below holds the numbers.", "")?;
        page.table(&self.auroc_table());
        let undefined: Vec<&str> =
            model.labels.iter().filter(|l| l.auroc.is_none()).map(|l| l.label.as_str()).collect();
        if !undefined.is_empty() {
            page.notice(&format!(
                "Undefined, because only one class is present, and in no mean: {}.",
                undefined.join(", ")
            ));
        }
        self.roc(page)?;
        let tables: Vec<Table> = (self.models().iter())
            .filter(|(m, _)| m.labels.iter().any(|l| l.ap.is_some() || l.mcc.is_some() || l.f1.is_some()))
            .map(|(m, _)| decisions(m))
            .collect();
        match &tables[..] {
            [] => {}
            [only] => page.table(only),
            _ => page.details("Average precision, MCC and F1", |page| tables.iter().for_each(|t| page.table(t))),
        }
        Ok(())
    }

    fn auroc_table(&self) -> Table {
        let mut columns = vec!["Label".into(), "Positive".into(), "Negative".into()];
        columns.extend(self.models().iter().map(|(m, _)| m.name.clone()));
        if self.differences.is_some() {
            columns.push("Difference".into());
        }
        let row = |name: &str, counts: [Cell; 2], values: Vec<Option<Estimate>>, by: Option<Estimate>| {
            let mut row = vec![Cell::text(name)];
            row.extend(counts);
            let last = values.len() - 1;
            let winner = by.and_then(|d| d.sign()).map(|sign| if sign > 0.0 { last } else { 0 });
            row.extend(
                (values.into_iter().enumerate()).map(|(i, v)| Cell::estimate(v, 3).best(last > 0 && winner == Some(i))),
            );
            if self.differences.is_some() {
                row.push(by.map_or_else(|| Cell::value(None, 3), |d| Cell::number(page::difference(d, 3))));
            }
            row
        };
        let by = |label: &str| self.differences?.labels.iter().find(|d| d.0 == label).map(|d| d.1);
        let mut rows: Vec<Vec<Cell>> = (self.model.labels.iter())
            .map(|l| {
                let values = self.models().iter().map(|(m, _)| find(m, &l.label)?.auroc).collect();
                let counts = [Cell::number(l.positives.to_string()), Cell::number(l.negatives.to_string())];
                row(&l.label, counts, values, by(&l.label))
            })
            .collect();
        let means: Vec<_> = self.models().iter().map(|(m, _)| m.auc_mean).collect();
        if means.iter().any(Option::is_some) {
            let blank = || Cell::number("");
            rows.push(row("Mean", [blank(), blank()], means, self.differences.and_then(|d| d.auc_mean)));
        }
        Table { caption: format!("AUROC with 95% intervals.{}", self.marked()), columns, rows }
    }

    fn roc(&self, page: &mut Page) -> Result<()> {
        let mut panels: Vec<(Drawing, String)> = Vec::new();
        for label in &self.model.labels {
            let mut chart = LineChart::new(
                &label.label,
                Axis::fixed("false positive rate", 0.0, 1.0),
                Axis::fixed("true positive rate", 0.0, 1.0),
            )
            .sized(280.0, 280.0)
            .dashed("", MUTED, vec![(0.0, 0.0), (1.0, 1.0)]);
            chart.legend_inside = true;
            let mut said = Vec::new();
            for (model, colour) in self.models() {
                let Some(found) = find(model, &label.label).filter(|l| !l.roc.is_empty()) else { continue };
                let auc = page::number(found.auroc.map_or(f64::NAN, |a| a.value), 3);
                said.push(format!("{} AUROC {auc}", model.name));
                chart = chart.line(format!("{} {auc}", model.name), colour, thin(&found.roc));
            }
            if !said.is_empty() {
                panels.push((chart.draw(), format!("ROC curve of {}: {}.", label.label, said.join(", "))));
            }
        }
        if panels.is_empty() {
            return Ok(());
        }
        page.heading("ROC curves");
        let caption = "ROC curves with their AUROC; dashed: chance.";
        let rest = panels.split_off(panels.len().min(OPEN_PANELS));
        let (drawings, alts): (Vec<_>, Vec<_>) = panels.into_iter().unzip();
        page.figures(&drawings, &alts, caption)?;
        if !rest.is_empty() {
            let (drawings, alts): (Vec<_>, Vec<_>) = rest.into_iter().unzip();
            let mut result = Ok(());
            page.details(&format!("{} more ROC curves", drawings.len()), |page| {
                result = page.figures(&drawings, &alts, caption);
            });
            result?;
        }
        Ok(())
    }

    /// Retrieval of reports.
    pub fn retrieval(&self, page: &mut Page) {
        let found: Vec<_> = self.models().iter().filter_map(|(m, _)| Some((&m.name, m.retrieval?))).collect();
        let Some((_, first)) = found.first() else { return };
        page.section("Finding the report of an image");
        page.paragraph(
            "For each image, all reports are ranked by similarity. A hit is the same text or another text of the same patient.",
        );
        let mut rows: Vec<Vec<Cell>> = (found.iter())
            .map(|(name, r)| {
                vec![Cell::text(*name), Cell::value(Some(r.recall_at_1), 4), Cell::value(Some(r.recall_at_5), 4)]
            })
            .collect();
        rows.push(vec![
            Cell::text("Chance"),
            Cell::value(Some(first.chance_at_1), 4),
            Cell::value(Some(first.chance_at_5), 4),
        ]);
        page.table(&Table {
            caption: format!("Share of {} images whose report is among the first.", first.n),
            columns: vec!["Model".into(), "Recall at 1".into(), "Recall at 5".into()],
            rows,
        });
    }

    /// Localisation against boxes.
    pub fn localisation(&self, page: &mut Page) -> Result<()> {
        let found: Vec<_> =
            self.models().into_iter().filter_map(|(m, c)| Some((m, c, m.localisation.as_ref()?))).collect();
        let Some((_, _, first)) = found.last() else { return Ok(()) };
        page.section("Localisation");
        page.paragraph(&format!(
            "Patch similarities to each label's prompts against the boxes, over {} pairs of image and label. A patch is inside \
             if its centre is. The pointing game asks whether the best patch lies in a box; the centre prior always chooses the \
             middle of the image.",
            first.n
        ));
        if !first.findings.is_empty() {
            let groups: Vec<String> = first.findings.iter().map(|f| f.label.clone()).collect();
            let pairs = found.iter().map(|(m, colour, l)| Pairs {
                name: m.name.clone(),
                colour: *colour,
                values: (groups.iter())
                    .map(|g| l.findings.iter().find(|f| &f.label == g).map(|f| (f.outside, f.inside)))
                    .collect(),
            });
            let chart = PairChart {
                title: String::new(),
                axis: Axis::new("mean similarity"),
                pairs: pairs.collect(),
                groups,
                ends: ("outside".into(), "inside".into()),
                width: 640.0,
            };
            page.figure(
                &chart.draw(),
                "Mean similarity inside and outside the boxes, per finding.",
                "Mean similarity inside (disc) and outside (ring) the boxes. The further the disc lies to the right of its ring, \
                 the better the map points at the finding.",
            )?;
        }
        let differences = self.differences.cloned().unwrap_or_default();
        type Get = fn(&super::results::Localisation) -> Option<Estimate>;
        let measures: [(&str, Get, Option<Estimate>); 3] = [
            ("Inside \u{2212} outside", |l| l.inside_minus_outside, differences.inside_minus_outside),
            ("Pointing game", |l| l.pointing_game, differences.pointing_game),
            ("Contrast to noise", |l| l.contrast_to_noise, None),
        ];
        let mut columns = vec!["Measure".to_string()];
        columns.extend(found.iter().map(|(m, ..)| m.name.clone()));
        let compared = found.len() > 1 && measures.iter().any(|m| m.2.is_some());
        if compared {
            columns.push("Difference".into());
        }
        let mut rows = Vec::new();
        for (name, get, by) in measures {
            let values: Vec<_> = found.iter().map(|(_, _, l)| get(l)).collect();
            if values.iter().all(Option::is_none) {
                continue;
            }
            let mut row = vec![Cell::text(name)];
            let last = values.len() - 1;
            let winner = by.and_then(|d| d.sign()).map(|s| if s > 0.0 { last } else { 0 });
            row.extend(
                values.iter().enumerate().map(|(i, v)| Cell::estimate(*v, 3).best(compared && winner == Some(i))),
            );
            if compared {
                row.push(by.map_or_else(|| Cell::value(None, 3), |d| Cell::number(page::difference(d, 3))));
            }
            rows.push(row);
        }
        type Plain = fn(&super::results::Localisation) -> Option<f64>;
        let references: [(&str, Plain); 2] = [
            ("Pointing game by chance", |l| l.pointing_chance),
            ("Pointing game of the centre prior", |l| l.centre_prior),
        ];
        let plain_row = |name: String, values: Vec<Option<f64>>| {
            let mut row = vec![Cell::text(name)];
            row.extend(values.into_iter().map(|v| Cell::value(v, 3)));
            row.extend(compared.then(|| Cell::number("")));
            row
        };
        for (name, get) in references {
            let values: Vec<_> = found.iter().map(|(_, _, l)| get(l)).collect();
            if values.iter().any(Option::is_some) {
                rows.push(plain_row(name.into(), values));
            }
        }
        for &(threshold, _) in &first.iou {
            let at = |l: &super::results::Localisation| l.iou.iter().find(|i| i.0 == threshold).map(|i| i.1);
            let values = found.iter().map(|(_, _, l)| at(l)).collect();
            rows.push(plain_row(format!("Mean IoU at {}", page::number(threshold, 2)), values));
        }
        page.table(&Table { caption: format!("Patch level, with 95% intervals.{}", self.marked()), columns, rows });
        Ok(())
    }

    /// Sparsity and rank-ordered similarities.
    pub fn sparsity(&self, page: &mut Page) -> Result<()> {
        let sparse: Vec<_> = self.models().into_iter().filter_map(|(m, c)| Some((m, c, m.sparsity?))).collect();
        let ranked: Vec<_> = self.models().into_iter().filter_map(|(m, c)| Some((m, c, m.ranked.as_ref()?))).collect();
        if sparse.is_empty() && ranked.is_empty() {
            return Ok(());
        }
        page.section("Sparsity");
        page.paragraph(
            "ln P \u{2212} H: how far the entropy of the softmax over similarities lies below its maximum. 0 means that every patch \
             (or token) takes the same part; more means that fewer do. Cosines lie in \u{2212}1 to 1, so at temperature 1 it cannot exceed \
             about 0.47 nats.",
        );
        if !sparse.is_empty() {
            let chart = BarChart {
                title: String::new(),
                axis: Axis::new("ln P \u{2212} H, nats"),
                from: 0.0,
                groups: vec!["over patches".into(), "over tokens".into()],
                bars: (sparse.iter())
                    .map(|(m, colour, s)| Bars {
                        name: m.name.clone(),
                        colour: *colour,
                        values: vec![Some(Estimate::new(s.patches)), Some(Estimate::new(s.tokens))],
                    })
                    .collect(),
                width: 640.0,
            };
            let mut rows: Vec<Vec<Cell>> = (sparse.iter())
                .map(|(m, _, s)| {
                    vec![Cell::text(&m.name), Cell::value(Some(s.patches), 4), Cell::value(Some(s.tokens), 4)]
                })
                .collect();
            if let Some(d) = self.differences.filter(|d| d.sparsity_patches.is_some() || d.sparsity_tokens.is_some()) {
                let cell = |by: Option<Estimate>| {
                    Cell::number(by.map_or_else(|| "\u{2013}".into(), |by| page::difference(by, 4)))
                };
                rows.push(vec![Cell::text("Difference"), cell(d.sparsity_patches), cell(d.sparsity_tokens)]);
            }
            page.figure(&chart.draw(), "Bars of the sparsity over patches and over tokens.", "")?;
            page.table(&Table {
                caption: String::new(),
                columns: vec!["Model".into(), "Patches, nats".into(), "Tokens, nats".into()],
                rows,
            });
        }
        type Curve = fn(&Ranked) -> &Vec<f64>;
        let halves: [(&str, &str, Curve); 2] =
            [("Raw", "similarity", |r| &r.raw), ("Divided by their sum", "share of the sum", |r| &r.normalised)];
        let mut drawings = Vec::new();
        let mut alts = Vec::new();
        for (title, y, get) in halves {
            if ranked.iter().all(|(_, _, r)| get(r).is_empty()) {
                continue;
            }
            let mut chart = LineChart::new(title, Axis::new("rank of the patch"), Axis::new(y)).sized(430.0, 290.0);
            for (m, colour, r) in &ranked {
                let points: Vec<_> = get(r).iter().enumerate().map(|(i, &v)| (i as f64 + 1.0, v)).collect();
                chart = chart.line(&m.name, *colour, thin(&points));
            }
            drawings.push(chart.draw());
            alts.push(format!("Rank-ordered patch similarities, {}.", title.to_lowercase()));
        }
        if let Some((_, _, first)) = ranked.first().filter(|_| !drawings.is_empty()) {
            page.heading("Rank-ordered patch similarities");
            page.figures(
                &drawings,
                &alts,
                &format!(
                    "Similarity of each patch to the global text embedding, sorted within a pair, mean over {} pairs.",
                    first.pairs
                ),
            )?;
        }
        Ok(())
    }
}

/// Rows of x-ray | heat map of each model, one scale per row.
pub(super) fn gallery(page: &mut Page, examples: &[Example]) -> Result<()> {
    for example in examples {
        let scale = heat::shared_scale(example.maps.iter().map(|m| &m.1));
        let boxed = if example.boxes.is_empty() { "" } else { ", box drawn" };
        let mut shown = vec![shown(map(example, None), 1.0, "x-ray", &format!("X-ray: {}{boxed}.", example.caption))?];
        for (name, grid) in &example.maps {
            let alt = format!("Heat map of {name} over the same x-ray{boxed}.");
            shown.push(self::shown(map(example, Some(grid)), scale, name, &alt)?);
        }
        page.gallery(&shown, (!example.maps.is_empty()).then_some(scale), &example.caption);
    }
    Ok(())
}

/// A section of heat maps, if there are any.
pub(super) fn heat_maps(page: &mut Page, examples: &[Example]) -> Result<()> {
    if examples.is_empty() {
        return Ok(());
    }
    page.section("Heat maps");
    page.paragraph(
        "Each patch's similarity to the label's prompts: orange above zero, blue below, untouched at zero. The maps of a row \
         share one scale; white boxes are annotations.",
    );
    gallery(page, examples)
}

/// Plain pictures, four to a row.
pub(super) fn pictures(page: &mut Page, examples: &[Example], caption: &str) -> Result<()> {
    let shown: Vec<Shown> = (examples.iter())
        .map(|e| shown(map(e, None), 1.0, &e.caption, &format!("X-ray: {}.", e.caption)))
        .collect::<Result<_>>()?;
    page.gallery(&shown, None, caption);
    Ok(())
}

/// What the model saw, with a heat map on it.
pub(super) fn map<'a>(example: &'a Example, grid: Option<&'a heat::Grid>) -> HeatMap<'a> {
    HeatMap { picture: &example.picture, seen: None, grid, boxes: &example.boxes, smooth: true }
}

pub(super) fn shown(map: HeatMap, scale: f32, caption: &str, alt: &str) -> Result<Shown> {
    Ok(Shown { caption: caption.into(), alt: alt.into(), bytes: drawing::jpeg(&map.paint(scale)?)? })
}

fn interval(value: Estimate, decimals: usize) -> String {
    value.ci95.map_or_else(String::new, |[low, high]| {
        format!("95% interval {} to {}", page::number(low, decimals), page::number(high, decimals))
    })
}

fn find<'a>(model: &'a ModelResult, label: &str) -> Option<&'a LabelResult> {
    model.labels.iter().find(|l| l.label == label)
}

fn decisions(model: &ModelResult) -> Table {
    let columns = ["Label", "Average precision", "MCC", "F1", "Threshold"].map(String::from).to_vec();
    let rows = (model.labels.iter())
        .map(|l| {
            let numbers = [(l.ap, 3), (l.mcc, 3), (l.f1, 3), (l.threshold, 4)];
            let mut row = vec![Cell::text(&l.label)];
            row.extend(numbers.map(|(v, decimals)| Cell::value(v, decimals)));
            row
        })
        .collect();
    let caption = format!("{}: MCC and F1 at thresholds chosen on the validation split.", model.name);
    Table { caption, columns, rows }
}

/// Every so-maniest point, and the last.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(POINTS).max(1);
    let mut kept: Vec<_> = points.iter().copied().step_by(stride).collect();
    if let Some(&last) = points.last().filter(|_| !(points.len() - 1).is_multiple_of(stride)) {
        kept.push(last);
    }
    kept
}
