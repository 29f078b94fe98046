//! Downloading a model: which files, of which commit, and what to say if it fails.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::blob;
use super::cache::SMALL_FILES;
use super::env::HubEnv;
use super::http::{Client, Failure, Limits, Purpose, check_status};
use super::listing::{Listed, Listing};
use super::names::{self, ModelName};
use super::origin::{Url, percent_encode};
use super::store::{Store, Wanted};
use super::{CODE, Progress, Watch};
use crate::error::{Error, Result};
use crate::formats::model_folder::{pickle_fix, pickled};
use crate::formats::shard_index::{MAX_INDEX, ShardIndex};
use crate::formats::weight_files::{WeightFiles, WeightFormat};

/// Where models are if nobody says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// Largest file that is not weights; the largest tokenizers have 35 MB.
const MAX_SMALL: u64 = 256 << 20;

/// Largest file of certificates; those of all authorities have 250 KB.
const MAX_CERTIFICATES: u64 = 16 << 20;

/// Downloads the commit that the revision stands for, and returns its snapshot.
pub(super) fn download(
    root: &Path,
    model: &ModelName<'_>,
    env: &HubEnv,
    watch: &Watch<'_>,
    limits: &Limits,
) -> Result<PathBuf> {
    let endpoint = endpoint(env, watch)?;
    let client = Client::new(endpoint, env.find_token()?, roots(env)?, limits, watch);
    let hub = Hub { client: &client, model, root };
    let listing = hub.listing().map_err(|failure| hub.explain("the list of files", failure))?;
    let (names, files) = hub.small_files(&listing)?;
    let store = Store::create(root, model, &listing.commit)?;
    hub.fetch_all(&store, &listing, names, files)?;
    // The revision stands for the commit only now that all of it is here.
    store.write_ref(model.revision)?;
    Ok(store.snapshot())
}

/// The hub's address.
fn endpoint(env: &HubEnv, watch: &Watch<'_>) -> Result<Url> {
    let text = env.endpoint.as_deref().unwrap_or(ENDPOINT);
    let url = match Url::parse_endpoint(text) {
        Ok(url) => url,
        Err(why) => {
            // An address may hold a password.
            return Error::input(CODE, format!("HF_ENDPOINT is not the address of a hub: {why}"))
                .expected("https://HOST or https://HOST/PATH")
                .fix("correct HF_ENDPOINT, or unset it for huggingface.co")
                .into();
        }
    };
    if !url.origin.is_private() {
        let text = format!(
            "{} is not https: others on the network can read and change what is downloaded; no token is sent",
            url.origin.text()
        );
        (watch.tell)(Progress::Warning(&text));
    }
    Ok(url)
}

/// The certificates that the user trusts instead of Mozilla's.
fn roots(env: &HubEnv) -> Result<Option<ureq::tls::RootCerts>> {
    let Some(path) = &env.ca_file else { return Ok(None) };
    let failed = |e| Error::io(path, "read the certificates", e);
    let mut pem = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_CERTIFICATES + 1).read_to_end(&mut pem).map_err(failed)?;
    if pem.len() as u64 > MAX_CERTIFICATES {
        return Error::input(CODE, "the file is too large for certificates")
            .path(path)
            .expected(format!("at most {MAX_CERTIFICATES} bytes"))
            .fix("correct SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or unset it")
            .into();
    }
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Error::input(CODE, "no certificates")
            .path(path)
            .expected("certificates in PEM")
            .fix("correct SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or unset it")
            .into();
    }
    Ok(Some(ureq::tls::RootCerts::new_with_certs(&certificates)))
}

/// One model on one hub.
struct Hub<'a> {
    client: &'a Client<'a>,
    model: &'a ModelName<'a>,
    root: &'a Path,
}

