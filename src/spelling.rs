//! Names that are nearly those that were meant.

/// The candidate that is most like `name`, if one is like it: same but for case and signs, or few letters changed.
pub fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>,
) -> Option<&'a str> {
    let plain = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<Vec<_>>();
    let wanted = plain(name);
    let most = wanted.len().div_ceil(3);
    let scored = candidates.into_iter().filter_map(|candidate| {
        let candidate = candidate.as_ref();
        let letters = plain(candidate);
        let begins = !letters.is_empty() && (letters.starts_with(&wanted) || wanted.starts_with(&letters));
        // Lengths that differ by more need not be compared.
        let near = letters.len().abs_diff(wanted.len()) <= most;
        let changes = if near { distance(&wanted, &letters) } else { usize::MAX };
        Some((changes.min(if begins { 1 } else { usize::MAX }), candidate)).filter(|(changes, _)| *changes <= most)
    });
    Some(scored.min_by_key(|&(changes, _)| changes)?.1)
}

/// How many elements are put in, left out or replaced between two sequences (Levenshtein 1966).
pub fn distance<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_near() {
        assert_eq!(nearest("pozitive", &["positive", "negative"]), Some("positive"));
        assert_eq!(nearest("Patient ID", &["patient_id", "image"]), Some("patient_id"));
        assert_eq!(nearest("text", &["image", "split"]), None);
        assert_eq!(nearest("x", &[""; 0]), None);
        let letters = |a: &str, b: &str| distance(a.as_bytes(), b.as_bytes());
        assert_eq!((letters("kitten", "sitting"), letters("", "ab"), letters("same", "same")), (3, 2, 0));
    }
}
