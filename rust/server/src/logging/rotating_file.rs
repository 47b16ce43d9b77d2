//! A log file that is renamed away each day and when it is big, and that never fails its writer.
//!
//! The crates that rotate files hand errors of the disk to their caller or give up; here a line
//! that cannot be written is counted, and everything goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, TimeDelta};

/// After a failure, and between two looks at whether the file is still in its place.
const RETRY: TimeDelta = TimeDelta::seconds(1);

/// Between two warnings.
const QUIET: TimeDelta = TimeDelta::minutes(1);

/// Local time.
pub(super) type Clock = Box<dyn Fn() -> NaiveDateTime + Send>;

/// The line that says how many lines are missing before it, and why.
pub(super) type LostNote = Box<dyn Fn(u64, &str) -> String + Send>;

pub(super) fn local_time() -> NaiveDateTime {
    Local::now().naive_local()
}

/// The files `log.INSTANCE`, which is written, `log.INSTANCE.1`, which was written before it, and
/// so on. Each [`Write::write`] is one whole line or several.
pub(super) struct RotatingFile {
    folder: PathBuf,
    name: String,
    max_bytes: u64,
    max_files: usize,
    now: Clock,
    lost_note: LostNote,
    open: Option<Open>,
    /// Lines that were never written, since the process began.
    lost: Arc<AtomicU64>,
    /// How many of them the file does not tell of yet, and why the last one was lost.
    untold: u64,
    reason: String,
    failed: Pause,
    not_rotated: Pause,
    warned: Pause,
    looked: Pause,
}

struct Open {
    file: File,
    bytes: u64,
    /// The day of its lines.
    day: NaiveDate,
}

/// A time that has to pass before something is done again.
struct Pause {
    length: TimeDelta,
    since: Option<NaiveDateTime>,
}

impl Pause {
    fn new(length: TimeDelta) -> Self {
        Self { length, since: None }
    }

    /// Also true when the clock was set back since.
    fn is_over(&self, now: NaiveDateTime) -> bool {
        self.since.is_none_or(|since| (now - since).abs() >= self.length)
    }
}

impl RotatingFile {
    /// Nothing is opened before the first line.
    pub(super) fn new(
        folder: &Path,
        instance: &str,
        max_bytes: u64,
        max_files: usize,
        now: Clock,
        lost_note: LostNote,
    ) -> Self {
        Self {
            folder: folder.into(),
            name: format!("log.{instance}"),
            max_bytes,
            max_files,
            now,
            lost_note,
            open: None,
            lost: Arc::default(),
            untold: 0,
            reason: String::new(),
            failed: Pause::new(RETRY),
            not_rotated: Pause::new(RETRY),
            warned: Pause::new(QUIET),
            looked: Pause::new(RETRY),
        }
    }

    /// How many lines were lost so far.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn rotated(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{}.{number}", self.name))
    }

    fn write_lines(&mut self, lines: &[u8], now: NaiveDateTime) -> io::Result<()> {
        self.look_whether_it_is_there(now);
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open(now.date())?,
        };
        let note = match self.untold {
            0 => String::new(),
            lost => (self.lost_note)(lost, &self.reason),
        };
        let bytes = (note.len() + lines.len()) as u64;
        let is_big = open.bytes.saturating_add(bytes) > self.max_bytes;
        let is_due = open.bytes > 0 && (is_big || open.day < now.date());
        if is_due && self.not_rotated.is_over(now) {
            match self.rotate(now.date()) {
                Ok(new) => open = new,
                Err(error) => {
                    self.not_rotated.since = Some(now);
                    self.warn(now, "the log file cannot be rotated and grows on", &error);
                }
            }
        }
        open.append(&[note.as_bytes(), lines].concat())?;
        self.untold = 0;
        self.open = Some(open);
        Ok(())
    }

    /// Lets go of a file that was renamed or deleted by others.
    fn look_whether_it_is_there(&mut self, now: NaiveDateTime) {
        let Some(open) = &mut self.open else { return };
        if !self.looked.is_over(now) {
            return;
        }
        self.looked.since = Some(now);
        let ours = open.file.metadata();
        match (ours, fs::metadata(self.folder.join(&self.name))) {
            (Ok(ours), Ok(there)) if identity(&ours) == identity(&there) => {
                open.bytes = ours.len();
            }
            _ => self.open = None,
        }
    }

    fn open(&self, today: NaiveDate) -> io::Result<Open> {
        fs::create_dir_all(&self.folder)?;
        self.delete_beyond(self.max_files);
        Open::new(&self.path(), today)
    }

    /// Renames every file to the next number and begins a new one.
    fn rotate(&mut self, today: NaiveDate) -> io::Result<Open> {
        let path = self.path();
        if self.max_files == 0 {
            fs::remove_file(&path)?;
            return Open::new(&path, today);
        }
        self.delete_beyond(self.max_files);
        // Up to the first number that is free, or as far as files are kept.
        let last = (1..self.max_files)
            .find(|&number| !self.rotated(number).exists())
            .unwrap_or(self.max_files);
        for number in (1..last).rev() {
            fs::rename(self.rotated(number), self.rotated(number + 1))?;
        }
        fs::rename(&path, self.rotated(1))?;
        Open::new(&path, today).inspect_err(|_| {
            // Whoever reads along finds what is written in its usual place.
            let _ = fs::rename(self.rotated(1), &path);
        })
    }

    /// Best effort: what cannot be deleted now can the next time.
    fn delete_beyond(&self, kept: usize) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(&self.name)?.strip_prefix('.'))
                .filter(|digits| !digits.starts_with(['0', '+']))
                .and_then(|digits| digits.parse::<usize>().ok());
            if number.is_some_and(|number| number > kept) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn lose(&mut self, lines: &[u8]) {
        let count = lines.split_inclusive(|&byte| byte == b'\n').count().max(1) as u64;
        self.untold += count;
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    fn warn(&mut self, now: NaiveDateTime, what: &str, error: &io::Error) {
        if self.warned.is_over(now) {
            self.warned.since = Some(now);
            // Comes back here as a line, after this one: the queue is between.
            tracing::warn!(file = %self.path().display(), "{what}: {error}");
        }
    }
}

/// What tells a file from another one that has its name.
#[cfg(unix)]
fn identity(file: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

/// What tells a file from another one that has its name.
#[cfg(not(unix))]
fn identity(file: &fs::Metadata) -> Option<std::time::SystemTime> {
    file.created().ok()
}

impl Open {
    fn new(path: &Path, today: NaiveDate) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let found = file.metadata()?;
        let mut bytes = found.len();
        let mut day = today;
        if bytes > 0 {
            // A clock that was wrong must not keep the file from ever being rotated.
            day = DateTime::<Local>::from(found.modified()?).date_naive().min(today);
            let mut last = [0];
            file.seek(SeekFrom::Start(bytes - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // The machine stopped in the middle of a line.
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self { file, bytes, day })
    }

    /// Appends all of it or nothing.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let result = self.file.write_all(text);
        match result {
            Ok(()) => self.bytes += text.len() as u64,
            // Where even that fails, the next line begins on a new one.
            Err(_) => _ = self.file.set_len(self.bytes),
        }
        result
    }
}

impl Write for RotatingFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let now = (self.now)();
        if !self.failed.is_over(now) {
            self.lose(lines);
        } else if let Err(error) = self.write_lines(lines, now) {
            self.failed.since = Some(now);
            self.reason = error.to_string();
            self.lose(lines);
            self.warn(now, "lines of the log are lost, all else goes on", &error);
        } else {
            self.failed.since = None;
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
