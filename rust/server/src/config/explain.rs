//! Turns what serde says about a value into a finding with a suggestion.

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::error::Finding;

/// Deserializes `table`, found at `prefix`, strictly.
pub(super) fn deserialize<T: DeserializeOwned>(
    table: DeTable<'_>,
    prefix: &[&str],
) -> Result<T, Finding> {
    let span = 0..0;
    let deserializer = toml::Deserializer::from(toml::Spanned::new(span, table));
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let mut key: Vec<String> = prefix.iter().map(ToString::to_string).collect();
        key.extend(error.path().iter().filter_map(|segment| match segment {
            serde_path_to_error::Segment::Map { key } => Some(key.clone()),
            _ => None,
        }));
        explain(key, error.inner().message())
    })
}

fn explain(mut key: Vec<String>, message: &str) -> Finding {
    let finding = |key, message: String, hint| Finding { key, message, hint };
    if key.first().is_some_and(|first| first == "authorized_ids") {
        // serde would quote the value, and this value is a secret.
        return finding(key, "must be a list of strings".into(), None);
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let unknown = quoted.next().unwrap_or_default();
        let hint = did_you_mean(unknown, quoted);
        if key.last().is_none_or(|last| last != unknown) {
            key.push(unknown.to_string());
        }
        finding(key, "unknown key".into(), hint)
    } else if message.starts_with("unknown variant") {
        let unknown = quoted.next().unwrap_or_default();
        let hint = did_you_mean(unknown, quoted);
        finding(key, format!("`{unknown}` is not a value this key can have"), hint)
    } else if message.starts_with("missing field") {
        key.extend(quoted.next().map(str::to_string));
        finding(key, "is missing".into(), Some("add it; it has no default".into()))
    } else {
        finding(key, in_plain_words(message), None)
    }
}

/// serde names Rust types; a configuration has none.
fn in_plain_words(message: &str) -> String {
    let mut message = message.trim().replace('\n', " ");
    for (type_name, words) in [
        ("expected usize", "expected a whole number, at least 0"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a sequence", "expected a list"),
        ("wanted string or table", "expected a string in quotes"),
    ] {
        message = message.replace(type_name, words);
    }
    message
}

/// Characters of a key that are compared with those there are, which are far shorter.
const LONGEST_KEY: usize = 100;

/// "did you mean `x`?" for the candidate closest to `unknown`, or the candidates if none is close.
pub(super) fn did_you_mean<'a>(
    unknown: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let candidates: Vec<&str> = candidates.collect();
    // Nothing far longer is close, and finding out by how much takes its time.
    let unknown =
        unknown.char_indices().nth(LONGEST_KEY).map_or(unknown, |(end, _)| &unknown[..end]);
    let distance = |candidate: &str| {
        strsim::damerau_levenshtein(&unknown.to_lowercase(), &candidate.to_lowercase())
    };
    let closest = candidates.iter().min_by_key(|candidate| distance(candidate))?;
    let close_enough = (unknown.chars().count() / 3).max(2);
    Some(if distance(closest) <= close_enough {
        format!("did you mean `{closest}`?")
    } else {
        format!("possible here: {}", candidates.join(", "))
    })
}
