//! Tests of checkpoints: crashes and errors at every operation, damage of every bit, rotation, and the lock.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::remove::rotate_on;
use super::save::save_on;
use super::*;
use crate::formats::storage::failing::{FailingDisk, Failure};

const FAILURES: [Failure; 3] = [Failure::Error, Failure::CrashBefore, Failure::CrashTorn];

fn files(content: &str) -> Vec<(String, Vec<u8>)> {
    vec![("adapter".into(), content.into()), ("state".into(), vec![7; 40]), ("empty".into(), Vec::new())]
}

fn run(steps: &[u64]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for &step in steps {
        save(dir.path(), step, &files(&format!("step {step}"))).unwrap();
    }
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = entries(dir).unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

/// Asserts that every visible checkpoint is whole; returns the newest one's step and content.
fn check(dir: &Path, context: &str) -> (u64, String) {
    for (step, path) in list(dir).unwrap() {
        let checkpoint = open(&path).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert_eq!(checkpoint.step(), step, "{context}");
    }
    let (newest, skipped) = newest(dir).unwrap();
    assert_eq!(skipped, [], "{context}");
    let newest = newest.unwrap_or_else(|| panic!("{context}: no checkpoint"));
    (newest.step(), String::from_utf8(newest.read("adapter").unwrap()).unwrap())
}

#[test]
fn a_checkpoint_comes_back_as_it_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("new");
    assert_eq!(save(&output, 12, &files("a")).unwrap_err().exit_code(), 3, "a missing folder stays missing");
    assert!(!output.exists());
    std::fs::create_dir(&output).unwrap();
    let path = save(&output, 12, &files("a")).unwrap();
    assert_eq!(path, output.join("checkpoint-12"));
    let checkpoint = open(&path).unwrap();
    assert_eq!((checkpoint.step(), checkpoint.path()), (12, path.as_path()));
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["adapter", "empty", "state"]);
    for (name, bytes) in files("a") {
        assert_eq!(checkpoint.read(&name).unwrap(), bytes);
    }
    assert!(checkpoint.read("MANIFEST.json").is_err());
    assert_eq!(names(&output), ["checkpoint-12"]);
}

#[test]
fn names_that_are_not_plain_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "a/b", "/a", "../a", "a\\b", ".a", "a\0", "a\n", "MANIFEST.json"] {
        assert!(save(dir.path(), 1, &[(name.to_owned(), Vec::new())]).is_err(), "{name:?}");
    }
    let twice = [("a".to_owned(), Vec::new()), ("a".to_owned(), vec![1])];
    assert!(save(dir.path(), 1, &twice).is_err());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn only_exact_names_are_checkpoints() {
    let dir = run(&[5]);
    for name in
        ["checkpoint-", "checkpoint-05", "checkpoint-+7", "checkpoint-7x", "checkpoint--1", "Checkpoint-9"]
    {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("checkpoint-8"), "a file").unwrap();
    assert_eq!(check(dir.path(), "names").0, 5);
    assert!(save(dir.path(), 8, &files("a")).is_err());
}

#[test]
fn the_newest_is_the_highest_step_that_verifies() {
    let dir = run(&[2, 10, 9]);
    assert_eq!(check(dir.path(), "order").0, 10);
    std::fs::write(dir.path().join("checkpoint-10/adapter"), "x").unwrap();
    std::fs::create_dir(dir.path().join("checkpoint-11")).unwrap();
    let (found, skipped) = newest(dir.path()).unwrap();
    assert_eq!(found.unwrap().step(), 9);
    assert!(skipped[0].path.ends_with("checkpoint-11") && skipped[0].why.contains("no MANIFEST.json"));
    assert!(
        skipped[1].path.ends_with("checkpoint-10") && skipped[1].why.contains("not the one that was saved")
    );
    let (none, skipped) = newest(&dir.path().join("missing")).unwrap();
    assert!(none.is_none() && skipped.is_empty());
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() {
    let dir = run(&[3]);
    let path = dir.path().join("checkpoint-3");
    for name in names(&path) {
        let file = path.join(&name);
        let bytes = std::fs::read(&file).unwrap();
        for i in 0..bytes.len() {
            std::fs::write(&file, &bytes[..i]).unwrap();
            assert!(open(&path).is_err(), "{name} cut at {i}");
        }
        std::fs::write(&file, &bytes).unwrap();
        // In place, because some file systems wait for the disk when a file is cut and written anew.
        let in_place = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            for bit in 0..8 {
                in_place.write_all_at(&[byte ^ (1 << bit)], i as u64).unwrap();
                assert!(open(&path).is_err(), "{name}: bit {bit} of byte {i}");
            }
            in_place.write_all_at(&[*byte], i as u64).unwrap();
        }
        std::fs::write(&file, [&bytes[..], b"x"].concat()).unwrap();
        assert!(open(&path).is_err(), "{name} is longer");
        std::fs::remove_file(&file).unwrap();
        assert!(open(&path).is_err(), "{name} is missing");
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert!(open(&path).is_err(), "{name} is a link");
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
    }
    open(&path).unwrap();
    std::fs::rename(&path, dir.path().join("checkpoint-4")).unwrap();
    assert!(open(&dir.path().join("checkpoint-4")).unwrap_err().to_string().contains("disagree"));
    std::fs::rename(dir.path().join("checkpoint-4"), dir.path().join("best")).unwrap();
    assert_eq!(open(&dir.path().join("best")).unwrap().step(), 3);
}

