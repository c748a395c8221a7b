//! Which key was meant by a misspelt one. Pure.

/// The known key that was probably meant: one that begins with it (`password`: `passwordFile`), or differs by few letters.
pub(super) fn closest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    if key.len() > LONGEST {
        return None;
    }
    let key = key.to_ascii_lowercase();
    let lower = |word: &str| word.to_ascii_lowercase();
    let begins = |word: &&&str| key.len() >= 4 && lower(word).starts_with(&key);
    let near = known
        .iter()
        .map(|word| (distance(&key, &lower(word)), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min();
    near.map(|(_, word)| word)
        .or_else(|| known.iter().find(begins).copied())
}

/// Longer ones are no misspelt key, and comparing takes time.
const LONGEST: usize = 80;

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    let mut previous = None;
    for (row, letter) in left.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let replace = above[column] + usize::from(letter != *other);
            let mut best = replace.min(above[column + 1] + 1).min(current[column] + 1);
            if column > 0 && previous == Some(*other) && right[column - 1] == letter {
                best = best.min(before[column - 1] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut above, current);
        previous = Some(letter);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("conect", Some("connect"))]
    #[case("Connect", Some("connect"))]
    #[case("ocnnect", Some("connect"))]
    #[case("password", Some("passwordFile"))]
    #[case("user", Some("username"))]
    #[case("x", None)]
    #[case("", None)]
    #[case("somethingElse", None)]
    fn suggestions(#[case] key: &str, #[case] meant: Option<&str>) {
        assert_eq!(
            closest(key, &["connect", "passwordFile", "username"]),
            meant
        );
    }
}
