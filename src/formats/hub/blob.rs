//! Downloads one file from the hub into the cache: resume, count, hash, publish.

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use super::hash::{ContentId, Hasher, hash_file, hash_rest};
use super::http::{Answer, Client, Failure, Purpose, Resume, check_status};
use super::origin::Url;
use super::store::{Store, Wanted, open_incomplete};
use super::{CODE, Progress};
use crate::error::Error;

/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(200);

/// Maximum size of a file whose size is not announced.
const MAX_UNSIZED: u64 = 256 << 20;

/// Gets `file` into the snapshot, from the cache or from `url`.
pub(super) fn fetch(client: &Client<'_>, store: &Store, url: &Url, file: &Wanted) -> Result<(), Failure> {
    if store.has_copy(file, client)? {
        return Ok(());
    }
    if !store.has_blob(file, client)? {
        let _lock = store.lock(&file.id, client)?;
        // Another process may have finished it meanwhile.
        if !store.has_blob(file, client)? {
            let mut download = Download { client, store, url, file, last_report: None, is_fresh: false };
            client.retry(|progress| download.once(progress))?;
            store.publish(&file.id).map_err(Failure::Local)?;
        }
    }
    store.link(file).map_err(Failure::Local)
}

/// A download with its retries.
struct Download<'a> {
    client: &'a Client<'a>,
    store: &'a Store,
    url: &'a Url,
    file: &'a Wanted,
    last_report: Option<Instant>,
    /// True if all bytes on the disk come from this download, so that an earlier run cannot be the cause of a
    /// wrong hash.
    is_fresh: bool,
}

