//! Axes: ranges and round ticks.

/// An axis: its name with the unit, and a range where the data should not decide.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    /// Name and unit, "area under the curve".
    pub name: String,
    /// Lowest and highest value shown; `None` fits the data.
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// An axis that fits its data.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), range: None }
    }

    /// An axis of a fixed range.
    pub fn fixed(name: &str, from: f64, to: f64) -> Self {
        Self { name: name.into(), range: Some((from, to)) }
    }
}

/// A linear axis with its ticks.
pub(super) struct Scale {
    from: f64,
    to: f64,
    step: f64,
    /// Where grid lines and numbers stand.
    pub ticks: Vec<f64>,
}

impl Scale {
    /// About `count` ticks at 1, 2 or 5 times a power of ten; a fitted range is widened to whole ticks if `whole`.
    pub fn fit(axis: &Axis, values: impl Iterator<Item = f64>, count: f64, whole: bool) -> Self {
        let (mut from, mut to) = axis.range.unwrap_or_else(|| {
            values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
        });
        if !(from.is_finite() && to.is_finite()) {
            (from, to) = (0.0, 1.0);
        }
        // One value, or a range too narrow to divide: some room on both sides.
        if to - from <= from.abs().max(to.abs()) * 1e-9 {
            let room = if from == 0.0 { 1.0 } else { from.abs() * 0.1 };
            (from, to) = (from - room, to + room);
        }
        let rough = (to - from) / count.clamp(2.0, 10.0);
        let power = libm::pow(10.0, rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|&s| s >= rough * 0.999).unwrap_or(power * 10.0);
        if whole && axis.range.is_none() {
            (from, to) = ((from / step + 1e-9).floor() * step, (to / step - 1e-9).ceil() * step);
        }
        let first = (from / step - 1e-9).ceil();
        let ticks = (0..).map(|i| (first + f64::from(i)) * step).take_while(|&t| t <= to + step * 1e-9).take(50);
        let ticks = ticks.collect();
        Self { from, to, step, ticks }
    }

    /// Where `value` lies between the ends, 0 to 1.
    pub fn part(&self, value: f64) -> f64 {
        (value.clamp(self.from, self.to) - self.from) / (self.to - self.from)
    }

    /// Whether the axis shows `value`.
    pub fn inside(&self, value: f64) -> bool {
        let slack = (self.to - self.from) * 1e-9;
        value >= self.from - slack && value <= self.to + slack
    }

    /// A tick as text.
    pub fn number(&self, tick: f64) -> String {
        let decimals = (-self.step.log10() + 1e-9).ceil().max(0.0) as usize;
        // -0 and rounding noise around it.
        let tick = if tick.abs() < self.step * 1e-6 { 0.0 } else { tick };
        if tick == 0.0 && decimals > 4 {
            return "0".into();
        }
        if tick != 0.0 && (decimals > 4 || tick.abs() >= 1e6) {
            let short = format!("{tick:.1e}");
            return short.replace(".0e", "e");
        }
        format!("{tick:.decimals$}").replace('-', "\u{2212}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        let scale = Scale::fit(&Axis::new(""), [0.03, 0.97].into_iter(), 6.0, true);
        assert_eq!(
            scale.ticks.iter().map(|&t| scale.number(t)).collect::<Vec<_>>(),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        let scale = Scale::fit(&Axis::new(""), [0.0, 1e-4].into_iter(), 4.0, true);
        assert_eq!(scale.number(scale.ticks[1]), "5e-5");
    }
}