#[test]
fn a_file_that_changes_after_opening_is_not_read() {
    let dir = run(&[1]);
    let checkpoint = open(&dir.path().join("checkpoint-1")).unwrap();
    std::fs::write(checkpoint.path().join("state"), [8; 40]).unwrap();
    assert!(checkpoint.read("state").is_err());
    std::fs::write(checkpoint.path().join("state"), [7; 39]).unwrap();
    assert!(checkpoint.read("state").is_err());
}

#[test]
fn a_failed_save_of_a_new_step_changes_nothing() {
    for failure in FAILURES {
        for at in 0.. {
            let dir = run(&[1]);
            let disk = FailingDisk::new(at, failure);
            let result = save_on(&disk, dir.path(), 2, &files("new"));
            let context = format!("{failure:?} at {at}: {:?}", disk.log.borrow());
            let (step, content) = check(dir.path(), &context);
            assert!(
                (step, content.as_str()) == (1, "step 1") || (step, content.as_str()) == (2, "new"),
                "{context}"
            );
            let hidden = names(dir.path()).iter().any(|name| name.starts_with('.'));
            assert!(failure != Failure::Error || !hidden, "{context}: something is left over");
            clean_stale(dir.path()).unwrap();
            assert!(!names(dir.path()).iter().any(|name| name.starts_with('.')), "{context}");
            assert_eq!(result.is_ok(), !disk.failed(), "{context}");
            save(dir.path(), 2, &files("again")).unwrap();
            assert_eq!(check(dir.path(), &context), (2, "again".to_owned()));
            if !disk.failed() {
                break;
            }
        }
    }
}

#[test]
fn a_failed_replacement_keeps_the_old_or_the_new_one() {
    for can_exchange in [true, false] {
        for failure in FAILURES {
            for at in 0.. {
                let dir = run(&[1, 2]);
                let disk = FailingDisk::new(at, failure);
                let disk = if can_exchange { disk } else { disk.without_exchange() };
                let result = save_on(&disk, dir.path(), 2, &files("new"));
                let context =
                    format!("{failure:?} at {at}, exchange {can_exchange}: {:?}", disk.log.borrow());
                if can_exchange {
                    assert_eq!(check(dir.path(), &context).0, 2, "step 2 was gone");
                }
                clean_stale(dir.path()).unwrap();
                let (step, content) = check(dir.path(), &context);
                assert!(
                    step == 2 && (content == "step 2" || content == "new"),
                    "{context}: {step} {content}"
                );
                assert_eq!(names(dir.path()), ["checkpoint-1", "checkpoint-2"], "{context}");
                if !disk.failed() {
                    assert!(result.is_ok() && content == "new", "{context}");
                    break;
                }
            }
        }
    }
}

#[test]
fn data_is_on_the_disk_before_the_name_and_the_name_before_the_return() {
    let dir = run(&[]);
    let disk = FailingDisk::new(usize::MAX, Failure::Error);
    save_on(&disk, dir.path(), 2, &files("a")).unwrap();
    let temporary = format!(".tmp-checkpoint-2-{}", std::process::id());
    let root = dir.path().file_name().unwrap().to_str().unwrap();
    // `write_new` returns when the contents are synced.
    let expected = [
        format!("create_dir {temporary}"),
        "write_new adapter".to_owned(),
        "write_new state".to_owned(),
        "write_new empty".to_owned(),
        "write_new MANIFEST.json".to_owned(),
        format!("sync_dir {temporary}"),
        "rename checkpoint-2".to_owned(),
        format!("sync_dir {root}"),
    ];
    assert_eq!(*disk.log.borrow(), expected);
}

