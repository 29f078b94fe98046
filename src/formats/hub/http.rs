//! One request to the hub: limits of time and size, redirects by our rules, the token for the endpoint only.
//!
//! Every request runs on a thread of its own and hands over what arrives; the caller waits for it in short
//! turns and asks between them whether to stop. So a stop takes effect at once whatever the network does, and
//! an abandoned thread ends by its own time-outs.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ureq::http::{Method, Request};

use super::env::Token;
use super::headers::{Head, Odd};
use super::origin::{Origin, Url};
use super::{CODE, Progress, Watch};
use crate::error::{Error, Result};

/// Limits of time and size. A download that keeps a reasonable pace may take any time.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Time-out of connecting, including DNS and TLS.
    pub(super) connect: Duration,
    /// Time-out until the head of an answer is complete.
    pub(super) head: Duration,
    /// Time-out between two pieces of an answer.
    pub(super) idle: Duration,
    /// Period in which at least [`Limits::least_bytes`] of a file must arrive; a slower download fails.
    pub(super) pace: Duration,
    /// Minimum bytes per [`Limits::pace`].
    pub(super) least_bytes: u64,
    /// Time-out for a whole list of files.
    pub(super) listing: Duration,
    /// Maximum size of a list of files, in bytes.
    pub(super) listing_bytes: u64,
    /// Maximum size of the head of an answer, in bytes.
    pub(super) head_bytes: usize,
    /// Maximum redirects of one request.
    pub(super) redirects: usize,
    /// Number of retries.
    pub(super) retries: u32,
    /// Pause before the first retry; it doubles with every retry.
    pub(super) backoff: Duration,
    /// Maximum pause that a hub may request.
    pub(super) retry_after: Duration,
    /// How long to wait for another process that downloads the same file without progress.
    pub(super) lock: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            connect: secs(15),
            head: secs(60),
            idle: secs(60),
            pace: secs(60),
            least_bytes: 64 << 10,
            listing: secs(180),
            listing_bytes: 64 << 20,
            head_bytes: 64 << 10,
            redirects: 5,
            retries: 5,
            backoff: secs(1),
            retry_after: secs(120),
            lock: secs(600),
        }
    }
}

/// Maximum pause between two tries, unless the hub requests more.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Interval of polling for a stop.
const TURN: Duration = Duration::from_millis(50);

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The user asked to stop.
    Stopped,
    /// A retry may succeed.
    Passing {
        /// What happened.
        what: String,
        /// The wait that the hub requests.
        wait: Option<Duration>,
    },
    /// The answer breaks a rule; nothing of it is used.
    Refused(String),
    /// The hub refuses the request.
    Status {
        /// The status.
        code: u16,
        /// The hub's message, if there is one.
        explanation: Option<String>,
    },
    /// A local error, not one of the hub.
    Local(Error),
}

impl Failure {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Self::Passing { what: what.into(), wait: None }
    }

    /// What happened, for messages.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Stopped => "it was stopped".to_owned(),
            Self::Passing { what, .. } | Self::Refused(what) => what.clone(),
            Self::Status { code, explanation } => match explanation {
                Some(explanation) => format!("status {code} ({explanation})"),
                None => format!("status {code}"),
            },
            Self::Local(error) => error.to_string(),
        }
    }
}

impl From<Odd> for Failure {
    fn from(odd: Odd) -> Self {
        Self::Refused(format!("the hub's header {} is invalid: {}", odd.header, odd.got))
    }
}

/// The purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The head of a file, from the endpoint itself, which also describes files stored elsewhere.
    Describe,
    /// The content, following redirects.
    Contents,
}

/// A part of a file, with the condition that the file is unchanged.
#[derive(Debug, Clone)]
pub(super) struct Resume {
    /// First requested byte.
    pub(super) from: u64,
    /// The `ETag` of the first bytes, if they came from the endpoint itself.
    pub(super) if_range: Option<String>,
}