impl Hub<'_> {
    /// The commit of the revision, and its files.
    fn listing(&self) -> Result<Listing, Failure> {
        let (id, revision) = (self.model.id, percent_encode(self.model.revision).replace('/', "%2F"));
        let url = self.client.endpoint.join(&format!("/api/models/{id}/revision/{revision}?blobs=true"));
        // Where nothing is begun, a user without a network hears of it soon.
        let bytes =
            self.client.retry_at_most(self.client.limits.retries.min(2), |_| self.client.text(&url))?;
        let listing = Listing::parse(&bytes)
            .map_err(|why| Failure::Refused(format!("the hub's list of files is refused: {why}")))?;
        if names::commit(self.model.revision).is_some_and(|wanted| wanted != listing.commit) {
            return Err(Failure::Refused(format!("the hub answers with another commit, {}", listing.commit)));
        }
        Ok(listing)
    }

    /// The files beside the weights that are wanted, and the weights or their index as the last; and which of these it is.
    fn small_files(&self, listing: &Listing) -> Result<(Vec<&'static str>, WeightFiles)> {
        let has = |name: &str| listing.files.contains_key(name);
        let id = self.model.text();
        if !has("config.json") {
            return Error::input(CODE, "the model has no config.json")
                .got(id)
                .fix("choose a transformers model")
                .into();
        }
        let mut names: Vec<&str> = SMALL_FILES.into_iter().filter(|name| has(name)).collect();
        match WeightFiles::find(has) {
            Some(files) => {
                names.push(files.name());
                Ok((names, files))
            }
            None => {
                let names: Vec<String> = listing.files.keys().cloned().collect();
                let error = Error::input(CODE, "the model has no safetensors weights").got(id);
                match pickled(&names) {
                    Some(name) => error.fix(pickle_fix(&name)).into(),
                    None => error.fix("choose a model with model.safetensors").into(),
                }
            }
        }
    }

    fn fetch_all(
        &self,
        store: &Store,
        listing: &Listing,
        names: Vec<&str>,
        files: WeightFiles,
    ) -> Result<()> {
        let describe =
            |name: &str| self.describe(listing, name).map_err(|failure| self.explain(name, failure));
        let fetch = |file: &Wanted| {
            let url = self.address(listing, &file.name);
            blob::fetch(self.client, store, &url, file).map_err(|failure| self.explain(&file.name, failure))
        };
        let mut wanted = names.into_iter().map(describe).collect::<Result<Vec<Wanted>>>()?;
        if let Some(index) = wanted.last().filter(|_| files.sharded) {
            fetch(index)?;
            for shard in self.shards(store, listing, files)? {
                wanted.push(describe(&shard)?);
            }
        }
        self.announce(store, listing, &wanted)?;
        wanted.iter().try_for_each(fetch)
    }

    /// The names in the index of shards.
    fn shards(&self, store: &Store, listing: &Listing, files: WeightFiles) -> Result<Vec<String>> {
        let path = store.snapshot().join(files.name());
        let index = ShardIndex::read(&path, files.format)?;
        match index.shards().into_iter().find(|shard| !listing.files.contains_key(*shard)) {
            Some(missing) => Error::input(CODE, "the index names a shard that the model does not have")
                .path(path)
                .got(missing)
                .fix("choose another revision of the model: this one is not complete")
                .into(),
            None => Ok(index.shards().into_iter().map(str::to_owned).collect()),
        }
    }

    /// Where the contents of a file of the commit are.
    fn address(&self, listing: &Listing, name: &str) -> Url {
        let path = format!("/{}/resolve/{}/{}", self.model.id, listing.commit, percent_encode(name));
        self.client.endpoint.join(&path)
    }

    /// What the file is, as the hub says where the file is, and as it said in its list.
    fn describe(&self, listing: &Listing, name: &str) -> Result<Wanted, Failure> {
        let url = self.address(listing, name);
        let answer = self.client.retry(|_| {
            let answer = self.client.open(&url, Purpose::Describe, None)?;
            if !(300..400).contains(&answer.head.status) {
                check_status(&answer.head)?;
            }
            Ok(answer)
        })?;
        match &answer.commit {
            Some(commit) if *commit == listing.commit => {}
            Some(commit) => {
                let text = format!("the file is of commit {commit}, the list of files of {}", listing.commit);
                return Err(Failure::Refused(text));
            }
            None => {
                return Err(Failure::Refused("the hub does not say of which commit the file is".to_owned()));
            }
        }
        let Some(id) = answer.head.content_id()? else {
            return Err(Failure::Refused("the hub does not say which hash the file has".to_owned()));
        };
        let listed = listing.files.get(name).cloned().unwrap_or_default();
        let size = answer.head.size()?;
        let agrees = |said: &Listed| {
            said.id.as_ref().is_none_or(|listed| *listed == id)
                && (said.size.is_none() || size.is_none() || said.size == size)
        };
        if !agrees(&listed) {
            return Err(Failure::Refused(
                "the file has another hash or size than in the list of files".to_owned(),
            ));
        }
        let size = size.or(listed.size);
        let limit = match name {
            name if WeightFormat::ALL.iter().any(|format| name == format.index()) => Some(MAX_INDEX),
            name if WeightFormat::ALL.iter().any(|format| name.ends_with(format.ending())) => None,
            _ => Some(MAX_SMALL),
        };
        if let (Some(limit), Some(size)) = (limit, size)
            && size > limit
        {
            return Err(Failure::Refused(format!("{size} bytes, where at most {limit} are reasonable")));
        }
        let is_own_etag = !answer.head.is_linked() && (200..300).contains(&answer.head.status);
        Ok(Wanted { name: name.to_owned(), id, size, is_own_etag })
    }

    /// Says how much is downloaded, and checks that there is room for it.
    fn announce(&self, store: &Store, listing: &Listing, wanted: &[Wanted]) -> Result<()> {
        let missing: Vec<&Wanted> = wanted.iter().filter(|file| !store.blob(&file.id).exists()).collect();
        let begun =
            |file: &Wanted| store.incomplete(&file.id).symlink_metadata().map_or(0, |data| data.len());
        let bytes: u64 = missing
            .iter()
            .map(|file| file.size.unwrap_or(0).saturating_sub(begun(file)))
            .fold(0, u64::saturating_add);
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!(
            "downloading {} (commit {:.7}): {}, {}, to {}",
            self.model.text(),
            listing.commit,
            match missing.len() {
                1 => "1 file".to_owned(),
                num_files => format!("{num_files} files"),
            },
            amount(bytes),
            store.root().display()
        );
        (self.client.watch.tell)(Progress::Note(&text));
        match store.free_bytes().filter(|&free| free < bytes) {
            Some(free) => Error::input(CODE, "not enough room for the model")
                .path(store.root())
                .got(format!("{} free", amount(free)))
                .expected(amount(bytes))
                .fix("free space, or set HF_HOME to a folder on a larger disk")
                .as_io()
                .into(),
            None => Ok(()),
        }
    }

    /// What went wrong in words that help.
    fn explain(&self, what: &str, failure: Failure) -> Error {
        let id = self.model.text();
        let network = "check the network (HF_ENDPOINT names a mirror), or download the model elsewhere and name its folder";
        let (is_io, fix) = match &failure {
            Failure::Local(_) | Failure::Stopped => (false, String::new()),
            Failure::Passing { .. } => {
                (true, format!("try again later (what has arrived is kept); {network}"))
            }
            Failure::Refused(_) => (true, format!("try again, or use another hub: {network}")),
            Failure::Status { code: 401 | 403, .. } => {
                let page = self.client.endpoint.join(&format!("/{}", self.model.id)).text();
                let token = match self.client.sends_token() {
                    true => {
                        "check that the token that was sent (HF_TOKEN, or the file of `hf auth login`) may read it"
                    }
                    false => "set HF_TOKEN",
                };
                (
                    false,
                    format!(
                        "check the id; for a gated or private model accept its licence at {page} and {token}"
                    ),
                )
            }
            Failure::Status { code: 404, .. } => (
                false,
                "check the spelling of the id and the revision, or the path if you meant a folder".to_owned(),
            ),
            Failure::Status { .. } => (true, network.to_owned()),
        };
        let got = match failure {
            Failure::Local(error) => return error,
            Failure::Stopped => {
                let what =
                    format!("the download of {id} was stopped; what has arrived is kept for the next time");
                return Error::Stopped { what };
            }
            other => self.client.scrub(other.text()),
        };
        let tried = format!(
            "no folder {id:?}, not complete in the cache {}, and downloading {what} from {} failed",
            self.root.display(),
            self.client.endpoint.origin.text()
        );
        let error = Error::input(CODE, tried).got(got).fix(fix);
        if is_io { error.as_io().into() } else { error.into() }
    }
}

/// Bytes for people.
fn amount(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1048576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1073741824.0),
    }
}
