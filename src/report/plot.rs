//! Charts as drawings: lines, horizontal bars with intervals, pairs of dots. Data that is missing or not finite is left
//! out; a chart with nothing to show says so.

use super::axis::{Axis, Scale};
use super::colour::{Colour, GRID, INK, MUTED};
use super::drawing::{Anchor, Drawing, Mark, text_width};
use super::results::Estimate;

/// Size of axis numbers, in logical pixels to the em.
const SMALL: f64 = 12.0;
/// Size of names and titles.
const NORMAL: f64 = 13.0;

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend; an empty one has no entry.
    pub name: String,
    /// Its colour.
    pub colour: Colour,
    /// Points in drawing order; a point that is not finite breaks the line.
    pub points: Vec<(f64, f64)>,
    /// Dashed instead of solid.
    pub dashed: bool,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct LineChart {
    /// Above the plot; may be empty.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, first at the bottom.
    pub lines: Vec<Line>,
    /// Logical pixels of the whole sheet.
    pub size: (f64, f64),
    /// The legend stands in the plot's lower right corner (where a ROC curve leaves room) instead of above the plot.
    pub legend_inside: bool,
}

impl LineChart {
    /// An empty chart of 600 x 300.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, lines: Vec::new(), size: (600.0, 300.0), legend_inside: false }
    }

    /// Adds a solid line.
    pub fn line(mut self, name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        self.lines.push(Line { name: name.into(), colour, points, dashed: false });
        self
    }

    /// Adds a dashed line, for references.
    pub fn dashed(mut self, name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        self.lines.push(Line { name: name.into(), colour, points, dashed: true });
        self
    }

    /// The same chart of another size.
    pub fn sized(mut self, width: f64, height: f64) -> Self {
        self.size = (width, height);
        self
    }

    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let mut sheet = Drawing::new(self.size.0, self.size.1);
        let finite = |line: &&Line| line.points.iter().any(|p| p.0.is_finite() && p.1.is_finite());
        let seen: Vec<&Line> = self.lines.iter().filter(finite).collect();
        let all = || seen.iter().flat_map(|l| &l.points).filter(|p| p.0.is_finite() && p.1.is_finite());
        let x = Scale::fit(&self.x, all().map(|p| p.0), self.size.0 / 90.0, false);
        let y = Scale::fit(&self.y, all().map(|p| p.1), self.size.1 / 45.0, true);

        let mut top = 10.0;
        if !self.title.is_empty() {
            title(&mut sheet, &self.title, &mut top);
        }
        let numbers: Vec<String> = y.ticks.iter().map(|&t| y.number(t)).collect();
        let widest = numbers.iter().map(|n| text_width(n, SMALL)).fold(0.0, f64::max);
        let left = 30.0 + widest * 1.1;
        let entries: Vec<(&str, Colour, bool)> =
            seen.iter().filter(|l| !l.name.is_empty()).map(|l| (l.name.as_str(), l.colour, l.dashed)).collect();
        if !self.legend_inside && !entries.is_empty() {
            top = legend(&mut sheet, &entries, left, top);
        }
        let plot = Plot { left, right: self.size.0 - 14.0, top, bottom: self.size.1 - 46.0 };

        for (&tick, number) in y.ticks.iter().zip(&numbers) {
            let at = plot.y(&y, tick);
            sheet.line(vec![(plot.left, at), (plot.right, at)], GRID, 1.0);
            sheet.text((plot.left - 7.0, at), number, SMALL, MUTED, Anchor::Right);
        }
        for &tick in &x.ticks {
            let at = plot.x(&x, tick);
            sheet.line(vec![(at, plot.top), (at, plot.bottom)], GRID, 1.0);
            sheet.text((at, plot.bottom + 13.0), x.number(tick), SMALL, MUTED, Anchor::Middle);
        }
        sheet.text(((plot.left + plot.right) / 2.0, plot.bottom + 33.0), &self.x.name, SMALL, MUTED, Anchor::Middle);
        sheet.marks.push(Mark::Text {
            x: 12.0,
            y: (plot.top + plot.bottom) / 2.0,
            text: self.y.name.clone(),
            size: SMALL,
            colour: MUTED,
            anchor: Anchor::Middle,
            turned: true,
            bold: false,
        });
        for line in &seen {
            for run in runs(&line.points, |p| x.inside(p.0) && y.inside(p.1)) {
                let points: Vec<_> = run.iter().map(|p| (plot.x(&x, p.0), plot.y(&y, p.1))).collect();
                if let [only] = points[..] {
                    sheet.marks.push(Mark::Dot {
                        x: only.0,
                        y: only.1,
                        radius: 3.5,
                        colour: line.colour,
                        filled: true,
                    });
                }
                let dash = line.dashed.then_some(4.0);
                let width = if line.dashed { 1.2 } else { 2.0 };
                sheet.marks.push(Mark::Line { points, colour: line.colour, width, dash });
            }
        }
        if self.legend_inside {
            legend_inside(&mut sheet, &entries, &plot);
        }
        if seen.is_empty() {
            nothing(&mut sheet, &plot);
        }
        sheet
    }
}

