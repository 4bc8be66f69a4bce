//! Curves of training runs.

use super::axis::Axis;
use super::colour::{BASELINE, SERIES};
use super::drawing::Drawing;
use super::page::Page;
use super::plot::LineChart;
use super::results::{Course, LoggedStep, Validation};
use crate::error::Result;

/// Points of a curve beyond which consecutive ones are averaged.
const POINTS: usize = 300;

/// The charts of one or several training runs: objective, entropies, learning rate, validation; what was not logged is
/// left out. The objective is always there.
pub(super) fn curves(courses: &[Course]) -> Vec<LineChart> {
    let alone = courses.len() == 1;
    let last = |c: &Course| c.steps.last().map(|s| s.step).max(c.validations.last().map(|v| v.step)).unwrap_or(1);
    let steps = || Axis::fixed("optimiser step", 0.0, courses.iter().map(last).max().unwrap_or(1) as f64);
    let colour = |i: usize| if alone { SERIES[0] } else { [BASELINE, SERIES[0], SERIES[1], SERIES[2]][i % 4] };
    type Get = fn(&LoggedStep) -> Option<f64>;
    let logged = |c: &Course, get: Get| -> Vec<(f64, f64)> {
        averaged(c.steps.iter().filter_map(|s| Some((s.step as f64, get(s)?))).collect())
    };
    let chart = |title: &str, unit: &str| LineChart::new(title, steps(), Axis::new(unit)).sized(430.0, 290.0);
    let mut charts = Vec::new();

    let mut loss = chart(if alone { "Objective" } else { "Contrastive loss" }, "nats");
    for (i, c) in courses.iter().enumerate() {
        let clip = logged(c, |s| s.loss_clip);
        if alone {
            loss = loss.line("whole", SERIES[0], logged(c, |s| Some(s.loss))).line("contrastive part", SERIES[1], clip);
        } else if clip.is_empty() {
            loss = loss.line(&c.name, colour(i), logged(c, |s| Some(s.loss)));
        } else {
            loss = loss.line(&c.name, colour(i), clip);
        }
    }
    charts.push(loss);

    let entropies: [(&str, Get); 2] =
        [("Entropy over patches", |s| s.patch_entropy), ("Entropy over tokens", |s| s.token_entropy)];
    for (title, get) in entropies {
        let mut entropy = chart(title, "nats");
        for (i, c) in courses.iter().enumerate() {
            entropy = entropy.line(if alone { "" } else { &c.name }, colour(i), logged(c, get));
        }
        charts.push(entropy);
    }
    let mut rate = chart("Learning rate", "learning rate");
    for (i, c) in courses.iter().enumerate().take(1) {
        rate = rate.line("", colour(i), logged(c, |s| s.lr));
    }
    charts.push(rate);
    let mut auc = chart("Validation: mean zero-shot AUROC", "AUROC");
    let mut held_out = chart("Validation loss", "nats");
    for (i, c) in courses.iter().enumerate() {
        let name = if alone { "" } else { &c.name };
        let at = |get: fn(&Validation) -> Option<f64>| -> Vec<_> {
            c.validations.iter().filter_map(|v| Some((v.step as f64, get(v)?))).collect()
        };
        auc = auc.line(name, colour(i), at(|v| v.auc));
        held_out = held_out.line(name, colour(i), at(|v| v.loss));
    }
    charts.extend([auc, held_out]);
    let some = |c: &LineChart| c.lines.iter().any(|l| l.points.iter().any(|p| p.1.is_finite()));
    let objective = charts.remove(0);
    std::iter::once(objective).chain(charts.into_iter().filter(some)).collect()
}

/// The curves on a page.
pub(super) fn training(page: &mut Page, courses: &[Course]) -> Result<()> {
    let charts = curves(courses);
    let alts: Vec<String> =
        charts.iter().map(|c| format!("Curve of {} against optimiser steps.", c.title.to_lowercase())).collect();
    let long = courses.iter().any(|c| c.steps.len() > POINTS);
    let note =
        if long { format!(" Each curve shows means of consecutive steps, {POINTS} in all.") } else { String::new() };
    let drawings: Vec<Drawing> = charts.iter().map(LineChart::draw).collect();
    page.figures(&drawings, &alts, &format!("Course of the training; log.jsonl holds every logged step.{note}"))
}

/// Means of consecutive points, at most [`POINTS`].
fn averaged(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(POINTS).max(1);
    let mean = |run: &[(f64, f64)], get: fn(&(f64, f64)) -> f64| run.iter().map(get).sum::<f64>() / run.len() as f64;
    points.chunks(stride).map(|run| (mean(run, |p| p.0), mean(run, |p| p.1))).collect()
}
