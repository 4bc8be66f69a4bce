//! A sheet of marks in logical pixels, drawn by `plotters` as SVG (into a page) or PNG (a file of its own).

use std::sync::Once;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::colour::Colour;
use crate::error::{Error, Result};
use crate::image::Picture;

/// Where a text stands against its point; vertically it is always centred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The point is the text's left end.
    Left,
    /// The point is the text's middle.
    Middle,
    /// The point is the text's right end.
    Right,
}

/// One thing on a sheet; lengths in logical pixels, y grows downwards.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// An open line through `points`; `dash` is the length of a dash and of the gap after it.
    Line { points: Vec<(f64, f64)>, colour: Colour, width: f64, dash: Option<f64> },
    /// A filled rectangle, `opacity` in 0..=1.
    Rect { x: f64, y: f64, width: f64, height: f64, colour: Colour, opacity: f64 },
    /// A disc, or a ring.
    Dot { x: f64, y: f64, radius: f64, colour: Colour, filled: bool },
    /// One line of text, `size` pixels to the em; `turned` reads upwards.
    Text { x: f64, y: f64, text: String, size: f64, colour: Colour, anchor: Anchor, turned: bool, bold: bool },
}

/// A sheet and what is on it.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Logical pixels across.
    pub width: f64,
    /// Logical pixels down.
    pub height: f64,
    /// In drawing order.
    pub(super) marks: Vec<Mark>,
}

/// plotters has whole-number coordinates only: an SVG is drawn this much larger, a PNG is then averaged down.
const FINE: usize = 4;
/// Most pixels of such an enlarged bitmap.
const FINEST: usize = 12_000_000;

impl Drawing {
    /// An empty sheet.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, marks: Vec::new() }
    }

    /// A solid line.
    pub fn line(&mut self, points: Vec<(f64, f64)>, colour: Colour, width: f64) {
        self.marks.push(Mark::Line { points, colour, width, dash: None });
    }

    /// A line of text.
    pub fn text(&mut self, at: (f64, f64), text: impl Into<String>, size: f64, colour: Colour, anchor: Anchor) {
        let (x, y) = at;
        self.marks.push(Mark::Text { x, y, text: text.into(), size, colour, anchor, turned: false, bold: false });
    }

    /// Everything on `other`, moved by `(dx, dy)`.
    pub fn place(&mut self, other: &Drawing, (dx, dy): (f64, f64)) {
        self.marks.extend(other.marks.iter().cloned().map(|mut mark| {
            match &mut mark {
                Mark::Line { points, .. } => points.iter_mut().for_each(|p| *p = (p.0 + dx, p.1 + dy)),
                Mark::Rect { x, y, .. } | Mark::Dot { x, y, .. } | Mark::Text { x, y, .. } => {
                    (*x, *y) = (*x + dx, *y + dy)
                }
            }
            mark
        }));
    }

    /// A transparent SVG that scales with its place.
    pub fn svg(&self) -> Result<String> {
        let size = self.pixels(FINE);
        let mut svg = String::new();
        self.render(SVGBackend::with_string(&mut svg, size).into_drawing_area(), FINE as f64, Text::Svg)?;
        // Coordinates stay fine; the size that a reader sees is the logical one.
        let (width, height) = self.pixels(1);
        Ok(svg.replacen(
            &format!("width=\"{}\" height=\"{}\"", size.0, size.1),
            &format!("width=\"{width}\" height=\"{height}\""),
            1,
        ))
    }

    /// A PNG on white, `scale` pixels to a logical one.
    pub fn png(&self, scale: usize) -> Result<Vec<u8>> {
        let (width, height) = self.pixels(scale.max(1));
        let white = Picture {
            width: width as usize,
            height: height as usize,
            channels: 3,
            pixels: vec![255; width as usize * height as usize * 3],
        };
        png(&self.over(&white)?)
    }

    /// The marks on top of an RGB picture that is a whole multiple of the sheet's size.
    pub fn over(&self, picture: &Picture) -> Result<Picture> {
        assert_eq!(picture.channels, 3, "a drawing goes over an RGB picture, not {} channels", picture.channels);
        let (width, height) = (picture.width, picture.height);
        // A picture of many megapixels is drawn on less finely than it could be, so that memory stays bounded.
        let times = [FINE, 2].into_iter().find(|t| width * height * t * t <= FINEST).unwrap_or(1);
        let wide = width * times;
        let mut fine = vec![0; wide * height * times * 3];
        for (y, row) in fine.chunks_exact_mut(wide * 3).enumerate() {
            let source = &picture.pixels[y / times * width * 3..][..width * 3];
            for (to, from) in row.chunks_exact_mut(3 * times).zip(source.chunks_exact(3)) {
                to.chunks_exact_mut(3).for_each(|p| p.copy_from_slice(from));
            }
        }
        let scale = width as f64 / self.width * times as f64;
        let backend = BitMapBackend::with_buffer(&mut fine, (wide as u32, (height * times) as u32));
        self.render(backend.into_drawing_area(), scale, Text::Bitmap)?;
        let mut pixels = Vec::with_capacity(picture.pixels.len());
        let mut sums = vec![0u32; width * 3];
        for rows in fine.chunks_exact(wide * 3 * times) {
            sums.fill(0);
            for row in rows.chunks_exact(wide * 3) {
                for (x, pixel) in row.chunks_exact(3).enumerate() {
                    (0..3).for_each(|c| sums[x / times * 3 + c] += u32::from(pixel[c]));
                }
            }
            let area = (times * times) as u32;
            pixels.extend(sums.iter().map(|sum| ((sum + area / 2) / area) as u8));
        }
        Ok(Picture { width, height, channels: 3, pixels })
    }

    fn pixels(&self, scale: usize) -> (u32, u32) {
        ((self.width * scale as f64).round().max(1.0) as u32, (self.height * scale as f64).round().max(1.0) as u32)
    }

    fn render<B: DrawingBackend>(
        &self,
        area: DrawingArea<B, plotters::coord::Shift>,
        scale: f64,
        kind: Text,
    ) -> Result<()> {
        register_font();
        for mark in &self.marks {
            mark.draw(&area, scale, kind).map_err(|e| Error::new(format!("cannot draw: {e}")))?;
        }
        area.present().map_err(|e| Error::new(format!("cannot draw: {e}")))
    }
}

