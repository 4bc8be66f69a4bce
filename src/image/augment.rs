//! Random views of a picture for training: one inverse-mapped resampling for crop, rotation, shift, scale and flip, then levels.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::preprocess::Cut;
use super::{Picture, Preprocess};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// What is drawn at random for every view. The defaults are the paper's train transforms; [`Augment::off`] draws nothing.
///
/// The picture is first resized as for evaluation ([`Preprocess::resized`]). Crop and affine map are composed, so that what the rotation
/// turns into view comes from the picture where it has it; beyond the picture is black.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Share of the picture's area that the random crop takes, from and to. The paper names RandomResizedCrop without a scale, so this is
    /// torchvision's; a small crop may not show what its text speaks of. `[1, 1]`: the centre crop of evaluation.
    pub crop_scale: [f64; 2],
    /// Width over height of the random crop, from and to.
    pub crop_ratio: [f64; 2],
    /// Largest rotation either way, in degrees.
    pub degrees: f64,
    /// Largest shift either way, as a share of the view's side.
    pub translate: f64,
    /// Magnification, from and to.
    pub scale: [f64; 2],
    /// Chance of a mirror image. Off: the side of a finding matters.
    pub flip: f64,
    /// Levels are multiplied by 1 - x to 1 + x.
    pub brightness: f64,
    /// Levels' distance from their mean is multiplied by 1 - x to 1 + x.
    pub contrast: f64,
    /// Levels (0 to 1) are raised to a power of exp(-x) to exp(x).
    pub gamma: f64,
    /// Standard deviation of noise that is added to the levels (0 to 1).
    pub noise: f64,
    /// Chance that a rectangle of 2 % to 20 % of the view is set to the mean.
    pub erase: f64,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            crop_scale: [0.08, 1.0],
            crop_ratio: [0.9, 1.0],
            degrees: 10.0,
            translate: 0.05,
            scale: [0.95, 1.05],
            brightness: 0.2,
            contrast: 0.2,
            ..Self::off()
        }
    }
}

/// From a pixel of the view to a place in the picture: `x = m[0] * u + m[1] * v + m[2]`, `y = m[3] * u + m[4] * v + m[5]`, where a pixel's
/// centre is at half past its index.
type Map = [f64; 6];

impl Augment {
    /// Nothing at random: the view is what evaluation sees.
    pub fn off() -> Self {
        Self {
            crop_scale: [1.0, 1.0],
            crop_ratio: [1.0, 1.0],
            degrees: 0.0,
            translate: 0.0,
            scale: [1.0, 1.0],
            flip: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            gamma: 0.0,
            noise: 0.0,
            erase: 0.0,
        }
    }

    /// Whether the values can be drawn from.
    ///
    /// # Errors
    /// A usage error that names the key.
    pub fn validate(&self) -> Result<()> {
        let check = |key: &str, value: &[f64], low: f64, high: f64| {
            let fits = value.iter().all(|x| (low..=high).contains(x)) && value.is_sorted();
            let shape = if value.len() == 2 { "two numbers in order, each from" } else { "a number from" };
            fits.then_some(())
                .ok_or_else(|| Error::usage(format!("augment.{key} = {value:?}: give {shape} {low} to {high}")))
        };
        check("crop_scale", &self.crop_scale, 0.01, 1.0)?;
        check("crop_ratio", &self.crop_ratio, 0.1, 10.0)?;
        check("degrees", &[self.degrees], 0.0, 180.0)?;
        check("translate", &[self.translate], 0.0, 1.0)?;
        check("scale", &self.scale, 0.1, 10.0)?;
        for (key, chance) in [("flip", self.flip), ("erase", self.erase)] {
            check(key, &[chance], 0.0, 1.0)?;
        }
        for (key, amount) in [("brightness", self.brightness), ("contrast", self.contrast), ("noise", self.noise)] {
            check(key, &[amount], 0.0, 1.0)?;
        }
        check("gamma", &[self.gamma], 0.0, 3.0)
    }

    /// One view, normalised: `[channels, crop, crop]`. The same picture, settings and stream give the same bits everywhere.
    pub fn apply(&self, picture: &Picture, preprocess: &Preprocess, rng: &mut Rng) -> Vec<f32> {
        let resized = preprocess.resized(picture);
        self.view(&resized, preprocess, rng)
    }