/// The beginning of an answer; its body follows through [`Client::next`].
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    /// The commit that the endpoint named.
    pub(super) commit: Option<String>,
    /// Whether the endpoint itself answered.
    pub(super) is_endpoint: bool,
    pieces: Receiver<Piece>,
}

/// A message from the thread of a request.
#[derive(Debug)]
enum Piece {
    Head(Head),
    Bytes(Vec<u8>),
    End,
    Failed(String),
}

/// A connection to one hub.
pub(super) struct Client<'a> {
    agent: ureq::Agent,
    pub(super) endpoint: Url,
    token: Option<Token>,
    pub(super) limits: &'a Limits,
    pub(super) watch: &'a Watch<'a>,
}

impl<'a> Client<'a> {
    /// A client; `roots` are certificates to trust instead of Mozilla's.
    pub(super) fn new(
        endpoint: Url,
        token: Option<Token>,
        roots: Option<ureq::tls::RootCerts>,
        limits: &'a Limits,
        watch: &'a Watch<'a>,
    ) -> Self {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tanren/", env!("CARGO_PKG_VERSION")))
            // Compressed content has another length and another hash than the file, and may expand to any
            // size.
            .accept_encoding("identity")
            .max_response_header_size(limits.head_bytes)
            .timeout_resolve(Some(limits.connect))
            .timeout_connect(Some(limits.connect))
            .timeout_send_request(Some(limits.head))
            .timeout_recv_response(Some(limits.head))
            .timeout_per_read(Some(limits.idle))
            .timeout_per_write(Some(limits.idle));
        if endpoint.origin.is_loopback() {
            config = config.proxy(None);
        }
        if let Some(roots) = roots {
            config = config.tls_config(ureq::tls::TlsConfig::builder().root_certs(roots).build());
        }
        Self { agent: config.build().into(), endpoint, token, limits, watch }
    }

    /// True if a token is sent to the endpoint.
    pub(super) fn sends_token(&self) -> bool {
        self.token.is_some() && self.endpoint.origin.is_private()
    }

    /// `text` without the token.
    pub(super) fn scrub(&self, text: String) -> String {
        self.token.as_ref().map_or_else(|| text.clone(), |token| token.scrub(&text))
    }

    /// Asks for `url` at the endpoint and follows redirects as far as the purpose allows.
    pub(super) fn open(
        &self,
        url: &Url,
        purpose: Purpose,
        resume: Option<&Resume>,
    ) -> Result<Answer, Failure> {
        let mut url = url.clone();
        let mut seen: Vec<Url> = Vec::new();
        let mut commit: Option<String> = None;
        while seen.len() <= self.limits.redirects {
            let is_endpoint = url.origin == self.endpoint.origin;
            let (head, pieces) = self.send(&url, purpose, resume, is_endpoint)?;
            if is_endpoint && let Some(named) = head.commit()? {
                if commit.as_ref().is_some_and(|commit| *commit != named) {
                    return Err(Failure::Refused("the hub names two commits for one file".to_owned()));
                }
                commit = Some(named);
            }
            let is_redirect = matches!(head.status, 301 | 302 | 303 | 307 | 308);
            if !is_redirect {
                return Ok(Answer { head, commit, is_endpoint, pieces });
            }
            let Some(location) = head.bytes("location")? else {
                return Err(Failure::Refused(format!("status {} without a target", head.status)));
            };
            let next = match url.redirect(location, &self.endpoint.origin) {
                Ok(next) => next,
                Err(why) => return Err(Failure::Refused(format!("a redirect is not followed: {why}"))),
            };
            if purpose == Purpose::Describe && next.origin != self.endpoint.origin {
                return Ok(Answer { head, commit, is_endpoint, pieces });
            }
            seen.push(url);
            if seen.contains(&next) {
                return Err(Failure::Refused("redirects go in a circle".to_owned()));
            }
            url = next;
        }
        Err(Failure::Refused(format!("more than {} redirects", self.limits.redirects)))
    }

