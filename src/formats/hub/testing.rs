//! A local test hub: it serves one small model, and misbehaves as configured.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::env::{HubEnv, Token};
use super::hash::{ContentId, Hasher};
use super::http::Limits;
use super::names::ModelName;
use super::{Progress, Watch, download};
use crate::error::Result;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The user's secret; only the endpoint may see it.
pub(super) const TOKEN: &str = "hf_theSecretOfTheUser";

/// A request of a client.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// True if the request went to the store beside the hub.
    pub(super) is_store: bool,
    /// Number of equal requests before this one.
    pub(super) earlier: usize,
    /// The address of the store.
    pub(super) store: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it asks for the contents of `name`, or its head.
    pub(super) fn is(&self, method: &str, name: &str) -> bool {
        self.method == method && self.path.ends_with(&format!("/{name}"))
    }

    pub(super) fn is_listing(&self) -> bool {
        self.path.starts_with("/api/")
    }

    /// First requested byte.
    fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    /// Bytes of the body that are sent before the connection ends.
    pub(super) cut: Option<usize>,
    pub(super) is_chunked: bool,
}

impl Reply {
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        Self { status, headers: Vec::new(), body: body.to_vec(), cut: None, is_chunked: false }
            .with("content-length", body.len().to_string())
    }

    /// With this header instead of any of that name.
    pub(super) fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self
    }

    pub(super) fn chunked(mut self) -> Self {
        self.is_chunked = true;
        self.without("content-length").with("transfer-encoding", "chunked")
    }

    fn send(&self, method: &str, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(format!("{name}: ").as_bytes());
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head)?;
        if method == "HEAD" {
            return Ok(());
        }
        let body = &self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())];
        if !self.is_chunked {
            return stream.write_all(body);
        }
        for chunk in body.chunks(1000) {
            stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
            stream.write_all(chunk)?;
            stream.write_all(b"\r\n")?;
        }
        match self.cut {
            Some(_) => Ok(()),
            None => stream.write_all(b"0\r\n\r\n"),
        }
    }
}

/// Behaviour of the hub.
pub(super) enum Act {
    /// It sends this answer.
    Reply(Reply),
    /// It writes these bytes and closes the connection.
    Close(Vec<u8>),
    /// It writes these bytes, each piece after a pause, until the client has gone or the test ends.
    Drip(Vec<u8>, Vec<u8>, Duration),
}

/// Turns the correct answer into the behaviour of the hub.
pub(super) type Twist = Arc<dyn Fn(&Request, Reply) -> Act + Send + Sync>;

/// A hub, and the store beside it that holds its large files. Their threads end with it.
pub(super) struct Hub {
    pub(super) files: Arc<BTreeMap<String, Vec<u8>>>,
    pub(super) endpoint: String,
    pub(super) log: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    addresses: [String; 2],
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            let _ = TcpStream::connect(address);
        }
    }
}

/// The model of the tests.
pub(super) fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"not wanted".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", (0..300_000u32).map(|i| (i % 251) as u8).collect()),
        ("modeling_evil.py", b"not wanted".to_vec()),
        ("pytorch_model.bin", b"not wanted".to_vec()),
        ("tokenizer.json", b"{ \"a\": 1 }".to_vec()),
    ]
}

