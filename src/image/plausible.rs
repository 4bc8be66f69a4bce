//! Is a picture what a chest model expects? Cheap checks of its levels and shape, for warnings: none of them stops anything.

use super::Picture;

/// Levels between the second darkest and the second brightest hundredth of the pixels that a film has at least.
const LEVELS: usize = 16;
/// Longer side by shorter side that a film of a chest stays below; of 1141 public films the longest is 1.82.
const ASPECT: f64 = 2.0;
/// Share of the range of levels that counts as brighter.
const BRIGHTER: f64 = 0.05;

/// What is doubtful about a picture as a frontal chest film, one line each: a shape or range of levels that films do not have, or
/// inverted levels.
pub fn doubts(picture: &Picture) -> Vec<String> {
    let (grey, mut doubts) = (picture.grey(), Vec::new());
    let (width, height) = (grey.width, grey.height);
    if width.max(height) as f64 > ASPECT * width.min(height) as f64 {
        doubts.push(format!("{width} x {height} pixels are not the shape of a chest film"));
    }
    let all = Levels::of(&grey, [0.0, 1.0], [0.0, 1.0]);
    let (low, high) = (all.quantile(0.02), all.quantile(0.98));
    let (range, distinct) = (high - low, all.0.iter().filter(|&&count| count > 0).count());
    if range < LEVELS {
        doubts.push(format!("nearly constant: at least 96 % of the pixels lie within {} of 256 levels", range + 1));
    } else if distinct < LEVELS {
        doubts.push(format!("only {distinct} levels of grey"));
    } else if inverted(&grey, range) {
        doubts.push("looks inverted: the air beside the neck and the lungs are brighter than the spine".to_owned());
    }
    doubts
}

/// Whether both the upper corners of the border and the lungs are brighter than the middle of the chest, by medians. In a film air is dark:
/// that around the body, which the upper corners show unless the film is cropped close, and that in the lungs, unless they are filled.
/// Either may fail in a film, both at once do not: of 1141 public films none is called inverted, of their inverses 98 %.
fn inverted(grey: &Picture, range: usize) -> bool {
    let median = |areas: &[([f64; 2], [f64; 2])]| {
        let mut levels = Levels([0; 256]);
        areas.iter().for_each(|&(x, y)| levels.add(grey, x, y));
        levels.quantile(0.5) as f64
    };
    let (zone, middle) = ([0.25, 0.6], median(&[([0.45, 0.55], [0.25, 0.75])]));
    let corners = median(&[([0.0, 0.12], [0.0, 0.06]), ([0.88, 1.0], [0.0, 0.06])]);
    let lungs = (median(&[([0.2, 0.38], zone)]) + median(&[([0.62, 0.8], zone)])) / 2.0;
    corners.min(lungs) - middle > BRIGHTER * range as f64
}

/// How many pixels have each level.
struct Levels([usize; 256]);

impl Levels {
    fn of(grey: &Picture, x: [f64; 2], y: [f64; 2]) -> Self {
        let mut levels = Self([0; 256]);
        levels.add(grey, x, y);
        levels
    }

    /// Adds those between shares of the width and the height; at least one pixel.
    fn add(&mut self, grey: &Picture, x: [f64; 2], y: [f64; 2]) {
        let span = |[from, to]: [f64; 2], side: usize| {
            let from = ((from * side as f64) as usize).min(side - 1);
            from..((to * side as f64) as usize).clamp(from + 1, side)
        };
        for row in span(y, grey.height) {
            grey.pixels[row * grey.width..][span(x, grey.width)].iter().for_each(|&p| self.0[usize::from(p)] += 1);
        }
    }

    /// The lowest level that this share of the pixels does not exceed.
    fn quantile(&self, share: f64) -> usize {
        let all: usize = self.0.iter().sum();
        let mut below = 0;
        let reached = |count: &usize| {
            below += count;
            below as f64 >= share * all as f64
        };
        self.0.iter().position(reached).unwrap_or(255)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No false alarm on films, and the inverses found; returns how many of these.
    fn judge(films: impl Iterator<Item = Picture>) -> (usize, usize) {
        let (mut found, mut all) = (0, 0);
        for (i, mut film) in films.enumerate() {
            assert_eq!(doubts(&film), [""; 0], "film {i}");
            film.pixels.iter_mut().for_each(|p| *p = 255 - *p);
            found += usize::from(doubts(&film).iter().any(|d| d.starts_with("looks inverted")));
            all += 1;
        }
        (found, all)
    }

    #[cfg(feature = "cli")]
    #[test]
    fn phantoms_raise_no_doubt_and_their_inverses_do() {
        let film = |index| {
            let phantom = crate::phantom::Phantom::draw(21, index, 64);
            Picture::new(64, 64, 1, phantom.pixels.iter().map(|&level| (level >> 8) as u8).collect())
        };
        let (found, all) = judge((0..200).map(film));
        assert!(all == 200 && found >= 190, "{found} of {all} inverses found");
    }

    #[cfg(feature = "cli")]
    #[test]
    fn real_films_raise_no_doubt_and_their_inverses_do() {
        let Some(data) = crate::shared::shared("data") else { return };
        for (set, least) in [("xray-ccby", 0.99), ("xray-clinical", 0.9), ("xray-small", 0.9)] {
            let folder = data.join(set).join("images");
            let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let (found, all) = judge(paths.map(|path| crate::image::open(&path, Default::default()).unwrap()));
            assert!(all > 40 && found as f64 >= least * all as f64, "{set}: {found} of {all} inverses found");
        }
    }

    #[test]
    fn levels_and_shapes_that_no_film_has_are_named() {
        let said = |picture: &Picture| doubts(picture).join("; ");
        assert!(said(&Picture::black(1, 1, 1)).starts_with("nearly constant"));
        assert!(said(&Picture::black(50, 40, 3)).contains("within 1 of 256"));
        let of = |width, height, level: &dyn Fn(usize) -> u8| {
            Picture::new(width, height, 1, (0..width * height).map(level).collect())
        };
        assert!(said(&of(60, 60, &|i| 100 + (i % 14) as u8)).starts_with("nearly constant"));
        assert_eq!(said(&of(60, 60, &|i| (i % 8 * 32) as u8)), "only 8 levels of grey");
        assert_eq!(said(&of(60, 60, &|i| (i % 251) as u8)), "");
        assert_eq!(said(&of(200, 60, &|i| (i % 251) as u8)), "200 x 60 pixels are not the shape of a chest film");
        assert!(said(&of(3, 60, &|i| (i % 251) as u8)).contains("shape"));
    }
}
