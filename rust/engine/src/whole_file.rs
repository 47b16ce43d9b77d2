//! Files that appear under their name only once they are complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::EngineError;

/// Why a file did not come about.
pub(crate) enum Failure {
    /// It could not be written.
    Write(io::Error),
    /// There is nothing to be written.
    Content(EngineError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Content(error)
    }
}

/// Lets `content` write `file`, replacing what is there. Nothing is left behind when it fails.
pub(crate) fn write(
    file: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failure>,
) -> Result<(), EngineError> {
    let partial = partial_name(file);
    let written = File::create(&partial).map_err(Failure::from).and_then(|created| {
        let mut out = BufWriter::new(created);
        content(&mut out)?;
        out.flush()?;
        Ok(fs::rename(&partial, file)?)
    });
    written.map_err(|failure| {
        // Nothing better can be done about a leftover than to try.
        let _ = fs::remove_file(&partial);
        match failure {
            Failure::Write(error) => {
                EngineError::new(format!("cannot write {}: {error}", file.display()))
                    .with_hint("the folder has to exist and to have room for the file")
            }
            Failure::Content(error) => error,
        }
    })
}

fn partial_name(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_when_writing_fails() {
        let folder =
            std::env::temp_dir().join(format!("moshi-ctl-whole-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let failing = |failure: fn() -> Failure| {
            let written = write(&folder.join("model"), |out| {
                out.write_all(b"half")?;
                Err(failure())
            });
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
            written.unwrap_err().to_string()
        };
        assert!(failing(|| io::Error::other("disk on fire").into()).ends_with("disk on fire"));
        assert_eq!(failing(|| EngineError::new("no such thing").into()), "no such thing");
        fs::remove_dir_all(folder).unwrap();
    }
}