    /// Sends one request and waits for the head of its answer.
    fn send(
        &self,
        url: &Url,
        purpose: Purpose,
        resume: Option<&Resume>,
        is_endpoint: bool,
    ) -> Result<(Head, Receiver<Piece>), Failure> {
        let method = if purpose == Purpose::Describe { Method::HEAD } else { Method::GET };
        let mut request = Request::builder().method(method).uri(url.text());
        if let Some(token) = self.token.as_ref().filter(|_| is_endpoint && url.origin.is_private()) {
            request = request.header("authorization", format!("Bearer {}", token.secret()));
        }
        if let Some(resume) = resume {
            request = request.header("range", format!("bytes={}-", resume.from));
            // On another host the file has another `ETag`, so the condition would never hold.
            if let Some(etag) = resume.if_range.as_ref().filter(|_| is_endpoint) {
                request = request.header("if-range", format!("\"{etag}\""));
            }
        }
        let request = request.body(()).map_err(|_| Failure::Refused("an invalid address".to_owned()))?;
        let (sender, pieces) = sync_channel(8);
        let agent = self.agent.clone();
        let place = url.origin.clone();
        let worker = move || {
            // Sending fails if the caller has gone; then the message is not needed.
            let _ = run(&agent, request, &place, purpose, &sender);
        };
        let spawned = std::thread::Builder::new().name("hub".to_owned()).spawn(worker);
        spawned.map_err(|error| {
            Failure::Local(
                Error::input(CODE, "cannot start a thread for the download")
                    .got(error)
                    .fix("try again")
                    .as_io()
                    .into(),
            )
        })?;
        // The thread has its own time-outs; this one is a fallback.
        let patience = self.limits.connect * 2 + self.limits.head * 2 + Duration::from_secs(1);
        match self.wait(&pieces, patience, &mut || {})? {
            Piece::Head(head) => Ok((head, pieces)),
            Piece::Failed(what) => Err(Failure::passing(what)),
            Piece::Bytes(_) | Piece::End => Err(Failure::passing("no answer")),
        }
    }

    /// The next bytes of an answer; `None` at its end. `turn` is called regularly while waiting.
    pub(super) fn next(&self, answer: &Answer, turn: &mut dyn FnMut()) -> Result<Option<Vec<u8>>, Failure> {
        match self.wait(&answer.pieces, self.limits.idle + Duration::from_secs(1), turn)? {
            Piece::Bytes(bytes) => Ok(Some(bytes)),
            Piece::End => Ok(None),
            Piece::Failed(what) => Err(Failure::passing(what)),
            Piece::Head(_) => Err(Failure::passing("two answers")),
        }
    }