/// Several charts of one size on one sheet, row by row.
pub fn panels(charts: &[LineChart], columns: usize) -> Drawing {
    let columns = columns.clamp(1, charts.len().max(1));
    let (width, height) = charts.first().map_or((600.0, 300.0), |c| c.size);
    let rows = charts.len().div_ceil(columns).max(1);
    let mut sheet = Drawing::new(width * columns as f64, height * rows as f64);
    for (i, chart) in charts.iter().enumerate() {
        sheet.place(&chart.draw(), ((i % columns) as f64 * width, (i / columns) as f64 * height));
    }
    sheet
}

/// One colour of grouped bars.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Its name in the legend.
    pub name: String,
    /// Its colour.
    pub colour: Colour,
    /// One value per group; missing ones leave a gap.
    pub values: Vec<Option<Estimate>>,
}

/// Horizontal bars with whiskers for the intervals: long names stay readable.
#[derive(Clone, Debug)]
pub struct BarChart {
    /// Above the plot; may be empty.
    pub title: String,
    /// The axis of the values.
    pub axis: Axis,
    /// Where bars begin, and a line is drawn: 0, or 0.5 for chance of an area under the curve.
    pub from: f64,
    /// Names, top to bottom.
    pub groups: Vec<String>,
    /// Bars of each group, top to bottom.
    pub bars: Vec<Bars>,
    /// Logical pixels across; the height follows from the number of bars.
    pub width: f64,
}

impl BarChart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let thick = if self.bars.len() > 1 { 11.0 } else { 14.0 };
        let pitch = self.bars.len().max(1) as f64 * (thick + 2.0) + 12.0;
        let values = || self.bars.iter().flat_map(|b| &b.values).flatten().filter(|v| v.value.is_finite());
        let ends = values().flat_map(|v| [Some(v.value), v.ci95.map(|c| c[0]), v.ci95.map(|c| c[1])]).flatten();
        let scale = Scale::fit(&self.axis, ends.chain([self.from]), self.width / 90.0, true);
        let names: Vec<(&str, Colour)> = self.bars.iter().map(|b| (b.name.as_str(), b.colour)).collect();
        let (mut sheet, plot) =
            rows(&self.title, &self.groups, &names, &self.axis, &scale, pitch, self.width, values().count() > 0);
        for (g, _) in self.groups.iter().enumerate() {
            let middle = plot.top + (g as f64 + 0.5) * pitch;
            for (b, bars) in self.bars.iter().enumerate() {
                let y = middle + (b as f64 - (self.bars.len() as f64 - 1.0) / 2.0) * (thick + 2.0);
                let Some(value) = bars.values.get(g).copied().flatten().filter(|v| v.value.is_finite()) else {
                    sheet.text((plot.x(&scale, self.from) + 6.0, y), "undefined", SMALL - 1.0, MUTED, Anchor::Left);
                    continue;
                };
                let (a, z) = (plot.x(&scale, self.from), plot.x(&scale, value.value));
                sheet.marks.push(Mark::Rect {
                    x: a.min(z),
                    y: y - thick / 2.0,
                    width: (z - a).abs(),
                    height: thick,
                    colour: bars.colour,
                    opacity: 0.92,
                });
                if let Some([lo, hi]) = value.ci95 {
                    let (lo, hi) = (plot.x(&scale, lo), plot.x(&scale, hi));
                    sheet.line(vec![(lo, y), (hi, y)], INK, 1.2);
                    [lo, hi].iter().for_each(|&x| sheet.line(vec![(x, y - 3.0), (x, y + 3.0)], INK, 1.2));
                }
            }
        }
        let x = plot.x(&scale, self.from);
        sheet.line(vec![(x, plot.top), (x, plot.bottom)], MUTED, 1.0);
        sheet
    }
}