#[test]
fn rotation_keeps_the_newest_and_the_protected() {
    let kept = |keep, protected: &[&str]| {
        let dir = run(&[1, 2, 3, 4]);
        let protected: Vec<PathBuf> = protected.iter().map(|name| dir.path().join(name)).collect();
        let removed = rotate(dir.path(), keep, &protected).unwrap();
        let names = names(dir.path());
        assert_eq!(removed.len() + names.len(), 4);
        names.iter().map(|name| name.replace("checkpoint-", "")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(kept(9, &[]), "1 2 3 4");
    assert_eq!(kept(2, &[]), "3 4");
    assert_eq!(kept(2, &["checkpoint-1"]), "1 4");
    assert_eq!(kept(1, &["checkpoint-1", "checkpoint-2"]), "1 2 4");
    assert_eq!(kept(2, &["./checkpoint-2/../checkpoint-2"]), "2 4");
    assert_eq!(kept(0, &[]), "4");
}

#[test]
fn rotation_never_removes_the_last_whole_checkpoint() {
    let dir = run(&[1, 2, 3]);
    std::fs::remove_file(dir.path().join("checkpoint-3/MANIFEST.json")).unwrap();
    rotate(dir.path(), 1, &[]).unwrap();
    let (found, _) = newest(dir.path()).unwrap();
    assert_eq!(found.unwrap().step(), 2);
    std::fs::remove_file(dir.path().join("checkpoint-2/MANIFEST.json")).unwrap();
    save(dir.path(), 1, &files("a")).unwrap();
    std::fs::remove_file(dir.path().join("checkpoint-1/state")).unwrap();
    let before = names(dir.path());
    assert!(rotate(dir.path(), 0, &[]).unwrap().is_empty());
    assert_eq!(names(dir.path()), before);
}

#[test]
fn a_failed_rotation_leaves_only_whole_checkpoints() {
    for failure in FAILURES {
        for at in 0.. {
            let dir = run(&[1, 2, 3]);
            let disk = FailingDisk::new(at, failure);
            let result = rotate_on(&disk, dir.path(), 1, &[]);
            let context = format!("{failure:?} at {at}: {:?}", disk.log.borrow());
            assert_eq!(check(dir.path(), &context).0, 3, "{context}");
            assert_eq!(result.is_ok(), !disk.failed(), "{context}");
            clean_stale(dir.path()).unwrap();
            rotate(dir.path(), 1, &[]).unwrap();
            assert_eq!(names(dir.path()), ["checkpoint-3"], "{context}");
            if !disk.failed() {
                break;
            }
        }
    }
}

#[test]
fn cleaning_removes_leftovers_only() {
    let dir = run(&[1]);
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path(".tmp-checkpoint-2-77/sub")).unwrap();
    std::fs::write(path(".tmp-checkpoint-2-77/sub/a"), "").unwrap();
    std::fs::write(path(".tmp-log.jsonl-77-0"), "").unwrap();
    std::fs::create_dir(path(".old-checkpoint-1-77")).unwrap();
    std::fs::create_dir_all(path("other")).unwrap();
    save(&path("other"), 5, &files("old")).unwrap();
    std::fs::rename(path("other/checkpoint-5"), path(".old-checkpoint-5-77")).unwrap();
    for name in ["mine", ".tmp-mine", ".tmp-checkpoint-x", ".old"] {
        std::fs::write(path(name), "").unwrap();
    }
    assert_eq!(clean_stale(dir.path()).unwrap().len(), 4);
    let kept = [".old", ".tmp-checkpoint-x", ".tmp-mine", "checkpoint-1", "checkpoint-5", "mine", "other"];
    assert_eq!(names(dir.path()), kept);
    assert_eq!(check(dir.path(), "restored"), (5, "old".to_owned()));
    assert!(clean_stale(&path("missing")).unwrap().is_empty());
}

#[test]
fn links_are_removed_and_never_followed() {
    use std::os::unix::fs::symlink;
    let theirs = run(&[9]);
    let dir = run(&[1, 2, 3]);
    let target = theirs.path().join("checkpoint-9");
    symlink(&target, dir.path().join("checkpoint-9")).unwrap();
    symlink(&target, dir.path().join(format!(".tmp-checkpoint-3-{}", std::process::id()))).unwrap();
    symlink(&target, dir.path().join("checkpoint-4")).unwrap();
    assert_eq!(check(dir.path(), "links").0, 3);
    save(dir.path(), 3, &files("new")).unwrap();
    save(dir.path(), 4, &files("new")).unwrap();
    rotate(dir.path(), 1, &[]).unwrap();
    clean_stale(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["checkpoint-4", "checkpoint-9"]);
    open(&target).unwrap();
    let file = theirs.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    symlink(&file, dir.path().join(".lock")).unwrap();
    assert!(RunLock::acquire(dir.path()).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn a_second_run_in_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let lock = RunLock::acquire(&output).unwrap();
    let error = RunLock::acquire(&output).unwrap_err().to_string();
    assert!(error.contains(&format!("pid {} on ", std::process::id())) && error.contains("fix:"), "{error}");
    drop(lock);
    // A longer text of an earlier run is replaced as a whole.
    std::fs::write(output.join(".lock"), "pid 1234567890 on a host with a very long name indeed\n").unwrap();
    let _lock = RunLock::acquire(&output).unwrap();
    let text = std::fs::read_to_string(output.join(".lock")).unwrap();
    assert!(
        text.starts_with(&format!("pid {} on ", std::process::id())) && text.lines().count() == 1,
        "{text}"
    );
}