    fn wait(
        &self,
        pieces: &Receiver<Piece>,
        patience: Duration,
        turn: &mut dyn FnMut(),
    ) -> Result<Piece, Failure> {
        let start = Instant::now();
        loop {
            if (self.watch.stop)() {
                return Err(Failure::Stopped);
            }
            match pieces.recv_timeout(TURN) {
                Ok(piece) => return Ok(piece),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::passing("the connection was lost"));
                }
                Err(RecvTimeoutError::Timeout) if start.elapsed() > patience => {
                    return Err(Failure::passing(format!("nothing arrived for {} s", patience.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => turn(),
            }
        }
    }

    /// The body of a small answer.
    pub(super) fn text(&self, url: &Url) -> Result<Vec<u8>, Failure> {
        let limit = self.limits.listing_bytes;
        let too_large = || Failure::Refused(format!("the list of files is larger than {} MiB", limit >> 20));
        let start = Instant::now();
        let answer = self.open(url, Purpose::Contents, None)?;
        check_status(&answer.head)?;
        if answer.head.is_encoded() {
            return Err(Failure::Refused("compressed content that was not requested".to_owned()));
        }
        if answer.head.content_length()?.is_some_and(|len| len > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = self.next(&answer, &mut || {})? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(too_large());
            }
            if start.elapsed() > self.limits.listing {
                return Err(Failure::passing("the list of files arrives too slowly"));
            }
        }
        if answer.head.content_length()?.is_some_and(|len| len != bytes.len() as u64) {
            return Err(Failure::passing("the list of files broke off"));
        }
        Ok(bytes)
    }

    /// [`Client::retry_at_most`] with the usual number of tries.
    pub(super) fn retry<T>(&self, once: impl FnMut(&mut u64) -> Result<T, Failure>) -> Result<T, Failure> {
        self.retry_at_most(self.limits.retries, once)
    }

    /// Calls `once` until it succeeds, fails permanently, or the tries are used up. `once` reports its
    /// progress, and enough progress resets the number of tries.
    pub(super) fn retry_at_most<T>(
        &self,
        retries: u32,
        mut once: impl FnMut(&mut u64) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        /// Progress that resets the number of tries.
        const STEP: u64 = 1 << 20;
        let (mut tries, mut progress, mut counted) = (0, 0, 0);
        loop {
            let (what, wait) = match once(&mut progress) {
                Err(Failure::Passing { what, wait }) => (what, wait),
                other => return other,
            };
            if progress >= counted + STEP {
                (tries, counted) = (0, progress);
            }
            if tries == retries {
                return Err(Failure::passing(what));
            }
            let own = (self.limits.backoff * 2u32.saturating_pow(tries)).min(MAX_BACKOFF);
            let pause = wait.unwrap_or(own);
            if pause > self.limits.retry_after {
                return Err(Failure::passing(format!(
                    "{what}, and the hub asks to wait {} s",
                    pause.as_secs()
                )));
            }
            tries += 1;
            let seconds = pause.as_secs_f64();
            let text = format!("{what}; trying again in {seconds:.0} s ({tries} of {retries})");
            (self.watch.tell)(Progress::Note(&self.scrub(text)));
            self.pause(pause)?;
        }
    }

    /// Sleeps, unless asked to stop.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Failure> {
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            if (self.watch.stop)() {
                return Err(Failure::Stopped);
            }
            std::thread::sleep(left.min(TURN));
        }
        Ok(())
    }
}

/// Turns an error status into a failure, temporary or permanent.
pub(super) fn check_status(head: &Head) -> Result<(), Failure> {
    match head.status {
        200..=299 => Ok(()),
        408 | 425 | 429 | 500..=599 => {
            let status = Failure::Status { code: head.status, explanation: head.explanation() };
            Err(Failure::Passing {
                what: format!("the hub answered with {}", status.text()),
                wait: head.retry_after(),
            })
        }
        code => Err(Failure::Status { code, explanation: head.explanation() }),
    }
}

/// The body of a request's thread.
fn run(
    agent: &ureq::Agent,
    request: Request<()>,
    place: &Origin,
    purpose: Purpose,
    sender: &SyncSender<Piece>,
) -> Result<(), std::sync::mpsc::SendError<Piece>> {
    let mut response = match agent.run(request) {
        Ok(response) => response,
        Err(error) => return sender.send(Piece::Failed(format!("{}: {}", place.text(), describe(&error)))),
    };
    let headers = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let head = Head::new(response.status().as_u16(), headers);
    let has_body = purpose == Purpose::Contents && (200..300).contains(&head.status);
    sender.send(Piece::Head(head))?;
    if !has_body {
        return sender.send(Piece::End);
    }
    let mut reader = response.body_mut().as_reader();
    loop {
        let mut bytes = vec![0; 128 << 10];
        match reader.read(&mut bytes) {
            Ok(0) => return sender.send(Piece::End),
            Ok(n) => {
                bytes.truncate(n);
                sender.send(Piece::Bytes(bytes))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return sender
                    .send(Piece::Failed(format!("{}: the connection broke: {error}", place.text())));
            }
        }
    }
}

/// The error as text, without the URL: that of a signed download is a secret.
fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "the host is not known".to_owned(),
        // The resolver's error has no kind.
        ureq::Error::Io(error) if error.to_string().contains("lookup address") => {
            "the address of the host is not found".to_owned()
        }
        ureq::Error::BadUri(_) => "not an address".to_owned(),
        other => other.to_string(),
    }
}