/// One colour of paired dots.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Its name in the legend.
    pub name: String,
    /// Its colour.
    pub colour: Colour,
    /// Per group: the ring's value and the disc's value.
    pub values: Vec<Option<(f64, f64)>>,
}

/// A ring joined to a disc per group: outside against inside.
#[derive(Clone, Debug)]
pub struct PairChart {
    /// Above the plot; may be empty.
    pub title: String,
    /// The axis of the values.
    pub axis: Axis,
    /// Names, top to bottom.
    pub groups: Vec<String>,
    /// Pairs of each group, top to bottom.
    pub pairs: Vec<Pairs>,
    /// What the ring and the disc stand for, in the legend.
    pub ends: (String, String),
    /// Logical pixels across.
    pub width: f64,
}

impl PairChart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let step = 15.0;
        let pitch = self.pairs.len().max(1) as f64 * step + 12.0;
        let values =
            || self.pairs.iter().flat_map(|p| &p.values).flatten().filter(|(a, b)| a.is_finite() && b.is_finite());
        let scale = Scale::fit(&self.axis, values().flat_map(|&(a, b)| [a, b]), self.width / 90.0, true);
        let names: Vec<(&str, Colour)> = self.pairs.iter().map(|p| (p.name.as_str(), p.colour)).collect();
        let (mut sheet, plot) =
            rows(&self.title, &self.groups, &names, &self.axis, &scale, pitch, self.width, values().count() > 0);
        if scale.inside(0.0) {
            let x = plot.x(&scale, 0.0);
            sheet.line(vec![(x, plot.top), (x, plot.bottom)], MUTED, 1.0);
        }
        for (p, pairs) in self.pairs.iter().enumerate() {
            for (g, value) in pairs.values.iter().enumerate().take(self.groups.len()) {
                let Some((ring, disc)) = value.filter(|(a, b)| a.is_finite() && b.is_finite()) else { continue };
                let y = plot.top + (g as f64 + 0.5) * pitch + (p as f64 - (self.pairs.len() as f64 - 1.0) / 2.0) * step;
                let (ring, disc) = (plot.x(&scale, ring), plot.x(&scale, disc));
                let colour = pairs.colour;
                if (disc - ring).abs() > 4.5 {
                    sheet.line(vec![(ring + (disc - ring).signum() * 4.5, y), (disc, y)], colour, 2.0);
                }
                sheet.marks.push(Mark::Dot { x: ring, y, radius: 4.5, colour, filled: false });
                sheet.marks.push(Mark::Dot { x: disc, y, radius: 5.0, colour, filled: true });
            }
        }
        // The key of ring and disc, at the right end of the top line.
        let mut x = self.width - 14.0;
        for (name, filled) in [(&self.ends.1, true), (&self.ends.0, false)] {
            sheet.text((x, plot.top - 16.0), name, SMALL, MUTED, Anchor::Right);
            x -= text_width(name, SMALL) * 1.12 + 9.0;
            sheet.marks.push(Mark::Dot { x, y: plot.top - 16.0, radius: 4.5, colour: MUTED, filled });
            x -= 18.0;
        }
        sheet
    }
}

