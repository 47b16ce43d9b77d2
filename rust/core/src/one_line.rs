/// Characters of an answer about what others wrote.
const MOST_CHARS: usize = 500;

/// `text`, which quotes what somebody else wrote, as one line of a length to be read: control
/// characters are escaped, and what is beyond some hundred characters is left out.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MOST_CHARS));
    let mut chars = 0;
    for c in text.chars() {
        if chars >= MOST_CHARS {
            line.push('…');
            break;
        }
        if c.is_control() {
            let escaped = c.escape_debug();
            chars += escaped.len();
            line.extend(escaped);
        } else {
            chars += 1;
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_one_and_short() {
        for (text, line) in [
            ("plain `x` é", "plain `x` é"),
            ("a\nb\t\0", "a\\nb\\t\\0"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
        ] {
            assert_eq!(one_line(text), line);
        }
        let long = one_line(&"\n".repeat(1 << 20));
        assert!(long.starts_with("\\n\\n") && long.ends_with('…'));
        assert_eq!(long.chars().count(), MOST_CHARS + 1);
        let whole = "é".repeat(MOST_CHARS);
        assert_eq!(one_line(&whole), whole);
    }
}