/// How plotters places text differs between its backends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    Svg,
    Bitmap,
}

impl Mark {
    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, plotters::coord::Shift>,
        scale: f64,
        kind: Text,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        let px = |v: f64| (v * scale).round().clamp(-1e6, 1e6) as i32;
        let rgb = |[r, g, b]: Colour| RGBColor(r, g, b);
        match self {
            Mark::Line { points, colour, width, dash } => {
                let style = rgb(*colour).stroke_width(px(*width).max(1) as u32);
                for piece in dash.map_or_else(|| vec![points.clone()], |dash| dashes(points, dash)) {
                    let path: Vec<_> = piece.iter().map(|p| (px(p.0), px(p.1))).collect();
                    area.draw(&PathElement::new(path, style))?;
                }
            }
            Mark::Rect { x, y, width, height, colour, opacity } => {
                let corners = [(px(*x), px(*y)), (px(x + width), px(y + height))];
                area.draw(&Rectangle::new(corners, rgb(*colour).mix(*opacity).filled()))?;
            }
            Mark::Dot { x, y, radius, colour, filled } => {
                let style = if *filled { rgb(*colour).filled() } else { rgb(*colour).stroke_width(px(1.6) as u32) };
                area.draw(&Circle::new((px(*x), px(*y)), px(*radius), style))?;
            }
            Mark::Text { x, y, text, size, colour, anchor, turned, bold } => {
                // SVG: the em is size / 1.24. Bitmap: `size` is the font's height, and the baseline stands at size / 2.
                let (size, drop) = match kind {
                    Text::Svg => (size * scale * 1.24, 0.0),
                    Text::Bitmap => {
                        let height = size * scale * FONT_HEIGHT;
                        (height, 0.34 * size * scale - height / 2.0)
                    }
                };
                let (h, v) = (
                    match anchor {
                        Anchor::Left => HPos::Left,
                        Anchor::Middle => HPos::Center,
                        Anchor::Right => HPos::Right,
                    },
                    if kind == Text::Svg { VPos::Center } else { VPos::Top },
                );
                let mut font =
                    FontDesc::new(FontFamily::SansSerif, size, if *bold { FontStyle::Bold } else { FontStyle::Normal });
                let mut at = (px(*x), px(*y));
                if *turned {
                    font = font.transform(FontTransform::Rotate270);
                    at.0 += drop as i32;
                } else {
                    at.1 += drop as i32;
                }
                let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                let colour = rgb(*colour);
                let style = TextStyle::from(font).color(&colour).pos(Pos::new(h, v));
                area.draw(&plotters::element::Text::new(text, at, style))?;
            }
        }
        Ok(())
    }
}