/// What both row charts share: title, legend, names at the left, the axis below.
#[allow(clippy::too_many_arguments)]
fn rows(
    title_text: &str,
    groups: &[String],
    names: &[(&str, Colour)],
    axis: &Axis,
    scale: &Scale,
    pitch: f64,
    width: f64,
    any: bool,
) -> (Drawing, Plot) {
    let mut sheet = Drawing::new(width, 0.0);
    let mut top = 10.0;
    if !title_text.is_empty() {
        title(&mut sheet, title_text, &mut top);
    }
    let longest = groups.iter().map(|g| text_width(g, NORMAL)).fold(0.0, f64::max);
    let left = (longest * 1.12 + 16.0).clamp(60.0, width * 0.45);
    let entries: Vec<_> = names.iter().filter(|n| !n.0.is_empty()).map(|&(n, c)| (n, c, false)).collect();
    top = if entries.is_empty() { top + 20.0 } else { legend(&mut sheet, &entries, left, top) };
    let bottom = top + pitch * groups.len().max(1) as f64;
    let plot = Plot { left, right: width - 18.0, top, bottom };
    sheet.height = bottom + 46.0;
    for &tick in &scale.ticks {
        let x = plot.x(scale, tick);
        sheet.line(vec![(x, plot.top), (x, plot.bottom)], GRID, 1.0);
        sheet.text((x, plot.bottom + 13.0), scale.number(tick), SMALL, MUTED, Anchor::Middle);
    }
    sheet.text(((plot.left + plot.right) / 2.0, plot.bottom + 33.0), &axis.name, SMALL, MUTED, Anchor::Middle);
    for (g, name) in groups.iter().enumerate() {
        let y = plot.top + (g as f64 + 0.5) * pitch;
        sheet.text((plot.left - 10.0, y), shorten(name, plot.left - 14.0), NORMAL, INK, Anchor::Right);
    }
    if !any {
        nothing(&mut sheet, &plot);
    }
    (sheet, plot)
}

/// The rectangle that data is drawn in.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Plot {
    fn x(&self, scale: &Scale, value: f64) -> f64 {
        self.left + scale.part(value) * (self.right - self.left)
    }

    fn y(&self, scale: &Scale, value: f64) -> f64 {
        self.bottom - scale.part(value) * (self.bottom - self.top)
    }
}

/// Consecutive points that satisfy `keep`.
fn runs(points: &[(f64, f64)], keep: impl Fn(&(f64, f64)) -> bool) -> impl Iterator<Item = &[(f64, f64)]> {
    points.split(move |p| !keep(p)).filter(|run| !run.is_empty())
}

fn title(sheet: &mut Drawing, text: &str, top: &mut f64) {
    sheet.marks.push(Mark::Text {
        x: 10.0,
        y: 15.0,
        text: text.into(),
        size: NORMAL + 1.0,
        colour: INK,
        anchor: Anchor::Left,
        turned: false,
        bold: true,
    });
    *top = 32.0;
}

/// A row of swatches and names from `left`, wrapped; gives where the plot may begin.
fn legend(sheet: &mut Drawing, entries: &[(&str, Colour, bool)], left: f64, top: f64) -> f64 {
    let (mut x, mut y) = (left, top + 8.0);
    for &(name, colour, dashed) in entries {
        let width = 24.0 + text_width(name, SMALL) * 1.12 + 18.0;
        if x > left && x + width > sheet.width {
            (x, y) = (left, y + 18.0);
        }
        swatch(sheet, (x, y), name, colour, dashed);
        x += width;
    }
    y + 18.0
}

fn legend_inside(sheet: &mut Drawing, entries: &[(&str, Colour, bool)], plot: &Plot) {
    let widest = entries.iter().map(|e| text_width(e.0, SMALL)).fold(0.0, f64::max) * 1.12;
    let x = (plot.right - widest - 34.0).max(plot.left + 4.0);
    for (i, &(name, colour, dashed)) in entries.iter().enumerate() {
        let y = plot.bottom - 14.0 - (entries.len() - 1 - i) as f64 * 17.0;
        swatch(sheet, (x, y), name, colour, dashed);
    }
}

fn swatch(sheet: &mut Drawing, (x, y): (f64, f64), name: &str, colour: Colour, dashed: bool) {
    let (width, dash) = if dashed { (1.2, Some(4.0)) } else { (3.0, None) };
    sheet.marks.push(Mark::Line { points: vec![(x, y), (x + 18.0, y)], colour, width, dash });
    sheet.text((x + 24.0, y), name, SMALL, INK, Anchor::Left);
}

fn nothing(sheet: &mut Drawing, plot: &Plot) {
    let middle = ((plot.left + plot.right) / 2.0, (plot.top + plot.bottom) / 2.0);
    sheet.text(middle, "no data", NORMAL, MUTED, Anchor::Middle);
}

