//! The palette of the figures and the diverging colour map of the heat maps. All colours are sRGB.

use std::fmt::Write as _;
use std::sync::OnceLock;

/// Red, green, blue.
pub type Colour = [u8; 3];

/// Titles and names. The page's style sheet swaps the first three for dark mode, so charts use no other greys.
pub const INK: Colour = [0x1F, 0x29, 0x33];
/// Numbers and labels of the axes.
pub const MUTED: Colour = [0x5B, 0x67, 0x75];
/// Grid lines.
pub const GRID: Colour = [0xE3, 0xE7, 0xEB];
/// What others are compared with: the unregularised model.
pub const BASELINE: Colour = [0x86, 0x91, 0x9E];
/// Series, readable on white and on black and apart for the colour-blind (after Okabe and Ito).
pub const SERIES: [Colour; 6] = [
    [0x1A, 0x7C, 0xC7],
    [0xD5, 0x5E, 0x00],
    [0x00, 0x9A, 0x6E],
    [0xB8, 0x62, 0x98],
    [0xA8, 0x7B, 0x00],
    [0x86, 0x91, 0x9E],
];

/// The map at its lowest value.
pub const LOWEST: Colour = [0x1A, 0x4F, 0xC4];
/// The map at zero.
pub const ZERO: Colour = [0x8C, 0x8C, 0x8C];
/// The map at its highest value.
pub const HIGHEST: Colour = [0xFF, 0x72, 0x0E];

/// Steps of the map on each side of zero.
const STEPS: usize = 256;

/// Blue below zero, grey at zero, orange above; `value` in -1..=1, clamped (NaN is grey). Straight lines in OKLab
/// (Ottosson 2020), lighter towards orange, so that the sign survives a grey print and every common colour blindness.
pub fn diverging(value: f32) -> Colour {
    static TABLE: OnceLock<Vec<Colour>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        (0..=2 * STEPS)
            .map(|i| {
                let t = i as f64 / STEPS as f64 - 1.0;
                if t < 0.0 { between(ZERO, LOWEST, -t) } else { between(ZERO, HIGHEST, t) }
            })
            .collect()
    });
    let value = if value.is_nan() { 0.0 } else { value.clamp(-1.0, 1.0) };
    table[((value + 1.0) * STEPS as f32).round() as usize]
}

/// A style sheet's gradient of the map, left to right.
pub fn css_gradient() -> String {
    let mut out = String::from("linear-gradient(90deg");
    for i in -4..=4 {
        let _ = write!(out, ",{}", hex(diverging(i as f32 / 4.0)));
    }
    out + ")"
}

/// `#RRGGBB`.
pub fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// `over` on `under`, `alpha` in 0..=1.
pub(super) fn blend(under: Colour, over: Colour, alpha: f32) -> Colour {
    std::array::from_fn(|c| (under[c] as f32 + (over[c] as f32 - under[c] as f32) * alpha).round() as u8)
}

fn between(from: Colour, to: Colour, t: f64) -> Colour {
    let (from, to) = (oklab(from), oklab(to));
    srgb(std::array::from_fn(|c| from[c] + (to[c] - from[c]) * t))
}

fn oklab(colour: Colour) -> [f64; 3] {
    let [r, g, b] = colour.map(|v| {
        let v = f64::from(v) / 255.0;
        if v <= 0.04045 { v / 12.92 } else { libm::pow((v + 0.055) / 1.055, 2.4) }
    });
    let l = libm::cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
    let m = libm::cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
    let s = libm::cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
    [
        0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
    ]
}

fn srgb([lightness, a, b]: [f64; 3]) -> Colour {
    let cube = |v: f64| v * v * v;
    let l = cube(lightness + 0.3963377774 * a + 0.2158037573 * b);
    let m = cube(lightness - 0.1055613458 * a - 0.0638541728 * b);
    let s = cube(lightness - 0.0894841775 * a - 1.2914855480 * b);
    let linear = [
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    ];
    linear.map(|v| {
        let v = v.clamp(0.0, 1.0);
        let v = if v <= 0.0031308 { 12.92 * v } else { 1.055 * libm::pow(v, 1.0 / 2.4) - 0.055 };
        (v * 255.0).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_grey_and_the_ends_are_the_ends() {
        assert_eq!(diverging(0.0), ZERO);
        assert_eq!(diverging(f32::NAN), ZERO);
        for (end, colour) in [(-1.0, LOWEST), (1.0, HIGHEST), (-9.0, LOWEST), (f32::INFINITY, HIGHEST)] {
            assert_eq!(diverging(end), colour, "{end}");
        }
    }

    #[test]
    fn lightness_rises_all_the_way() {
        let light: Vec<f64> = (-8..=8).map(|i| oklab(diverging(i as f32 / 8.0))[0]).collect();
        assert!(light.windows(2).all(|w| w[1] > w[0]), "{light:?}");
    }
}