/// The id the hub gives a file: weights are large files.
pub(super) fn id_of(name: &str, bytes: &[u8]) -> String {
    let like = ContentId::parse(&"0".repeat(if is_large(name) { 64 } else { 40 })).unwrap();
    let mut hasher = Hasher::new(&like, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish(&like).hex().to_owned()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

impl Hub {
    pub(super) fn honest() -> Self {
        Self::start(files(), Arc::new(|_, reply| Act::Reply(reply)))
    }

    pub(super) fn start(files: Vec<(&'static str, Vec<u8>)>, twist: Twist) -> Self {
        let files: BTreeMap<String, Vec<u8>> = files.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1].map(|i| listeners[i].local_addr().unwrap().to_string());
        let hub = Self {
            files: Arc::new(files),
            endpoint: format!("http://{}", addresses[0]),
            log: Arc::default(),
            ended: Arc::default(),
            addresses: addresses.clone(),
        };
        for (i, listener) in listeners.into_iter().enumerate() {
            let (files, log, ended) = (hub.files.clone(), hub.log.clone(), hub.ended.clone());
            let (twist, store) = (twist.clone(), format!("http://{}", addresses[1]));
            std::thread::spawn(move || {
                let open = Arc::new(AtomicUsize::new(0));
                for stream in listener.incoming().map_while(std::io::Result::ok) {
                    if ended.load(Ordering::Relaxed) || open.fetch_add(1, Ordering::Relaxed) > 64 {
                        return;
                    }
                    let (files, log, ended) = (files.clone(), log.clone(), ended.clone());
                    let (twist, store, open) = (twist.clone(), store.clone(), open.clone());
                    std::thread::spawn(move || {
                        let _ = serve(stream, i == 1, &files, &store, &log, &ended, &twist);
                        open.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            });
        }
        hub
    }

    /// Number of requests for a file or its head.
    pub(super) fn count(&self, method: &str, name: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|request| request.is(method, name)).count()
    }
}

#[allow(clippy::too_many_arguments)]
fn serve(
    mut stream: TcpStream,
    is_store: bool,
    files: &BTreeMap<String, Vec<u8>>,
    store: &str,
    log: &Mutex<Vec<Request>>,
    ended: &AtomicBool,
    twist: &Twist,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines().map_while(std::io::Result::ok);
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: Vec<(String, String)> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
        .collect();
    let request = {
        let mut log = log.lock().unwrap();
        let earlier =
            log.iter().filter(|r| r.method == method && r.path == path && r.is_store == is_store).count();
        let request = Request { method, path, headers, is_store, earlier, store: store.to_owned() };
        log.push(request.clone());
        request
    };
    match twist(&request, honest(&request, files)) {
        Act::Reply(reply) => reply.send(&request.method, &mut stream),
        Act::Close(bytes) => stream.write_all(&bytes),
        Act::Drip(start, piece, pause) => {
            stream.write_all(&start)?;
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(pause);
                stream.write_all(&piece)?;
            }
            Ok(())
        }
    }
}

/// The right answer.
fn honest(request: &Request, files: &BTreeMap<String, Vec<u8>>) -> Reply {
    if request.path.starts_with("/api/models/org/name/revision/") {
        return Reply::new(200, listing(files, COMMIT).to_string().as_bytes());
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let at = format!("/org/name/resolve/{COMMIT}/");
    let prefix = if request.is_store { "/" } else { at.as_str() };
    let Some((name, bytes)) = path.strip_prefix(prefix).and_then(|name| Some((name, files.get(name)?)))
    else {
        return Reply::new(404, b"").with("x-error-code", "EntryNotFound");
    };
    if is_large(name) && !request.is_store {
        return Reply::new(302, b"Found")
            .with("location", format!("{}/{name}", request.store))
            .with("x-linked-etag", format!("\"{}\"", id_of(name, bytes)))
            .with("x-linked-size", bytes.len().to_string())
            .with("x-repo-commit", COMMIT)
            .with("etag", format!("\"{}\"", "f".repeat(40)));
    }
    let reply = match request.from() {
        Some(from) if from >= bytes.len() => Reply::new(416, b""),
        Some(from) => Reply::new(206, &bytes[from..])
            .with("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        None => Reply::new(200, bytes),
    };
    match request.is_store {
        true => reply.with("etag", "\"0123456789abcdef0123456789abcdef\""),
        false => reply.with("etag", format!("\"{}\"", id_of(name, bytes))).with("x-repo-commit", COMMIT),
    }
}

/// The listing of the model.
pub(super) fn listing(files: &BTreeMap<String, Vec<u8>>, commit: &str) -> serde_json::Value {
    let siblings = files.iter().map(|(name, bytes)| match is_large(name) {
        true => serde_json::json!({
            "rfilename": name, "size": bytes.len(), "blobId": "e".repeat(40),
            "lfs": {"sha256": id_of(name, bytes), "size": bytes.len(), "pointerSize": 134}
        }),
        false => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": id_of(name, bytes)}),
    });
    serde_json::json!({"id": "org/name", "sha": commit, "siblings": siblings.collect::<Vec<_>>()})
}

/// Short limits for tests.
pub(super) fn limits() -> Limits {
    let millis = Duration::from_millis;
    Limits {
        connect: millis(2000),
        head: millis(700),
        idle: millis(500),
        pace: millis(600),
        least_bytes: 1000,
        listing: millis(900),
        listing_bytes: 1 << 20,
        head_bytes: 16 << 10,
        redirects: 5,
        retries: 2,
        backoff: millis(20),
        retry_after: millis(1500),
        lock: millis(400),
    }
}

/// A folder with a cache in it and, beside the cache, a file that must not be changed.
pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("home")).unwrap();
        std::fs::write(dir.path().join("home/secret"), "mine").unwrap();
        Self { dir }
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(super) fn repo(&self) -> PathBuf {
        self.cache().join("models--org--name")
    }

    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(super) fn env(&self, hub: &Hub) -> HubEnv {
        HubEnv {
            cache_dir: Some(self.cache()),
            endpoint: Some(hub.endpoint.clone()),
            token: Some(Token::new(TOKEN)),
            ..HubEnv::default()
        }
    }

    pub(super) fn download(&self, hub: &Hub, watch: &Watch<'_>) -> Result<PathBuf> {
        let model = ModelName::parse("org/name").unwrap();
        download::download(&self.cache(), &model, &self.env(hub), watch, &limits())
    }

    /// Faults after a download: files outside the cache, or content with a wrong hash.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let names = |dir: &Path| -> Vec<String> {
            let entries = dir.read_dir().into_iter().flatten().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let beside = names(self.dir.path());
        if !beside.iter().all(|name| name == "home" || name == "cache") {
            faults.push(format!("beside the cache: {beside:?}"));
        }
        if names(&self.home()) != ["secret"] || std::fs::read(self.home().join("secret")).unwrap() != b"mine"
        {
            faults.push(format!("the home was changed: {:?}", names(&self.home())));
        }
        let inside = names(&self.cache());
        if !inside.iter().all(|name| name == ".locks" || name == "models--org--name") {
            faults.push(format!("in the cache: {inside:?}"));
        }
        let blobs = self.repo().join("blobs");
        if blobs.is_symlink() {
            return faults;
        }
        for name in names(&blobs).iter().filter(|name| !name.ends_with(".incomplete")) {
            let id = ContentId::parse(name).unwrap();
            let bytes = std::fs::read(blobs.join(name)).unwrap();
            let mut hasher = Hasher::new(&id, bytes.len() as u64);
            hasher.update(&bytes);
            if hasher.finish(&id) != id {
                faults.push(format!("{name} is not what it is called"));
            }
        }
        faults
    }
}

/// How a download ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// Success.
    Whole,
    /// Failure with this exit code and these words.
    Fails(u8, &'static str),
}

/// One misbehaviour: its name, what the hub does to the right answer, and how the download ends.
pub(super) type Case = (&'static str, fn(&Request, Reply) -> Act, End);

/// Longest time that a download may take with the limits of the tests, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// `twist` for the requests that `when` says, the right answer for others.
pub(super) fn only(when: bool, reply: Reply, twist: impl FnOnce(Reply) -> Reply) -> Act {
    Act::Reply(if when { twist(reply) } else { reply })
}

/// As [`only`] for something that drips.
pub(super) fn drip(when: bool, reply: Reply, start: &[u8], piece: &[u8], millis: u64) -> Act {
    match when {
        true => Act::Drip(start.to_vec(), piece.to_vec(), Duration::from_millis(millis)),
        false => Act::Reply(reply),
    }
}

pub(super) const WEIGHTS: &str = "model.safetensors";

/// A download from a hub that lies; `prepare` may leave things in the cache.
pub(super) fn run(
    name: &str,
    twist: Twist,
    files: Vec<(&'static str, Vec<u8>)>,
    prepare: &dyn Fn(&Place),
    end: End,
) -> Hub {
    let (hub, place) = (Hub::start(files, twist), Place::new());
    prepare(&place);
    let heard = RefCell::new(String::new());
    let start = Instant::now();
    let tell = |progress: Progress<'_>| heard.borrow_mut().push_str(&format!("{progress:?}\n"));
    let result = place.download(&hub, &Watch { tell: &tell, stop: &|| false });
    assert!(start.elapsed() < LIMIT, "{name}: it took {:?}", start.elapsed());
    assert_eq!(place.faults(), Vec::<String>::new(), "{name}");
    for request in hub.log.lock().unwrap().iter() {
        let knows = format!("{:?}", request.headers).contains(TOKEN);
        assert!(knows != request.is_store, "{name}: the token went to the wrong one: {request:?}");
    }
    assert!(!heard.borrow().contains(TOKEN), "{name}: {heard:?}");
    // A request's thread that panics sends no further message.
    assert!(!format!("{heard:?} {result:?}").contains("connection was lost"), "{name}: {result:?}");
    match (result, end) {
        (Ok(dir), End::Whole) => {
            for file in ["config.json", "tokenizer.json", WEIGHTS] {
                assert_eq!(std::fs::read(dir.join(file)).unwrap(), hub.files[file], "{name}: {file}");
            }
            assert_eq!(std::fs::read_to_string(place.repo().join("refs/main")).unwrap(), COMMIT);
        }
        (Err(error), End::Fails(code, words)) => {
            let text = format!("{error}\n{error:?}");
            assert!(text.contains(words) && text.contains("fix:"), "{name}: {text}");
            assert!(!text.contains(TOKEN), "{name}: {text}");
            assert_eq!(error.exit_code(), code, "{name}: {text}");
            assert!(!place.repo().join("refs/main").exists(), "{name}: the model counts as complete");
        }
        (result, _) => panic!("{name}: {result:?}, {}", heard.borrow()),
    }
    hub
}
