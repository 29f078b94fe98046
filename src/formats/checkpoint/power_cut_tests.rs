//! Tests of power cuts, which can lose written data; killing a process cannot.
//!
//! Every change of the folder is recorded. A power cut after any of them may lose every entry of a folder that was made,
//! renamed or removed since that folder was last synced, each by itself; all these states are built and checked. The contents
//! of files are not lost here, because `write_new` syncs them before it returns.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use super::remove::rotate_on;
use super::save::save_on;
use super::*;
use crate::formats::storage::{Disk, Fill, Storage};

#[derive(Debug, Clone)]
enum Op {
    CreateDir(PathBuf),
    WriteNew(PathBuf, Vec<u8>),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    RemoveFile(PathBuf),
    RemoveDir(PathBuf),
}

impl Op {
    /// The folder whose entries it changes.
    fn parent(&self) -> Option<&Path> {
        match self {
            Self::CreateDir(path)
            | Self::WriteNew(path, _)
            | Self::RemoveFile(path)
            | Self::RemoveDir(path) => path.parent(),
            Self::Rename(_, to) | Self::Exchange(_, to) => to.parent(),
            Self::SyncDir(_) => None,
        }
    }

    /// Applies the change below `root`. A change that depends on a lost one fails, and is lost too.
    fn replay(&self, root: &Path) -> io::Result<()> {
        let at = |path: &Path| root.join(path);
        match self {
            Self::CreateDir(path) => Disk.create_dir(&at(path)),
            Self::WriteNew(path, bytes) => std::fs::write(at(path), bytes),
            Self::SyncDir(_) => Ok(()),
            Self::Rename(from, to) => Disk.rename(&at(from), &at(to)),
            Self::Exchange(a, b) => Disk.exchange(&at(a), &at(b)),
            Self::RemoveFile(path) => Disk.remove_file(&at(path)),
            Self::RemoveDir(path) => Disk.remove_dir(&at(path)),
        }
    }
}

/// The disk, with a record of its changes.
struct Recorder {
    root: PathBuf,
    ops: RefCell<Vec<Op>>,
}

impl Recorder {
    fn record(&self, op: impl FnOnce(&dyn Fn(&Path) -> PathBuf) -> Op) -> io::Result<()> {
        let op = op(&|path| path.strip_prefix(&self.root).unwrap().to_owned());
        self.ops.borrow_mut().push(op.clone());
        op.replay(&self.root)
    }
}

impl Storage for Recorder {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.record(|at| Op::CreateDir(at(path)))
    }
    fn write_new(&self, path: &Path, fill: Fill<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.record(|at| Op::WriteNew(at(path), bytes))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.record(|at| Op::SyncDir(at(path)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.record(|at| Op::Rename(at(from), at(to)))
    }
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.record(|at| Op::Exchange(at(a), at(b)))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.record(|at| Op::RemoveFile(at(path)))
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.record(|at| Op::RemoveDir(at(path)))
    }
}

fn files(content: &str) -> Vec<(String, Vec<u8>)> {
    vec![("adapter".into(), content.into()), ("state".into(), vec![7; 40])]
}

/// A folder with these checkpoints, without waiting for the disk.
fn run(steps: &[u64]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for &step in steps {
        let recorder = Recorder { root: dir.path().to_owned(), ops: RefCell::default() };
        save_on(&recorder, dir.path(), step, &files("old")).unwrap();
    }
    dir
}

/// Calls `check` with the folder after every possible power cut during `change`, with the steps of `before` in it. Returns
/// the number of states.
fn for_each_power_cut(
    before: &[u64],
    change: impl Fn(&dyn Storage, &Path),
    check: impl Fn(&Path, &str),
) -> usize {
    let dir = run(before);
    let recorder = Recorder { root: dir.path().to_owned(), ops: RefCell::default() };
    change(&recorder, dir.path());
    let ops = recorder.ops.into_inner();
    let mut states = 0;
    for cut in 0..=ops.len() {
        let done = &ops[..cut];
        let is_pending = |&i: &usize| {
            let parent = done[i].parent();
            let synced =
                done[i..].iter().any(|op| matches!(op, Op::SyncDir(dir) if Some(dir.as_path()) == parent));
            parent.is_some() && !synced
        };
        let pending: Vec<usize> = (0..cut).filter(is_pending).collect();
        assert!(pending.len() <= 12, "too many states: {pending:?}");
        for lost in 0..1usize << pending.len() {
            let lost: Vec<usize> =
                (0..pending.len()).filter(|bit| lost >> bit & 1 == 1).map(|bit| pending[bit]).collect();
            let dir = run(before);
            for (_, op) in done.iter().enumerate().filter(|(i, _)| !lost.contains(i)) {
                let _ = op.replay(dir.path());
            }
            check(dir.path(), &format!("cut after {cut}, lost {lost:?} of {ops:?}"));
            states += 1;
        }
    }
    states
}

/// Asserts that every visible checkpoint is whole; returns the newest one's step and content.
fn check(dir: &Path, context: &str) -> (u64, String) {
    let (newest, skipped) = newest(dir).unwrap();
    assert_eq!(skipped, [], "{context}");
    for (_, path) in list(dir).unwrap() {
        open(&path).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
    let newest = newest.unwrap_or_else(|| panic!("no checkpoint: {context}"));
    (newest.step(), String::from_utf8(newest.read("adapter").unwrap()).unwrap())
}

#[test]
fn a_power_cut_during_a_save_leaves_whole_checkpoints() {
    let save = |storage: &dyn Storage, dir: &Path| drop(save_on(storage, dir, 2, &files("new")).unwrap());
    let states = for_each_power_cut(&[1], save, |dir, context| {
        let found = check(dir, context);
        assert!(found == (1, "old".to_owned()) || found == (2, "new".to_owned()), "{found:?}: {context}");
    });
    assert!(states > 20, "{states}");
}

#[test]
fn a_power_cut_during_a_replacement_leaves_the_old_or_the_new_one() {
    let save = |storage: &dyn Storage, dir: &Path| drop(save_on(storage, dir, 2, &files("new")).unwrap());
    for_each_power_cut(&[1, 2], save, |dir, context| {
        let (step, content) = check(dir, context);
        assert!(step == 2 && (content == "old" || content == "new"), "{step} {content}: {context}");
    });
}

#[test]
fn a_power_cut_during_rotation_leaves_whole_checkpoints() {
    let rotate = |storage: &dyn Storage, dir: &Path| drop(rotate_on(storage, dir, 1, &[]).unwrap());
    for_each_power_cut(&[1, 2, 3], rotate, |dir, context| {
        assert_eq!(check(dir, context).0, 3, "{context}");
    });
}
