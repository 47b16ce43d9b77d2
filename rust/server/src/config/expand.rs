//! `$NAME` in file and folder strings.

use super::error::Finding;

/// Replaces every `$NAME` in `value` by the environment's value for it. A `$` that no name
/// follows stays.
pub(super) fn expand(
    value: &mut String,
    key: &[&str],
    env: &impl Fn(&str) -> Option<String>,
) -> Result<(), Finding> {
    let mut expanded = String::with_capacity(value.len());
    let mut rest = value.as_str();
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name_len = rest
            .bytes()
            .enumerate()
            .take_while(|(i, b)| {
                *b == b'_' || b.is_ascii_alphabetic() || (*i > 0 && b.is_ascii_digit())
            })
            .count();
        let (name, after) = rest.split_at(name_len);
        if name.is_empty() {
            expanded.push('$');
        } else {
            expanded.push_str(&env(name).ok_or_else(|| {
                Finding::new(key, format!("uses ${name}, but {name} is not set"))
                    .with_hint(format!("set {name} in the environment or in .env"))
            })?);
        }
        rest = after;
    }
    expanded.push_str(rest);
    *value = expanded;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_anywhere() {
        let env = |name: &str| (name == "A_1").then(|| "x".to_string());
        for (before, after) in [
            ("$A_1", "x"),
            ("a$A_1/b$A_1.c", "ax/bx.c"),
            ("5$", "5$"),
            ("$ A", "$ A"),
            ("$1", "$1"),
        ] {
            let mut value = before.to_string();
            expand(&mut value, &["key"], &env).unwrap();
            assert_eq!(value, after);
        }
        let error = expand(&mut "$NOT_SET/x".to_string(), &["key"], &env).unwrap_err();
        assert!(error.message.contains("NOT_SET"));
    }
}
