//! One self-contained HTML page: styles and pictures inlined, nothing loaded, no script. Every text is escaped.

use std::fmt::Write as _;

use base64::Engine as _;

use super::colour::{self, GRID, INK, MUTED};
use super::drawing::Drawing;
use super::heat;
use super::results::{Estimate, Provenance};
use crate::error::Result;

/// A page under construction; [`Page::finish`] gives the file.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    subtitle: String,
    body: String,
    sections: Vec<String>,
}

/// A large number with what it means.
#[derive(Clone, Debug)]
pub struct Card {
    /// What it is, "Mean AUROC".
    pub name: String,
    /// The number, formatted.
    pub value: String,
    /// Interval, comparison or unit below it; may be empty.
    pub note: String,
}

/// A table: the first column names the row.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What it shows; read aloud before it.
    pub caption: String,
    /// Column names.
    pub columns: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    number: bool,
    best: bool,
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A number as it should read, right-aligned.
    pub fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: true, best: false }
    }

    /// A number of `decimals`; a dash where it is missing or undefined.
    pub fn value(value: Option<f64>, decimals: usize) -> Self {
        Self::number(value.map_or_else(|| DASH.into(), |v| number(v, decimals)))
    }

    /// A number with its interval.
    pub fn estimate(value: Option<Estimate>, decimals: usize) -> Self {
        Self::number(value.map_or_else(|| DASH.into(), |v| estimate(v, decimals)))
    }

    /// Marked as the better one. Only for a difference whose interval excludes zero.
    pub fn best(mut self, best: bool) -> Self {
        self.best = best;
        self
    }
}

const DASH: &str = "\u{2013}";

/// A number of `decimals` with a true minus sign; a dash if it is not finite.
pub fn number(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return DASH.into();
    }
    let text = format!("{value:.decimals$}");
    let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
    if zero { text.replace('-', "") } else { text.replace('-', "\u{2212}") }
}

/// A difference: as [`number`], with a plus sign where it is above zero.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    if value > 0.0 && text.chars().any(|c| matches!(c, '1'..='9')) { format!("+{text}") } else { text }
}

/// "0.912 [0.874, 0.945]".
pub fn estimate(value: Estimate, decimals: usize) -> String {
    match value.ci95 {
        Some([low, high]) => {
            format!("{} [{}, {}]", number(value.value, decimals), number(low, decimals), number(high, decimals))
        }
        None => number(value.value, decimals),
    }
}

/// The decimals, at least so many, with which an interval shows what it says: an end that excludes zero does not round to it.
pub fn decimals(value: Estimate, least: usize) -> usize {
    let shows = |x: f64, decimals: usize| number(x, decimals).contains(|c| matches!(c, '1'..='9'));
    match (value.ci95, value.sign()) {
        (Some(ends), Some(_)) => (least..16).find(|&d| ends.iter().all(|&x| shows(x, d))).unwrap_or(least),
        _ => least,
    }
}

/// "+0.012 [+0.003, +0.021]", with more decimals where it takes them (see [`decimals`]).
pub fn difference(value: Estimate, decimals: usize) -> String {
    let decimals = self::decimals(value, decimals);
    match value.ci95 {
        Some([low, high]) => {
            format!("{} [{}, {}]", signed(value.value, decimals), signed(low, decimals), signed(high, decimals))
        }
        None => signed(value.value, decimals),
    }
}

/// A picture of a gallery, as JPEG or PNG bytes.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Under it.
    pub caption: String,
    /// For those who cannot see it.
    pub alt: String,
    /// JPEG or PNG.
    pub bytes: Vec<u8>,
}

impl Page {
    /// A page with its title and the line below it.
    pub fn new(title: &str, subtitle: &str) -> Self {
        Self { title: title.into(), subtitle: subtitle.into(), body: String::new(), sections: Vec::new() }
    }

