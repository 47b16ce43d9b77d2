//! What the fuzz target of model files runs. `rust/fuzz` feeds it, and the test below replays its
//! files.

use std::path::Path;

use crate::checkpoint::Checkpoint;

/// Characters of an answer; what was wrong is quoted in it, but never at length.
const ANSWER_CHARS: usize = 1000;

/// A model file, safetensors or GGUF: its directory, and the numbers of every tensor.
///
/// # Panics
/// When a promise of the reader's does not hold, or a file cannot be written.
#[expect(clippy::expect_used, reason = "without its file there is nothing to find out")]
pub fn checkpoint(bytes: &[u8]) {
    let file = std::env::temp_dir().join(format!("moshi-ctl-fuzzing-{}", std::process::id()));
    std::fs::write(&file, bytes).expect("room for a file");
    read(&file, bytes.len());
}

fn read(file: &Path, file_bytes: usize) {
    let checkpoint = match Checkpoint::open(file) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert_one_short_line(&error.to_string()),
    };
    checkpoint.elements();
    for name in checkpoint.names() {
        match checkpoint.any(name) {
            Ok(raw) => {
                assert!(raw.bytes().len() <= file_bytes);
                let numbers = raw.to_f32();
                assert_eq!(numbers.len(), raw.len());
                if let (Some(last), Some(index)) = (numbers.last(), raw.len().checked_sub(1)) {
                    assert_eq!(last.to_bits(), raw.get(index).to_bits());
                }
            }
            Err(error) => assert_one_short_line(&error.to_string()),
        }
    }
}

fn assert_one_short_line(answer: &str) {
    assert!(answer.chars().count() <= ANSWER_CHARS, "an answer of {} bytes", answer.len());
    assert!(!answer.contains(char::is_control), "an answer of several lines: {answer:?}");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// Seeds, and every input that once was too much.
    #[test]
    fn model_files() {
        let fuzz = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz"));
        let mut files = 0;
        for folder in ["seeds", "regressions"] {
            let Ok(entries) = fs::read_dir(fuzz.join(folder).join("checkpoint")) else { continue };
            for file in entries {
                let file = file.unwrap().path();
                println!("{}", file.display());
                super::checkpoint(&fs::read(file).unwrap());
                files += 1;
            }
        }
        assert!(files > 0, "there are no seeds");
    }
}