    /// As [`Augment::apply`], of a picture that is [`Preprocess::resized`] already.
    pub fn view(&self, resized: &Picture, preprocess: &Preprocess, rng: &mut Rng) -> Vec<f32> {
        let picture = if preprocess.channels == 1 { resized.grey() } else { Cow::Borrowed(resized) };
        let (side, area) = (preprocess.crop, preprocess.crop * preprocess.crop);
        let map = self.draw_map(&picture, side, rng);
        let mut levels: Vec<f32> = vec![0.0; picture.channels * area];
        for (channel, plane) in levels.chunks_exact_mut(area).enumerate() {
            sample(&picture, channel, &map, side, plane);
        }
        self.jitter(&mut levels, area, rng);
        let mut values = Vec::with_capacity(preprocess.channels * area);
        for channel in 0..preprocess.channels {
            let (mean, std) = preprocess.statistics(channel);
            let (scale, shift) = (1.0 / (255.0 * std), -mean / std);
            let plane = &levels[channel % picture.channels * area..][..area];
            values.extend(plane.iter().map(|&x| x * scale + shift));
        }
        self.erase(&mut values, side, rng);
        values
    }

    /// Draws where the view comes from.
    fn draw_map(&self, picture: &Picture, side: usize, rng: &mut Rng) -> Map {
        let [left, top, width, height] = self.draw_crop(picture, side, rng);
        let n = side as f64;
        // Within the view: about its centre, undo the shift, then rotation and magnification.
        let angle = rng.range(-self.degrees, self.degrees).to_radians();
        let shift_x = rng.range(-self.translate, self.translate) * n;
        let shift_y = rng.range(-self.translate, self.translate) * n;
        let scale = rng.range(self.scale[0], self.scale[1]);
        let mirror = if rng.chance(self.flip) { -1.0 } else { 1.0 };
        let (cos, sin) = (libm::cos(angle) / scale, libm::sin(angle) / scale);
        // (u, v) of the view, less the shifted centre, turned back: x' = cos u + sin v, y' = -sin u + cos v; then to the crop.
        let (a, b, d, e) = (cos * mirror, sin * mirror, -sin, cos);
        let (u, v) = (n / 2.0 + shift_x, n / 2.0 + shift_y);
        let (zoom_x, zoom_y) = (width / n, height / n);
        [
            a * zoom_x,
            b * zoom_x,
            left + width / 2.0 - (a * u + b * v) * zoom_x,
            d * zoom_y,
            e * zoom_y,
            top + height / 2.0 - (d * u + e * v) * zoom_y,
        ]
    }

    /// Left, top, width and height of torchvision's RandomResizedCrop (without its rounding to pixels), or of the centre crop.
    fn draw_crop(&self, picture: &Picture, side: usize, rng: &mut Rng) -> [f64; 4] {
        let (width, height) = (picture.width as f64, picture.height as f64);
        let n = side as f64;
        if self.crop_scale == [1.0, 1.0] {
            let corner = |length: usize| {
                let cut = Cut::centre(length, side);
                cut.from as f64 - cut.to as f64
            };
            return [corner(picture.width), corner(picture.height), n, n];
        }
        let (low, high) = (libm::log(self.crop_ratio[0]), libm::log(self.crop_ratio[1]));
        for _ in 0..10 {
            let area = width * height * rng.range(self.crop_scale[0], self.crop_scale[1]);
            let ratio = libm::exp(rng.range(low, high));
            let (w, h) = ((area * ratio).sqrt(), (area / ratio).sqrt());
            if w <= width && h <= height {
                return [rng.range(0.0, width - w), rng.range(0.0, height - h), w, h];
            }
        }
        // As much of the centre as the ratios allow.
        let ratio = (width / height).clamp(self.crop_ratio[0], self.crop_ratio[1]);
        let (w, h) = (width.min(height * ratio), height.min(width / ratio));
        [(width - w) / 2.0, (height - h) / 2.0, w, h]
    }