/// Cuts a name to the room it has.
fn shorten(name: &str, room: f64) -> String {
    if text_width(name, NORMAL) * 1.05 <= room {
        return name.to_string();
    }
    let mut short = String::new();
    for c in name.chars() {
        if text_width(&format!("{short}{c}\u{2026}"), NORMAL) * 1.05 > room {
            break;
        }
        short.push(c);
    }
    short + "\u{2026}"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::colour::SERIES;

    fn chart(points: Vec<(f64, f64)>) -> LineChart {
        LineChart::new("Loss", Axis::new("step"), Axis::new("nats")).line("loss", SERIES[0], points)
    }

    #[test]
    fn odd_data_draws_without_a_panic() {
        let nan = f64::NAN;
        for points in [
            vec![],
            vec![(1.0, 2.0)],
            vec![(nan, nan)],
            vec![(0.0, f64::INFINITY), (1.0, 1.0), (2.0, nan), (3.0, 1.0)],
            vec![(0.0, 0.0), (0.0, 0.0)],
            vec![(0.0, 1e300), (1.0, -1e300)],
            vec![(0.0, 1e-300), (1.0, 2e-300)],
            vec![(1e15, 5.0), (1e15 + 1.0, 5.0)],
        ] {
            let drawn = chart(points.clone()).draw();
            assert_eq!(drawn.svg().unwrap().contains("no data"), !points.iter().any(|p| p.1.is_finite()), "{points:?}");
            chart(points).sized(120.0, 90.0).draw().png(1).unwrap();
        }
        let empty = BarChart {
            title: String::new(),
            axis: Axis::new("AUROC"),
            from: 0.5,
            groups: vec![],
            bars: vec![],
            width: 600.0,
        };
        assert!(empty.draw().svg().unwrap().contains("no data"));
        let missing = Bars { name: "a".into(), colour: SERIES[0], values: vec![None, Some(Estimate::new(nan))] };
        let bars = BarChart { groups: vec!["a".into(), "b".into(), "c".into()], bars: vec![missing], ..empty };
        assert_eq!(bars.draw().svg().unwrap().matches("undefined").count(), 3);
        let pairs = Pairs { name: String::new(), colour: SERIES[0], values: vec![None, Some((nan, 1.0))] };
        let pairs = PairChart {
            title: String::new(),
            axis: Axis::default(),
            groups: vec!["a".into()],
            pairs: vec![pairs],
            ends: ("outside".into(), "inside".into()),
            width: 600.0,
        };
        assert!(pairs.draw().svg().unwrap().contains("no data"));
        panels(&[], 2).png(1).unwrap();
    }

    #[test]
    fn same_data_same_bytes() {
        let small = |points| chart(points).sized(200.0, 150.0);
        let draw = || panels(&[small(vec![(0.0, 1.0), (10.0, 0.25)]), small(vec![])], 2);
        assert_eq!(draw().svg().unwrap(), draw().svg().unwrap());
        assert_eq!(draw().png(1).unwrap(), draw().png(1).unwrap());
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let bars = Bars {
            name: "m".into(),
            colour: SERIES[0],
            values: vec![Some(Estimate::new(0.75)), Some(Estimate::new(1.0)), Some(Estimate::new(0.25))],
        };
        let chart = BarChart {
            title: String::new(),
            axis: Axis::fixed("AUROC", 0.0, 1.0),
            from: 0.5,
            groups: vec!["a".into(), "b".into(), "c".into()],
            bars: vec![bars],
            width: 600.0,
        };
        let drawn = chart.draw();
        let bars: Vec<(f64, f64)> = (drawn.marks.iter())
            .filter_map(|m| if let Mark::Rect { x, width, .. } = m { Some((*x, *width)) } else { None })
            .collect();
        assert_eq!(bars.len(), 3);
        assert!((bars[1].1 - 2.0 * bars[0].1).abs() < 1e-9 && bars[0].0 == bars[1].0, "{bars:?}");
        assert!((bars[2].0 + bars[2].1 - bars[0].0).abs() < 1e-9, "below chance goes left: {bars:?}");
    }

    #[test]
    fn names_too_long_are_cut() {
        let short = shorten(&"pneumothorax ".repeat(9), 100.0);
        assert!(short.ends_with('\u{2026}') && text_width(&short, NORMAL) <= 100.0);
        assert_eq!(shorten("edema", 100.0), "edema");
    }
}
