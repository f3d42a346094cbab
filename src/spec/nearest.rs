//! What a misspelt word was meant to be.

/// The candidate that `word` was probably meant to be, if one is near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |c: &str| strsim::jaro_winkler(word, c).max(1.0 - strsim::damerau_levenshtein(word, c) as f64 / 3.0);
    candidates
        .into_iter()
        .map(|c| (score(c), c))
        .filter(|(score, _)| *score > 0.75 || word.is_empty())
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