    /// Changes levels (0 to 255) of channel planes of `area` pixels: brightness and contrast in random order, gamma, noise.
    fn jitter(&self, levels: &mut [f32], area: usize, rng: &mut Rng) {
        let brightness = rng.range(1.0 - self.brightness, 1.0 + self.brightness) as f32;
        let contrast = rng.range(1.0 - self.contrast, 1.0 + self.contrast) as f32;
        let gamma = libm::exp(rng.range(-self.gamma, self.gamma));
        let contrast_first = rng.chance(0.5);
        let brighten = |levels: &mut [f32]| {
            if self.brightness > 0.0 {
                levels.iter_mut().for_each(|x| *x = (*x * brightness).min(255.0));
            }
        };
        if !contrast_first {
            brighten(levels);
        }
        if self.contrast > 0.0 {
            let shift = (1.0 - contrast) * mean_level(levels, area);
            levels.iter_mut().for_each(|x| *x = (*x * contrast + shift).clamp(0.0, 255.0));
        }
        if contrast_first {
            brighten(levels);
        }
        if self.gamma > 0.0 {
            // One power per level, lines between them.
            let table: [f32; 257] =
                std::array::from_fn(|i| (libm::pow(i.min(255) as f64 / 255.0, gamma) * 255.0) as f32);
            levels.iter_mut().for_each(|x| {
                let low = (*x as usize).min(255);
                *x = table[low] + (table[low + 1] - table[low]) * (*x - low as f32);
            });
        }
        if self.noise > 0.0 {
            // The sum of four bytes is nearly normal, and one draw: mean 510, variance 4 (256^2 - 1) / 12.
            let scale = (self.noise * 255.0 / (4.0 * 65535.0 / 12.0f64).sqrt()) as f32;
            levels.iter_mut().for_each(|x| {
                let sum: i32 = rng.next_u32().to_le_bytes().into_iter().map(i32::from).sum();
                *x = (*x + (sum - 510) as f32 * scale).clamp(0.0, 255.0);
            });
        }
    }

    /// Sets a rectangle of every plane to 0, the mean.
    fn erase(&self, values: &mut [f32], side: usize, rng: &mut Rng) {
        if self.erase == 0.0 || !rng.chance(self.erase) {
            return;
        }
        let area = (side * side) as f64 * rng.range(0.02, 0.2);
        let ratio = libm::exp(rng.range(-1.0, 1.0));
        let length = |x: f64| (x.sqrt() as usize).clamp(1, side);
        let (width, height) = (length(area * ratio), length(area / ratio));
        let (left, top) = (rng.below(side - width + 1), rng.below(side - height + 1));
        for plane in values.chunks_exact_mut(side * side) {
            for row in plane.chunks_exact_mut(side).skip(top).take(height) {
                row[left..left + width].fill(0.0);
            }
        }
    }
}

/// Mean level; of colours, with the weights of their luma.
fn mean_level(levels: &[f32], area: usize) -> f32 {
    let weights: &[f64] = if levels.len() == area { &[1.0] } else { &[0.299, 0.587, 0.114] };
    let sum = |plane: &[f32]| plane.chunks(256).map(|part| f64::from(part.iter().sum::<f32>())).sum::<f64>();
    let total: f64 = levels.chunks_exact(area).zip(weights).map(|(plane, weight)| weight * sum(plane)).sum();
    (total / area as f64) as f32
}

/// Fraction bits of positions: exact to a fraction of a millionth of a pixel over any view, and integers are the same everywhere.
const FRACTION: u32 = 32;

