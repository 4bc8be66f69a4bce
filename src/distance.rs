//! How far numbers are from those that they should be. No distance is NaN: what is not a number is infinitely far.

/// The largest |a - b|; infinite where lengths or infinities differ, or one is NaN.
pub fn largest<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let of = |(&a, &b): (&A, &B)| match (a.into(), b.into()) {
        (a, b) if a == b => 0.0,
        (a, b) => number((a - b).abs()),
    };
    a.iter().zip(b).map(of).fold(0.0, f64::max)
}

/// [`largest`] over the largest |b|, or over `least` where that is more.
pub fn relative<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B], least: f64) -> f64 {
    largest(a, b) / magnitude(b).max(least)
}

/// The largest finite |x|; 0 of none.
pub fn magnitude<X: Copy + Into<f64>>(x: &[X]) -> f64 {
    x.iter().map(|&x| x.into().abs()).filter(|x| x.is_finite()).fold(0.0, f64::max)
}

/// Relative L2 distance |a - b| / (|b| + `floor`); infinite where lengths differ, or a norm is not finite.
pub fn l2<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B], floor: f64) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let (mut off, mut size) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b): (f64, f64) = (a.into(), b.into());
        off += (a - b) * (a - b);
        size += b * b;
    }
    number(off.sqrt() / (size.sqrt() + floor).max(f64::MIN_POSITIVE))
}

fn number(x: f64) -> f64 {
    if x.is_nan() { f64::INFINITY } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    #[test]
    fn distances_are_those_of_the_furthest_and_of_the_whole() {
        let (a, b) = ([3.0f32, -4.5, 0.0], [3.0f64, -4.0, 0.0]);
        assert_eq!(largest(&a, &b), 0.5);
        assert_eq!((relative(&a, &b, 1.0), relative(&a, &b, 8.0)), (0.5 / 4.0, 0.5 / 8.0));
        assert_eq!((l2(&a, &b, 0.0), l2(&a, &b, 5.0)), (0.1, 0.05));
        assert_eq!(magnitude(&[1.0, -INF, NAN, -2.5]), 2.5);
        // Nothing expected and nothing found is right; nothing expected and something found is not.
        assert_eq!((relative(&[0.0], &[0.0], f64::MIN_POSITIVE), l2(&[0.0], &[0.0], 0.0)), (0.0, 0.0));
        assert!(relative(&[1e-6], &[0.0], f64::MIN_POSITIVE) > 1e9 && l2(&[1e-6], &[0.0], 0.0) > 1e9);
        let none: [f64; 0] = [];
        assert_eq!((largest(&none, &none), l2(&none, &none, 0.0)), (0.0, 0.0));
    }

    #[test]
    fn what_is_not_a_number_is_infinitely_far() {
        for (a, b) in [([NAN; 2], [1.0; 2]), ([1.0, NAN], [1.0; 2]), ([1.0; 2], [NAN, 1.0]), ([NAN; 2], [NAN; 2])] {
            assert_eq!([largest(&a, &b), relative(&a, &b, 1.0), l2(&a, &b, 0.0)], [INF; 3], "{a:?} {b:?}");
        }
        // Nor is an infinity near anything but itself.
        for (a, b) in [([INF, 1.0], [2.0, 1.0]), ([2.0, 1.0], [INF, 1.0]), ([INF, 1.0], [-INF, 1.0])] {
            assert_eq!([largest(&a, &b), relative(&a, &b, 1.0), l2(&a, &b, 0.0)], [INF; 3], "{a:?} {b:?}");
        }
        assert_eq!((largest(&[INF, 1.0], &[INF, 1.5]), relative(&[-INF, 1.0], &[-INF, 2.0], 1.0)), (0.5, 0.5));
    }

    #[test]
    fn lists_of_other_lengths_are_infinitely_far() {
        assert_eq!(
            [largest(&[1.0], &[1.0; 2]), relative(&[1.0; 2], &[1.0], 1.0), l2(&[1.0], &[1.0; 2], 0.0)],
            [INF; 3]
        );
    }
}