impl Download<'_> {
    /// One try: afterwards the file is complete and verified, but does not have its final name yet.
    fn once(&mut self, progress: &mut u64) -> Result<(), Failure> {
        let path = self.store.incomplete(&self.file.id);
        let mut out = open_incomplete(&path).map_err(Failure::Local)?;
        let mut here = out.metadata().map_err(|e| self.local("read", e))?.len();
        if self.file.size.is_some_and(|size| here > size) {
            self.restart(&mut out)?;
            here = 0;
        }
        if here == 0 {
            self.is_fresh = true;
        }
        let mut hasher = Hasher::new(&self.file.id, self.file.size.unwrap_or(0));
        let hashed = hash_rest(&mut out, &mut hasher, self.client.watch.stop);
        hashed.map_err(|e| match (self.client.watch.stop)() {
            true => Failure::Stopped,
            false => self.local("read", e),
        })?;
        // Complete on the disk already: no request needed.
        if self.file.size != Some(here) {
            let resume = (here > 0).then(|| Resume {
                from: here,
                if_range: self.file.is_own_etag.then(|| self.file.id.hex().to_owned()),
            });
            let answer = self.client.open(self.url, Purpose::Contents, resume.as_ref())?;
            if self.check(&answer, here)? == Start::Over && here > 0 {
                self.restart(&mut out)?;
                hasher = Hasher::new(&self.file.id, self.file.size.unwrap_or(0));
                here = 0;
            }
            self.receive(&answer, &mut out, &mut hasher, here, progress)?;
        }
        out.sync_all().map_err(|e| self.local("write", e))?;
        let found = match self.file.size {
            Some(_) => hasher.finish(&self.file.id),
            // A Git id hashes the length first, which is known only now.
            None => {
                let rewound = out.seek(SeekFrom::Start(0));
                rewound
                    .and_then(|_| hash_file(&mut out, &self.file.id, self.client.watch.stop))
                    .map_err(|e| self.local("read", e))?
            }
        };
        match found == self.file.id {
            true => Ok(()),
            false => self.damaged(&found),
        }
    }

    /// Where the bytes of the answer belong, according to its head; `here` bytes are on the disk.
    fn check(&self, answer: &Answer, here: u64) -> Result<Start, Failure> {
        let (head, size) = (&answer.head, self.file.size);
        if head.status == 416 && here > 0 {
            // The bytes on the disk are not the start of the hub's file.
            self.remove()?;
            return Err(Failure::Passing {
                what: "the hub does not have this range of the file".to_owned(),
                wait: Some(Duration::ZERO),
            });
        }
        check_status(head)?;
        if answer.commit.as_ref().is_some_and(|commit| !self.store.snapshot().ends_with(commit)) {
            return Err(Failure::Refused(
                "the file belongs to another commit than the list of files".to_owned(),
            ));
        }
        if answer.is_endpoint
            && self.file.is_own_etag
            && !head.is_linked()
            && head.content_id()?.is_some_and(|id| id != self.file.id)
        {
            return Err(Failure::Refused("the file changed while it was downloaded".to_owned()));
        }
        if head.is_encoded() {
            return Err(Failure::Refused("compressed content that was not requested".to_owned()));
        }
        let (start, first) = match head.status {
            200 => (Start::Over, 0),
            206 if here > 0 => match head.content_range()? {
                Some(range)
                    if range.first == here
                        && (size.is_none() || range.total.is_none_or(|n| Some(n) == size)) =>
                {
                    (Start::Here, here)
                }
                _ => return Err(Failure::Refused("another range of the file than requested".to_owned())),
            },
            other => return Err(Failure::Refused(format!("status {other} instead of the content"))),
        };
        if let (Some(size), Some(len)) = (size, head.content_length()?)
            && len != size - first
        {
            return Err(Failure::Refused(format!("{len} bytes announced instead of {}", size - first)));
        }
        Ok(start)
    }

    /// Writes the body of the answer behind the `here` bytes that are on the disk.
    fn receive(
        &mut self,
        answer: &Answer,
        out: &mut File,
        hasher: &mut Hasher,
        mut here: u64,
        progress: &mut u64,
    ) -> Result<(), Failure> {
        out.seek(SeekFrom::Start(here)).map_err(|e| self.local("write", e))?;
        let limit = self.file.size.unwrap_or(MAX_UNSIZED);
        let (mut since, mut arrived) = (Instant::now(), 0);
        loop {
            self.report(here, false);
            let at = here;
            let mut last = self.last_report;
            let piece =
                self.client.next(answer, &mut || report(self.client, self.file, at, &mut last, false))?;
            let Some(bytes) = piece else { break };
            if here + bytes.len() as u64 > limit {
                self.remove()?;
                return Err(Failure::Refused(format!("more than the expected {limit} bytes")));
            }
            out.write_all(&bytes).map_err(|e| self.local("write", e))?;
            hasher.update(&bytes);
            here += bytes.len() as u64;
            *progress = (*progress).max(here);
            arrived += bytes.len() as u64;
            if since.elapsed() > self.client.limits.pace {
                if arrived < self.client.limits.least_bytes && self.file.size != Some(here) {
                    let secs = since.elapsed().as_secs();
                    return Err(Failure::passing(format!("only {arrived} bytes arrived in {secs} s")));
                }
                (since, arrived) = (Instant::now(), 0);
            }
        }
        match self.file.size {
            Some(size) if here < size => {
                Err(Failure::passing(format!("the answer ended {} bytes too early", size - here)))
            }
            _ => {
                self.report(here, true);
                Ok(())
            }
        }
    }

    fn report(&mut self, done: u64, is_last: bool) {
        report(self.client, self.file, done, &mut self.last_report, is_last);
    }

    /// Handles a wrong hash: the file is removed. If bytes of an earlier run may be the cause, the download
    /// is tried once more.
    fn damaged(&mut self, found: &ContentId) -> Result<(), Failure> {
        self.remove()?;
        if !self.is_fresh {
            return Err(Failure::Passing {
                what: "the bytes of an earlier download are damaged".to_owned(),
                wait: Some(Duration::ZERO),
            });
        }
        let kind = found.kind();
        let what = format!("wrong {kind}: {} instead of {}", found.hex(), self.file.id.hex());
        Err(Failure::Refused(what))
    }

    fn restart(&mut self, out: &mut File) -> Result<(), Failure> {
        self.is_fresh = true;
        out.set_len(0).and_then(|()| out.rewind()).map_err(|e| self.local("write", e))
    }

    fn remove(&self) -> Result<(), Failure> {
        match std::fs::remove_file(self.store.incomplete(&self.file.id)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.local("remove", e)),
            _ => Ok(()),
        }
    }

    fn local(&self, action: &'static str, error: std::io::Error) -> Failure {
        let path = self.store.incomplete(&self.file.id);
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            let error = Error::input(CODE, "the disk is full").path(&path);
            let fix = "free space and try again (the download goes on), or set HF_HOME to a folder on a larger disk";
            return Failure::Local(error.fix(fix).as_io().into());
        }
        Failure::Local(Error::io(&path, action, error))
    }
}

/// Where the bytes of an answer begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Behind those that are on the disk.
    Here,
    /// At the beginning of the file.
    Over,
}

/// Reports progress, at limited frequency.
fn report(client: &Client<'_>, file: &Wanted, done: u64, last: &mut Option<Instant>, is_last: bool) {
    if !is_last && last.is_some_and(|last| last.elapsed() < REPORT) {
        return;
    }
    *last = Some(Instant::now());
    let total = file.size.unwrap_or(done + u64::from(!is_last));
    (client.watch.tell)(Progress::File { name: &file.name, done, total });
}