/// Bilinear samples of one channel at the mapped centres of `side * side` pixels; black outside.
fn sample(picture: &Picture, channel: usize, map: &Map, side: usize, plane: &mut [f32]) {
    let (width, height, step) = (picture.width as i64, picture.height as i64, picture.channels);
    let row_step = picture.width * step;
    let levels = &picture.pixels[channel..];
    let fixed = |x: f64| (x * (1u64 << FRACTION) as f64) as i64;
    let (dx, dy) = (fixed(map[0]), fixed(map[3]));
    let part = |x: i64| ((x as u64 & ((1 << FRACTION) - 1)) >> 8) as f32 * (1.0 / (1 << 24) as f32);
    let mix = |a: u8, b: u8, t: f32| f32::from(a) + (f32::from(b) - f32::from(a)) * t;
    let outside = |x: i64, y: i64| {
        let inside = (0..width).contains(&x) && (0..height).contains(&y);
        if inside { levels[y as usize * row_step + x as usize * step] } else { 0 }
    };
    for (v, row) in plane.chunks_exact_mut(side).enumerate() {
        let v = v as f64 + 0.5;
        // Pixel centres are at half past the index on both sides.
        let mut x = fixed(map[0] * 0.5 + map[1] * v + map[2] - 0.5);
        let mut y = fixed(map[3] * 0.5 + map[4] * v + map[5] - 0.5);
        for out in row {
            let (left, top, right, down) = (x >> FRACTION, y >> FRACTION, part(x), part(y));
            let (a, b, c, d) = if left >= 0 && top >= 0 && left < width - 1 && top < height - 1 {
                let at = top as usize * row_step + left as usize * step;
                (levels[at], levels[at + step], levels[at + row_step], levels[at + row_step + step])
            } else {
                (outside(left, top), outside(left + 1, top), outside(left, top + 1), outside(left + 1, top + 1))
            };
            let (upper, lower) = (mix(a, b, right), mix(c, d, right));
            *out = upper + (lower - upper) * down;
            x += dx;
            y += dy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Preset;
    use super::*;

    /// Values are levels.
    fn plain(resize: usize, crop: usize, channels: usize) -> Preprocess {
        let (mean, std) = (vec![0.0; channels], vec![1.0 / 255.0; channels]);
        Preprocess { resize, crop, channels, mean, std, ..Preset::Tier.preprocess() }
    }

    fn texture(width: usize, height: usize, channels: usize) -> Picture {
        let mut rng = Rng::new(5, 0);
        Picture::new(width, height, channels, (0..width * height * channels).map(|_| rng.next_u32() as u8).collect())
    }

    /// A bright disc on black.
    fn disc(side: usize, x: f64, y: f64, radius: f64) -> Picture {
        let level = |i: usize| {
            let (dx, dy) = ((i % side) as f64 + 0.5 - x, (i / side) as f64 + 0.5 - y);
            ((radius - (dx * dx + dy * dy).sqrt() + 0.5).clamp(0.0, 1.0) * 200.0) as u8
        };
        Picture::new(side, side, 1, (0..side * side).map(level).collect())
    }

    /// Centre of mass and mass of a view.
    fn mass(view: &[f32], side: usize) -> (f64, f64, f64) {
        let sum = |k: fn(usize, usize) -> f64| {
            view.iter().enumerate().map(|(i, &v)| k(i % side, i / side) * f64::from(v)).sum::<f64>()
        };
        let all = sum(|_, _| 1.0);
        (sum(|x, _| x as f64 + 0.5) / all, sum(|_, y| y as f64 + 0.5) / all, all)
    }

    #[test]
    fn off_is_what_evaluation_sees() {
        for (width, height, channels) in [(41, 30, 3), (30, 52, 1), (30, 30, 1)] {
            for (resize, crop) in [(30, 24), (25, 25), (16, 20)] {
                let (picture, p) = (texture(width, height, channels), plain(resize, crop, channels));
                let view = Augment::off().apply(&picture, &p, &mut Rng::new(1, 1));
                let worst = crate::distance::largest(&view, &p.apply(&picture));
                assert!(worst < 1e-3, "{width} x {height} x {channels} to {resize}, {crop}: {worst}");
            }
        }
    }

    #[test]
    fn the_stream_decides_and_nothing_else() {
        let (picture, p) = (texture(60, 50, 1), plain(40, 32, 1));
        let augment = Augment { gamma: 0.3, noise: 0.05, erase: 0.5, flip: 0.5, ..Augment::default() };
        let draw = |stream| augment.apply(&picture, &p, &mut Rng::new(9, stream));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(3), augment.view(&p.resized(&picture), &p, &mut Rng::new(9, 3)));
        assert!((0..20).flat_map(draw).all(|x| (-0.01..=255.01).contains(&x)));
    }

    #[test]
    fn each_move_goes_where_it_says() {
        let (picture, p) = (disc(64, 42.0, 32.0, 6.0), plain(64, 64, 1));
        let (x0, y0, m0) = mass(&p.apply(&picture), 64);
        assert!((x0 - 42.0).abs() < 0.01 && (y0 - 32.0).abs() < 0.01);
        let mut seen = [0.0f64; 4];
        for stream in 0..40 {
            let draw = |augment: Augment| mass(&augment.apply(&picture, &p, &mut Rng::new(2, stream)), 64);
            // Rotation keeps the distance from the centre and stays within the angle.
            let (x, y, m) = draw(Augment { degrees: 30.0, ..Augment::off() });
            let (radius, angle) = ((x - 32.0).hypot(y - 32.0), (y - 32.0).atan2(x - 32.0).to_degrees());
            assert!((radius - 10.0).abs() < 0.05 && angle.abs() < 30.1 && (m / m0 - 1.0).abs() < 0.02);
            seen[0] = seen[0].max(angle);
            let (x, y, _) = draw(Augment { translate: 0.1, ..Augment::off() });
            assert!((x - x0).abs() <= 6.41 && (y - y0).abs() <= 6.41);
            seen[1] = seen[1].max(x - x0);
            let (x, _, m) = draw(Augment { scale: [0.5, 1.5], ..Augment::off() });
            let scale = (x - 32.0) / 10.0;
            assert!((0.5..1.5).contains(&scale) && (m / m0 / (scale * scale) - 1.0).abs() < 0.05, "{scale}");
            seen[2] = seen[2].max(scale);
            let (x, y, _) = draw(Augment { flip: 1.0, ..Augment::off() });
            assert!((x - 22.0).abs() < 0.01 && (y - y0).abs() < 0.01);
            // A random crop magnifies by what it leaves out.
            let (_, _, m) = draw(Augment { crop_scale: [0.5, 0.9], ..Augment::off() });
            seen[3] = seen[3].max(m / m0);
        }
        assert!(seen[0] > 20.0 && seen[1] > 5.0 && seen[2] > 1.3 && (1.5..2.05).contains(&seen[3]), "{seen:?}");
    }

    #[test]
    fn a_crop_has_its_area_and_ratio() {
        let picture = texture(80, 50, 1);
        let augment = Augment { crop_scale: [0.1, 0.6], crop_ratio: [0.9, 1.0], ..Augment::off() };
        for stream in 0..200 {
            let [left, top, width, height] = augment.draw_crop(&picture, 32, &mut Rng::new(4, stream));
            let share = width * height / (80.0 * 50.0);
            assert!((0.1..=0.6001).contains(&share) && (0.899..=1.001).contains(&(width / height)));
            assert!(left >= 0.0 && top >= 0.0 && left + width <= 80.0 && top + height <= 50.0);
        }
        // Too large for the ratio: the largest centre crop.
        let large = Augment { crop_scale: [0.98, 0.99], ..augment };
        assert_eq!(large.draw_crop(&picture, 32, &mut Rng::new(4, 0)), [15.0, 0.0, 50.0, 50.0]);
    }

    #[test]
    fn levels_change_as_they_should() {
        let p = plain(16, 16, 1);
        let grey = Picture::new(16, 16, 1, (0..256).map(|i| if i % 2 == 0 { 80 } else { 120 }).collect());
        let spread = |augment: &Augment, stream| {
            let view = augment.apply(&grey, &p, &mut Rng::new(3, stream));
            let mean = |k: usize| view.iter().skip(k).step_by(2).map(|&x| f64::from(x)).sum::<f64>() / 128.0;
            (mean(0), mean(1))
        };
        for stream in 0..20 {
            let (low, high) = spread(&Augment { brightness: 0.2, ..Augment::off() }, stream);
            assert!((high / low - 1.5).abs() < 1e-3 && (63.9..96.1).contains(&low));
            let (low, high) = spread(&Augment { contrast: 0.5, ..Augment::off() }, stream);
            assert!((low + high - 200.0).abs() < 1e-2 && (19.9..60.1).contains(&(high - low)));
            let (low, high) = spread(&Augment { gamma: 0.5, ..Augment::off() }, stream);
            let power = |x: f64| (x / 255.0).ln();
            assert!((power(high) / power(low) - power(120.0) / power(80.0)).abs() < 1e-3);
            let (low, high) = spread(&Augment { noise: 0.05, ..Augment::off() }, stream);
            assert!(low != 80.0 && (low - 80.0).abs() < 4.0 && (high - 120.0).abs() < 4.0);
        }
        let view = Augment { noise: 0.05, ..Augment::off() }.apply(
            &Picture::new(64, 64, 1, vec![128; 4096]),
            &plain(64, 64, 1),
            &mut Rng::new(3, 0),
        );
        let deviation = (view.iter().map(|&x| f64::from(x - 128.0).powi(2)).sum::<f64>() / 4096.0).sqrt();
        assert!((deviation / 255.0 - 0.05).abs() < 0.002, "{deviation}");
        let erased = Augment { erase: 1.0, ..Augment::off() }.apply(&grey, &p, &mut Rng::new(3, 0));
        let share = erased.iter().filter(|&&x| x == 0.0).count() as f64 / 256.0;
        assert!((0.01..0.21).contains(&share), "{share}");
    }

    #[test]
    fn wrong_settings_are_named() {
        Augment::default().validate().unwrap();
        Augment::off().validate().unwrap();
        let error = Augment { crop_scale: [0.9, 0.2], ..Augment::off() }.validate().unwrap_err();
        assert!(error.to_string().contains("augment.crop_scale = [0.9, 0.2]: give two numbers in order"));
        assert_eq!(error.kind(), crate::error::Kind::Usage);
        assert!(Augment { degrees: f64::NAN, ..Augment::off() }.validate().is_err());
        assert!(serde_json::from_str::<Augment>(r#"{"rotate": 3}"#).unwrap_err().to_string().contains("rotate"));
    }
}