/// Ascent to descent of the font, in ems.
const FONT_HEIGHT: f64 = 1.149;

/// Logical pixels that `text` takes at `size`, about: a reader's own font may be a little wider.
pub fn text_width(text: &str, size: f64) -> f64 {
    register_font();
    let font = FontDesc::new(FontFamily::SansSerif, 100.0 * FONT_HEIGHT, FontStyle::Normal);
    font.box_size(text).map_or(text.chars().count() as f64 * 55.0, |(width, _)| f64::from(width)) * size / 100.0
}

/// A picture as PNG bytes.
pub fn png(picture: &Picture) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = ::image::codecs::png::PngEncoder::new(&mut bytes);
    encode(encoder, picture)?;
    Ok(bytes)
}

/// A picture as JPEG bytes, for pages: a radiograph's noise makes a PNG ten times as large.
pub fn jpeg(picture: &Picture) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = ::image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 88);
    encode(encoder, picture)?;
    Ok(bytes)
}

fn encode(encoder: impl ::image::ImageEncoder, picture: &Picture) -> Result<()> {
    let colour = if picture.channels == 1 { ::image::ExtendedColorType::L8 } else { ::image::ExtendedColorType::Rgb8 };
    encoder
        .write_image(&picture.pixels, picture.width as u32, picture.height as u32, colour)
        .map_err(|e| Error::new(format!("cannot encode a picture of {}x{}: {e}", picture.width, picture.height)))
}

fn register_font() {
    static ONCE: Once = Once::new();
    // The font is compiled in; were it unreadable, drawing text would say so.
    ONCE.call_once(|| {
        let _ = plotters::style::register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
}

/// Cuts a line into dashes of `length` with equal gaps.
fn dashes(points: &[(f64, f64)], length: f64) -> Vec<Vec<(f64, f64)>> {
    let length = length.max(0.5);
    let mut out: Vec<Vec<(f64, f64)>> = Vec::new();
    let (mut walked, mut on) = (0.0, false);
    for pair in points.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let whole = (to.0 - from.0).hypot(to.1 - from.1);
        let mut done = 0.0;
        while done < whole {
            let step = (length - walked).min(whole - done);
            let at = |d: f64| (from.0 + (to.0 - from.0) * d / whole, from.1 + (to.1 - from.1) * d / whole);
            if !on {
                match out.last_mut() {
                    Some(last) if walked > 0.0 => last.push(at(done + step)),
                    _ => out.push(vec![at(done), at(done + step)]),
                }
            }
            done += step;
            walked += step;
            if walked >= length - 1e-9 {
                (walked, on) = (0.0, !on);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rectangle_lands_where_it_says_in_both_forms() {
        let mut sheet = Drawing::new(40.0, 20.0);
        let colour = crate::report::colour::SERIES[0];
        sheet.marks.push(Mark::Rect { x: 10.0, y: 5.0, width: 20.0, height: 10.0, colour, opacity: 1.0 });
        let picture = ::image::load_from_memory(&sheet.png(2).unwrap()).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (80, 40));
        assert_eq!(picture.get_pixel(22, 12).0, colour);
        assert_eq!(picture.get_pixel(18, 12).0, [255; 3]);
        assert_eq!(picture.get_pixel(22, 8).0, [255; 3]);
        let svg = sheet.svg().unwrap();
        assert!(svg.starts_with("<svg width=\"40\" height=\"20\" viewBox=\"0 0 160 80\""), "{svg}");
        assert!(svg.contains("x=\"40\" y=\"20\" width=\"80\" height=\"40\""), "{svg}");
    }

    #[test]
    fn dashes_are_as_long_as_their_gaps() {
        let cut = dashes(&[(0.0, 0.0), (3.0, 0.0), (10.0, 0.0)], 2.0);
        let ends: Vec<_> = cut.iter().map(|d| (d[0].0, d.last().unwrap().0)).collect();
        assert_eq!(ends, [(0.0, 2.0), (4.0, 6.0), (8.0, 10.0)]);
        assert!(dashes(&[(1.0, 1.0); 3], 2.0).is_empty());
    }
}
