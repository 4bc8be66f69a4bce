//! Learning rates over time.

use serde::{Deserialize, Serialize};

/// A linear warm-up, then a shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Highest rate.
    pub lr: f64,
    /// Steps of linear warm-up from 0.
    pub warmup: u64,
    /// After the warm-up.
    pub shape: Shape,
    /// Lowest rate as a share of the highest.
    pub floor: f64,
    /// Length of the first cycle of warm restarts, in steps.
    pub cycle: u64,
    /// Factor of the length from one cycle to the next.
    pub cycle_growth: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { lr: 1e-4, warmup: 0, shape: Shape::Cosine, floor: 0.0, cycle: 1000, cycle_growth: 2 }
    }
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// The highest rate throughout.
    Constant,
    /// Half a cosine down to the floor at the last step.
    Cosine,
    /// Cosines that start again (SGDR, Loshchilov and Hutter 2017).
    WarmRestarts,
}

impl Schedule {
    /// The rate of step `step` (from 0) of `total`.
    pub fn at(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        let after = step - self.warmup;
        let share = match self.shape {
            Shape::Constant => 0.0,
            Shape::Cosine => after as f64 / total.saturating_sub(self.warmup).max(1) as f64,
            Shape::WarmRestarts => {
                let (mut start, mut length) = (0, self.cycle.max(1));
                while after - start >= length {
                    start += length;
                    length = length.saturating_mul(self.cycle_growth.max(1));
                }
                (after - start) as f64 / length as f64
            }
        };
        let low = self.lr * self.floor;
        low + (self.lr - low) * 0.5 * (1.0 + libm::cos(core::f64::consts::PI * share.min(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_then_cosine() {
        let s = Schedule { lr: 1.0, warmup: 10, floor: 0.1, ..Schedule::default() };
        assert!((s.at(0, 110) - 0.1).abs() < 1e-12 && (s.at(9, 110) - 1.0).abs() < 1e-12);
        assert!(
            (s.at(10, 110) - 1.0).abs() < 1e-12
                && (s.at(60, 110) - 0.55).abs() < 1e-12
                && (s.at(110, 110) - 0.1).abs() < 1e-12
        );
    }

    #[test]
    fn restarts_start_again_and_grow() {
        let s = Schedule { lr: 1.0, shape: Shape::WarmRestarts, cycle: 10, cycle_growth: 2, ..Schedule::default() };
        assert!((s.at(0, 0) - 1.0).abs() < 1e-12 && (s.at(5, 0) - 0.5).abs() < 1e-12);
        assert!(
            (s.at(10, 0) - 1.0).abs() < 1e-12 && (s.at(20, 0) - 0.5).abs() < 1e-12 && (s.at(30, 0) - 1.0).abs() < 1e-12
        );
    }
}
