//! Rotation and trouble, in real folders and at times of the test's choice.

use std::sync::Mutex;

use super::*;

/// A log in a folder of its own, at a time of the test's choice.
struct Log {
    folder: tempfile::TempDir,
    time: Arc<Mutex<NaiveDateTime>>,
    max_bytes: u64,
    max_files: usize,
    file: RotatingFile,
}

impl Log {
    fn new(max_bytes: u64, max_files: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let time = Arc::new(Mutex::new(local_time()));
        let file = begin(&folder.path().join("logs"), &time, max_bytes, max_files);
        Self { folder, time, max_bytes, max_files, file }
    }

    /// Ends the process and begins another.
    fn restart(&mut self) {
        self.file = begin(&self.logs(), &self.time, self.max_bytes, self.max_files);
    }

    fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    fn say(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn pass(&self, time: TimeDelta) {
        *self.time.lock().unwrap() += time;
    }

    fn lost(&self) -> u64 {
        self.file.lost().load(Ordering::Relaxed)
    }

    fn read(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.logs().join(name)).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{name}: {text}");
        text.lines().map(str::to_string).collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.logs()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn begin(
    folder: &Path,
    time: &Arc<Mutex<NaiveDateTime>>,
    max_bytes: u64,
    max_files: usize,
) -> RotatingFile {
    let time = Arc::clone(time);
    let now = Box::new(move || *time.lock().unwrap());
    let note = Box::new(|lost, reason: &str| {
        assert!(reason.contains("os error"), "{reason}");
        format!("{lost} lost\n")
    });
    RotatingFile::new(folder, "test", max_bytes, max_files, now, note)
}

#[test]
fn a_line_that_would_pass_the_size_begins_a_new_file() {
    let mut log = Log::new(8, 10);
    for line in ["one", "two", "six", "ten"] {
        log.say(line);
    }
    log.say("longer than a file may be");
    log.say("end");
    assert_eq!(log.read("log.test"), ["end"]);
    assert_eq!(log.read("log.test.1"), ["longer than a file may be"]);
    assert_eq!(log.read("log.test.2"), ["six", "ten"]);
    assert_eq!(log.read("log.test.3"), ["one", "two"]);
    assert_eq!((log.names().len(), log.lost()), (4, 0));
}

#[test]
fn each_day_has_its_own_file() {
    let mut log = Log::new(1000, 10);
    *log.time.lock().unwrap() = local_time().date().and_hms_opt(23, 59, 59).unwrap();
    log.say("evening");
    log.say("late");
    log.pass(TimeDelta::seconds(1));
    log.say("midnight");
    log.pass(TimeDelta::hours(23));
    log.say("evening");
    log.pass(TimeDelta::days(3));
    log.say("later");
    assert_eq!(log.read("log.test"), ["later"]);
    assert_eq!(log.read("log.test.1"), ["midnight", "evening"]);
    assert_eq!(log.read("log.test.2"), ["evening", "late"]);
}

#[test]
fn a_clock_set_back_changes_nothing() {
    let mut log = Log::new(1000, 10);
    log.say("one");
    log.pass(TimeDelta::days(-2));
    log.say("two");
    assert_eq!(log.read("log.test"), ["one", "two"]);
    log.restart();
    log.say("three");
    assert_eq!(log.names(), ["log.test"]);
    log.pass(TimeDelta::days(1));
    log.say("four");
    assert_eq!(log.names(), ["log.test", "log.test.1"]);
}

#[test]
fn a_restart_goes_on_with_the_file_of_the_same_day_only() {
    let mut log = Log::new(1000, 10);
    log.say("one");
    log.restart();
    log.say("two");
    assert_eq!(log.read("log.test"), ["one", "two"]);
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(24 * 3600);
    let file = File::options().append(true).open(log.logs().join("log.test")).unwrap();
    file.set_modified(yesterday).unwrap();
    log.restart();
    log.say("three");
    assert_eq!(log.read("log.test"), ["three"]);
    assert_eq!(log.read("log.test.1"), ["one", "two"]);
}

#[test]
fn a_restart_counts_what_is_in_the_file() {
    let mut log = Log::new(8, 10);
    log.say("one");
    log.restart();
    log.say("two");
    log.restart();
    log.say("six");
    assert_eq!(log.read("log.test"), ["six"]);
    assert_eq!(log.read("log.test.1"), ["one", "two"]);
}

#[test]
fn only_so_many_files_are_kept_and_no_others_touched() {
    let mut log = Log::new(4, 2);
    fs::create_dir_all(log.logs()).unwrap();
    let others = ["log.test.x", "log.test.01", "log.test.1.gz", "log.test2.7", "log.other.9"];
    for name in others.into_iter().chain(["log.test.3", "log.test.12"]) {
        fs::write(log.logs().join(name), "old\n").unwrap();
    }
    log.say("one");
    let mut expected: Vec<_> = others.into_iter().chain(["log.test"]).collect();
    expected.sort_unstable();
    assert_eq!(log.names(), expected);
    for line in ["two", "six", "ten"] {
        log.say(line);
    }
    expected.extend(["log.test.1", "log.test.2"]);
    expected.sort_unstable();
    assert_eq!(log.names(), expected);
    assert_eq!(log.read("log.test.2"), ["two"]);
}

#[test]
fn none_may_be_kept() {
    let mut log = Log::new(4, 0);
    log.say("one");
    log.say("two");
    assert_eq!(log.names(), ["log.test"]);
    assert_eq!(log.read("log.test"), ["two"]);
}

#[test]
fn a_gap_is_filled_before_anything_is_deleted() {
    let mut log = Log::new(4, 3);
    for line in ["one", "two", "six", "ten"] {
        log.say(line);
    }
    fs::remove_file(log.logs().join("log.test.2")).unwrap();
    log.say("end");
    assert_eq!(log.read("log.test.1"), ["ten"]);
    assert_eq!(log.read("log.test.2"), ["six"]);
    assert_eq!(log.read("log.test.3"), ["one"]);
}

#[test]
fn a_folder_that_cannot_be_made_is_tried_again_each_second() {
    let mut log = Log::new(1000, 10);
    fs::write(log.logs(), "a file in its place").unwrap();
    log.say("one");
    log.say("two\nand a half");
    assert_eq!(log.lost(), 3);
    fs::remove_file(log.logs()).unwrap();
    log.say("six");
    assert_eq!(log.lost(), 4, "not tried again for every line");
    log.pass(TimeDelta::seconds(1));
    log.say("ten");
    log.say("end");
    assert_eq!(log.read("log.test"), ["4 lost", "ten", "end"]);
    assert_eq!(log.lost(), 4);
}

#[test]
#[cfg(target_os = "linux")]
fn lines_on_a_full_disk_are_counted() {
    let mut log = Log::new(1000, 10);
    fs::create_dir_all(log.logs()).unwrap();
    let full = log.logs().join("log.test");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    for _ in 0..3 {
        log.say("lost");
        log.pass(TimeDelta::seconds(2));
    }
    assert_eq!(log.lost(), 3);
    fs::remove_file(&full).unwrap();
    log.say("there");
    assert_eq!(log.read("log.test"), ["3 lost", "there"]);
}

#[test]
fn a_rotation_that_fails_goes_on_with_the_old_file() {
    let mut log = Log::new(8, 10);
    log.say("one");
    log.say("two");
    // A folder that is not empty is in the way of every name.
    let in_the_way = log.logs().join("log.test.1");
    fs::create_dir_all(in_the_way.join("full")).unwrap();
    fs::create_dir_all(log.logs().join("log.test.2/full")).unwrap();
    log.max_files = 2;
    log.restart();
    log.say("six");
    assert_eq!(log.read("log.test"), ["one", "two", "six"]);
    fs::remove_dir_all(in_the_way).unwrap();
    log.say("ten");
    assert_eq!(log.read("log.test"), ["one", "two", "six", "ten"]);
    log.pass(TimeDelta::seconds(1));
    log.say("end");
    assert_eq!(log.read("log.test"), ["end"]);
    assert_eq!(log.read("log.test.1"), ["one", "two", "six", "ten"]);
    assert_eq!(log.lost(), 0);
}

#[test]
fn a_file_that_others_rename_or_delete_is_begun_again() {
    let mut log = Log::new(1000, 10);
    log.say("one");
    fs::rename(log.logs().join("log.test"), log.logs().join("away")).unwrap();
    log.pass(TimeDelta::seconds(1));
    log.say("two");
    assert_eq!((log.read("away"), log.read("log.test")), (vec!["one".into()], vec!["two".into()]));
    fs::remove_dir_all(log.logs()).unwrap();
    log.pass(TimeDelta::seconds(1));
    log.say("three");
    assert_eq!(log.read("log.test"), ["three"]);
    assert_eq!(log.lost(), 0);
}

#[test]
fn a_half_written_line_of_a_crash_stays_on_its_own() {
    let mut log = Log::new(1000, 10);
    fs::create_dir_all(log.logs()).unwrap();
    fs::write(log.logs().join("log.test"), "whole\nha").unwrap();
    log.say("next");
    assert_eq!(log.read("log.test"), ["whole", "ha", "next"]);
}