    /// The row of large numbers at the top.
    pub fn cards(&mut self, cards: &[Card]) {
        if cards.is_empty() {
            return;
        }
        self.body += "<dl class=\"cards\">\n";
        for Card { name, value, note } in cards {
            let _ = writeln!(
                self.body,
                "<div><dt>{}</dt><dd><b>{}</b><span>{}</span></dd></div>",
                escape(name),
                escape(value),
                escape(note)
            );
        }
        self.body += "</dl>\n";
    }

    /// A new section; it is listed in the page's contents.
    pub fn section(&mut self, title: &str) {
        self.sections.push(title.into());
        let _ = writeln!(self.body, "<h2 id=\"s{}\">{}</h2>", self.sections.len(), escape(title));
    }

    /// A heading within a section.
    pub fn heading(&mut self, title: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(title));
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// A paragraph that must not be overlooked: a warning, a limit.
    pub fn notice(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"notice\" role=\"note\">{}</p>", escape(text));
    }

    /// A bulleted list.
    pub fn list(&mut self, items: &[String]) {
        if items.is_empty() {
            return;
        }
        self.body += "<ul>\n";
        items.iter().for_each(|item| self.body += &format!("<li>{}</li>\n", escape(item)));
        self.body += "</ul>\n";
    }

    /// A table; it scrolls sideways where the window is narrow.
    pub fn table(&mut self, table: &Table) {
        let numeric =
            |i: usize| !table.rows.is_empty() && table.rows.iter().all(|r| r.get(i).is_some_and(|c| c.number));
        self.body += "<div class=\"scroll\" tabindex=\"0\"><table>\n";
        if !table.caption.is_empty() {
            let _ = writeln!(self.body, "<caption>{}</caption>", escape(&table.caption));
        }
        self.body += "<thead><tr>";
        for (i, name) in table.columns.iter().enumerate() {
            let class = if numeric(i) { " class=\"n\"" } else { "" };
            let _ = write!(self.body, "<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        self.body += "</tr></thead>\n<tbody>\n";
        for row in &table.rows {
            self.body += "<tr>";
            for (i, cell) in row.iter().enumerate() {
                let (tag, scope) = if i == 0 && !cell.number { ("th", " scope=\"row\"") } else { ("td", "") };
                let class = match (cell.number, cell.best) {
                    (true, true) => " class=\"n best\"",
                    (true, false) => " class=\"n\"",
                    (false, true) => " class=\"best\"",
                    (false, false) => "",
                };
                let _ = write!(self.body, "<{tag}{scope}{class}>{}</{tag}>", escape(&cell.text));
            }
            self.body += "</tr>\n";
        }
        self.body += "</tbody></table></div>\n";
    }

    /// A drawing with its caption; `alt` says in words what it shows.
    pub fn figure(&mut self, drawing: &Drawing, alt: &str, caption: &str) -> Result<()> {
        self.figures(std::slice::from_ref(drawing), &[alt.to_string()], caption)
    }

    /// Several small drawings under one caption; they flow with the window's width.
    pub fn figures(&mut self, drawings: &[Drawing], alts: &[String], caption: &str) -> Result<()> {
        let class = if drawings.len() > 1 { "plots many" } else { "plots" };
        // Drawn much smaller than meant, their text could not be read: then fewer stand side by side.
        let each = drawings.first().map_or(0.0, |d| d.width * 0.93).round();
        let _ = writeln!(self.body, "<figure><div class=\"{class}\" style=\"--each:{each}px\">");
        for (i, drawing) in drawings.iter().enumerate() {
            let alt = alts.get(i).map_or("", String::as_str);
            let _ = write!(
                self.body,
                "<div role=\"img\" aria-label=\"{}\" style=\"max-width:{}px\">{}</div>",
                escape(alt),
                drawing.width.round(),
                drawing.svg()?
            );
        }
        self.body += "</div>\n";
        self.figcaption(caption);
        self.body += "</figure>\n";
        Ok(())
    }

    /// Pictures side by side under one caption; `scale` adds the colour bar of heat maps.
    pub fn gallery(&mut self, pictures: &[Shown], scale: Option<f32>, caption: &str) {
        if pictures.is_empty() {
            return;
        }
        let columns = pictures.len().min(4);
        self.body += "<figure class=\"gallery\">\n";
        self.figcaption(caption);
        let _ = writeln!(self.body, "<div class=\"row\" style=\"--columns:{columns}\">");
        for Shown { caption, alt, bytes } in pictures {
            let kind = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpeg" };
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            let _ = writeln!(
                self.body,
                "<div class=\"shown\"><img alt=\"{}\" src=\"data:image/{kind};base64,{data}\"><span>{}</span></div>",
                escape(alt),
                escape(caption)
            );
        }
        self.body += "</div>\n";
        if let Some(scale) = scale {
            let (low, high) = (heat::short(-scale), heat::short(scale));
            let _ = writeln!(
                self.body,
                "<div class=\"scale\" role=\"img\" aria-label=\"colour scale from {low} to {high}, grey at zero\">\
                 <span>{low}</span><i style=\"background:{}\"></i><span>+{high}</span></div>",
                colour::css_gradient()
            );
        }
        self.body += "</figure>\n";
    }

    /// What `fill` adds, folded away under `summary`.
    pub fn details(&mut self, summary: &str, fill: impl FnOnce(&mut Self)) {
        let _ = writeln!(self.body, "<details><summary>{}</summary>", escape(summary));
        fill(self);
        self.body += "</details>\n";
    }

    /// Preformatted text: a config, a log.
    pub fn preformatted(&mut self, text: &str) {
        let _ = writeln!(self.body, "<pre tabindex=\"0\">{}</pre>", escape(text));
    }

    /// Where everything comes from, as the last section.
    pub fn provenance(&mut self, provenance: &Provenance) {
        self.section("How this was made");
        self.body += "<dl class=\"facts\">\n";
        let version = ("Program".to_string(), format!("tier {}", provenance.version));
        let command = ("Command".to_string(), provenance.command.clone());
        let seed = provenance.seed.map(|seed| ("Seed".to_string(), seed.to_string()));
        for (name, value) in [version, command].into_iter().chain(seed).chain(provenance.more.iter().cloned()) {
            let code = if name == "Command" { ("<code>", "</code>") } else { ("", "") };
            let _ = writeln!(self.body, "<dt>{}</dt><dd>{}{}{}</dd>", escape(&name), code.0, escape(&value), code.1);
        }
        self.body += "</dl>\n";
    }

    fn figcaption(&mut self, caption: &str) {
        if !caption.is_empty() {
            let _ = writeln!(self.body, "<figcaption>{}</figcaption>", escape(caption));
        }
    }

    /// The whole file.
    pub fn finish(self) -> String {
        let title = escape(&self.title);
        let mut contents = String::new();
        if self.sections.len() > 2 {
            contents += "<nav aria-label=\"Contents\">";
            for (i, section) in self.sections.iter().enumerate() {
                let _ = write!(contents, "<a href=\"#s{}\">{}</a>", i + 1, escape(section));
            }
            contents += "</nav>\n";
        }
        // The contents stand after the summary cards: the numbers come first.
        let (lead, rest) = match self.body.find("<h2 ") {
            Some(at) => self.body.split_at(at),
            None => (self.body.as_str(), ""),
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{}{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <header><h1>{title}</h1><p>{}</p></header>\n{lead}{contents}{rest}</main>\n</body>\n</html>\n",
            ink_rules(),
            escape(&self.subtitle),
        )
    }
}

/// Drawings carry the light page's ink; these rules hand it to the page, so that dark mode can swap it.
fn ink_rules() -> String {
    let mut rules = String::new();
    for (name, colour) in [("ink", INK), ("muted", MUTED), ("grid", GRID)] {
        let hex = colour::hex(colour);
        let _ =
            writeln!(rules, "svg [fill=\"{hex}\"]{{fill:var(--{name})}}svg [stroke=\"{hex}\"]{{stroke:var(--{name})}}");
    }
    rules
}

const STYLE: &str = include_str!("page.css");

/// Text as HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every tag closes in order and nothing is loaded from outside.
    pub(in crate::report) fn check(html: &str) {
        let empty = ["meta", "img", "!DOCTYPE"];
        let mut open: Vec<&str> = Vec::new();
        let mut rest = html;
        while let Some(at) = rest.find('<') {
            let tag = &rest[at + 1..];
            let end = tag.find('>').expect("a tag ends");
            let (tag, after) = (&tag[..end], &tag[end + 1..]);
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes pair up in <{tag}>");
            rest = after;
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "</{name}> closes what is open");
            } else if !tag.ends_with('/') && !empty.contains(&name) {
                open.push(name);
                if name == "style" {
                    rest = &rest[rest.find("</style>").expect("the style ends")..];
                }
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
        for attribute in ["src=\"", "href=\"", "url(", "@import"] {
            for (at, _) in html.match_indices(attribute) {
                let value = &html[at + attribute.len()..];
                assert!(
                    value.starts_with("data:image/") || value.starts_with('#'),
                    "{}",
                    &value[..40.min(value.len())]
                );
            }
        }
        assert!(!html.contains("<script") && !html.contains("<link"));
    }

    #[test]
    fn everything_from_outside_is_escaped() {
        let evil = "<script>\"a'&\u{0}";
        let mut page = Page::new(evil, evil);
        page.cards(&[Card { name: evil.into(), value: evil.into(), note: evil.into() }]);
        for _ in 0..3 {
            page.section(evil);
        }
        page.heading(evil);
        page.paragraph(evil);
        page.notice(evil);
        page.list(&[evil.into()]);
        let rows = vec![vec![Cell::text(evil), Cell::number(evil).best(true)]];
        page.table(&Table { caption: evil.into(), columns: vec![evil.into(); 2], rows });
        let mut drawing = Drawing::new(10.0, 10.0);
        drawing.text((0.0, 0.0), evil, 9.0, INK, crate::report::drawing::Anchor::Left);
        page.figure(&drawing, evil, evil).unwrap();
        page.gallery(&[Shown { caption: evil.into(), alt: evil.into(), bytes: b"\x89PNG".to_vec() }], Some(0.5), evil);
        page.details(evil, |page| page.preformatted(evil));
        let more = vec![(evil.to_string(), evil.to_string())];
        page.provenance(&Provenance { version: evil.into(), command: evil.into(), seed: Some(1), more });
        let html = page.finish();
        check(&html);
        assert!(!html.contains("<script>") && !html.contains('\u{0}'));
        assert_eq!(html.matches("&lt;script&gt;").count(), 33);
    }

    #[test]
    fn numbers_read_as_they_should() {
        assert_eq!(number(-0.0004, 3), "0.000");
        assert_eq!(number(-1.5, 1), "\u{2212}1.5");
        assert_eq!(number(f64::NAN, 2), DASH);
        assert_eq!(signed(0.25, 2), "+0.25");
        assert_eq!(signed(0.0001, 2), "0.00");
        assert_eq!(estimate(Estimate::within(0.5, 0.25, 0.75), 2), "0.50 [0.25, 0.75]");
        assert_eq!(difference(Estimate::within(0.5, -0.25, 0.75), 2), "+0.50 [\u{2212}0.25, +0.75]");
        // What excludes zero does not read as zero; what does not, and what is as small as rounding, is left as it is.
        assert_eq!(difference(Estimate::within(2e-4, 1e-4, 3e-4), 3), "+0.0002 [+0.0001, +0.0003]");
        assert_eq!(
            difference(Estimate::within(-0.02, -0.04, -2e-5), 2),
            "\u{2212}0.02000 [\u{2212}0.04000, \u{2212}0.00002]"
        );
        assert_eq!(difference(Estimate::within(1e-4, -1e-4, 2e-4), 3), "0.000 [0.000, 0.000]");
        assert_eq!(difference(Estimate::within(2e-16, 1e-16, 3e-16), 3), "0.000 [0.000, 0.000]");
    }
}
