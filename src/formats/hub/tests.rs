//! Tests of model names: folders, the cache, and downloads from a hub on this machine.

use std::cell::RefCell;
use std::os::unix::fs::symlink;

use super::*;

fn offline(root: &Path) -> HubEnv {
    HubEnv { cache_dir: Some(root.to_owned()), offline: true, ..HubEnv::default() }
}

fn resolve_offline(root: &Path, name: &str) -> Result<PathBuf> {
    resolve_model_with(name, &offline(root), &Watch::NOBODY)
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Adds a model that has these files to a cache.
fn add(root: &Path, id: &str, files: &[&str]) -> PathBuf {
    let repo = root.join(format!("models--{}", id.replace('/', "--")));
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for name in files {
        std::fs::write(snapshot.join(name), r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#)
            .unwrap();
    }
    snapshot
}

/// A cache with one model that has these files.
fn cache_with(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let snapshot = add(root.path(), "org/name", files);
    (root, snapshot)
}

const WHOLE: [&str; 2] = ["config.json", "model.safetensors"];

#[test]
fn a_folder_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().to_str().unwrap();
    let resolve = |name| resolve_model_with(name, &HubEnv::default(), &Watch::NOBODY);
    assert_eq!(resolve(name).unwrap(), dir.path());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(resolve(file.to_str().unwrap()).is_err());
}

#[test]
fn ids_cannot_name_paths() {
    for id in ["gpt2", "Qwen/Qwen3-0.6B", "org/name_1.5"] {
        assert_eq!(names::check_id(id), Ok(()), "{id}");
    }
    let long = "a".repeat(97);
    let bad = [
        "", "/", "a/", "/a", "a/b/c", "..", "../a", "a/..", "./a", "a/.b", "a--b", "a..b", "-a", "a-", "a.",
        "a b", "a\\b", "a\0", "あ", "a?b", "a#b", "a%2fb", "a:b", "a.git", "~", "~/a", &long,
    ];
    let root = tempfile::tempdir().unwrap();
    for id in bad {
        assert!(names::check_id(id).is_err(), "{id:?}");
        // An existing folder is no id: "/" and ".." are used as they are.
        if !Path::new(id).exists() {
            let error = resolve_offline(root.path(), id).unwrap_err().to_string();
            assert!(error.contains("fix:"), "{error}");
        }
    }
}

#[test]
fn a_complete_model_is_found_in_the_cache() {
    for files in
        [&WHOLE[..], &["config.json", "model.safetensors.index.json", "1.safetensors", "2.safetensors"]]
    {
        let (root, snapshot) = cache_with(files);
        for name in ["org/name", &format!("org/name@{COMMIT}")] {
            assert_eq!(resolve_offline(root.path(), name).unwrap(), snapshot);
        }
        let error = resolve_offline(root.path(), "org/name@v2").unwrap_err().to_string();
        assert!(error.contains("refs/v2 is missing"), "{error}");
    }
}

#[test]
fn an_incomplete_model_is_an_error_offline() {
    for (files, missing) in [
        (&["config.json"][..], "model.safetensors is missing"),
        (&["model.safetensors"], "config.json is missing"),
        (&["config.json", "model.safetensors.index.json", "1.safetensors"], "2.safetensors is missing"),
    ] {
        let (root, _) = cache_with(files);
        let error = resolve_offline(root.path(), "org/name").unwrap_err().to_string();
        assert!(error.contains("not complete in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn a_reference_out_of_the_cache_is_ignored() {
    let (root, _) = cache_with(&WHOLE);
    for commit in ["../../..", "..", "", "/etc", "main", "abc", &COMMIT[1..]] {
        std::fs::write(root.path().join("models--org--name/refs/main"), commit).unwrap();
        assert!(resolve_offline(root.path(), "org/name").is_err(), "{commit:?}");
    }
}

/// Incomplete and offline caches, from cases that users reported.
#[test]
fn caches_that_are_not_quite_whole() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let good = add(root, "org/good", &[]);
    let blobs = root.join("models--org--good/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    for (i, name) in WHOLE.iter().enumerate() {
        std::fs::write(blobs.join(i.to_string()), "{}").unwrap();
        symlink(format!("../../blobs/{i}"), good.join(name)).unwrap();
    }
    let newline = add(root, "org/newline", &WHOLE);
    std::fs::write(root.join("models--org--newline/refs/main"), format!("{COMMIT}\n")).unwrap();
    let norefs = add(root, "org/norefs", &WHOLE);
    std::fs::remove_dir_all(root.join("models--org--norefs/refs")).unwrap();
    add(root, "org/partial", &["config.json"]);

    let heard = RefCell::new(String::new());
    let tell = |progress: Progress<'_>| heard.borrow_mut().push_str(&format!("{progress:?}"));
    let resolve = |name| resolve_model_with(name, &offline(root), &Watch { tell: &tell, stop: &|| false });
    assert_eq!(resolve("org/good").unwrap(), good);
    assert_eq!(resolve("org/newline").unwrap(), newline);
    assert_eq!(*heard.borrow(), "");
    assert_eq!(resolve("org/norefs").unwrap(), norefs);
    assert!(heard.borrow().contains("no refs/main") && heard.borrow().contains("only snapshot"), "{heard:?}");
    for (name, words) in [
        ("org/partial", "model.safetensors is missing"),
        ("ORG/good", "but org/good is"),
        ("org/none", "downloads are off (HF_HUB_OFFLINE)"),
    ] {
        let error = resolve(name).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    // With two snapshots the choice is ambiguous.
    std::fs::create_dir(root.join("models--org--norefs/snapshots").join("f".repeat(40))).unwrap();
    assert!(resolve("org/norefs").unwrap_err().to_string().contains("refs/main is missing"));
}

/// A safetensors file with 16 bytes of data.
fn weights() -> Vec<u8> {
    let header = br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat()
}

#[test]
fn damage_in_the_cache_is_found_and_named() {
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let repair: [Damage<'_>; 4] = [
        ("config.json", &|blob| std::fs::write(blob, "{ }").unwrap(), "do not have its Git id"),
        ("config.json", &|blob| std::fs::write(blob, "").unwrap(), "is empty"),
        (
            "model.safetensors",
            &|blob| std::fs::write(blob, &weights()[..70]).unwrap(),
            "cut off: 70 bytes of 79",
        ),
        ("model.safetensors", &|blob| std::fs::write(blob, &weights()[..20]).unwrap(), "cut off"),
    ];
    for (name, damage, words) in repair {
        let (root, snapshot) = cache_with(&[]);
        let blobs = root.path().join("models--org--name/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        // `git hash-object` of "{}".
        let git = "9e26dfeeb6e641a33dae4961196235bdb965b21b";
        for (file, id, bytes) in
            [("config.json", git, b"{}".to_vec()), ("model.safetensors", &"a".repeat(64), weights())]
        {
            std::fs::write(blobs.join(id), bytes).unwrap();
            symlink(Path::new("../../blobs").join(id), snapshot.join(file)).unwrap();
        }
        assert_eq!(resolve_offline(root.path(), "org/name").unwrap(), snapshot);
        damage(&snapshot.join(name).canonicalize().unwrap());
        let error = resolve_offline(root.path(), "org/name").unwrap_err();
        let blob = snapshot.join(name).canonicalize().unwrap().display().to_string();
        assert!(error.to_string().contains(words) && error.to_string().contains(&blob), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
}

#[test]
fn advice_names_nothing_outside_the_cache() {
    let (root, snapshot) = cache_with(&["model.safetensors"]);
    let mine = root.path().join("a".repeat(40));
    std::fs::write(&mine, "{}").unwrap();
    symlink(&mine, snapshot.join("config.json")).unwrap();
    let error = resolve_offline(root.path(), "org/name").unwrap_err().to_string();
    let link = snapshot.join("config.json").display().to_string();
    assert!(error.contains(&format!("remove {link}")) && !error.contains(&"a".repeat(40)), "{error}");
}

#[test]
fn an_empty_file_is_damaged_unless_its_hash_is_that_of_nothing() {
    for (id, is_damaged) in
        [("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391".to_owned(), false), ("a".repeat(40), true)]
    {
        let (root, snapshot) = cache_with(&WHOLE);
        let blobs = root.path().join("models--org--name/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(&id), "").unwrap();
        symlink(Path::new("../../blobs").join(&id), snapshot.join("chat_template.jinja")).unwrap();
        let found = resolve_offline(root.path(), "org/name");
        assert_eq!(found.is_err(), is_damaged, "{found:?}");
    }
}

#[test]
fn a_bit_that_changed_is_found_on_demand() {
    let (root, snapshot) = cache_with(&["not-in-the-cache.json"]);
    let blobs = root.path().join("models--org--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    // `sha256sum` of "hello\n".
    let id = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    std::fs::write(blobs.join(id), "hello\n").unwrap();
    symlink(Path::new("../../blobs").join(id), snapshot.join("model.safetensors")).unwrap();
    assert_eq!(verify(&snapshot, &Watch::NOBODY).unwrap(), 1);
    std::fs::write(blobs.join(id), "hellO\n").unwrap();
    let error = verify(&snapshot, &Watch::NOBODY).unwrap_err();
    assert!(
        error.to_string().contains(&format!("remove {}", blobs.canonicalize().unwrap().display())),
        "{error}"
    );
    assert_eq!(error.exit_code(), 3);
    let stopped = verify(&snapshot, &Watch { tell: &|_| {}, stop: &|| true }).unwrap_err();
    assert_eq!(stopped.exit_code(), 130);
}

#[cfg(feature = "hub")]
mod with_a_hub {
    use super::super::testing::{Act, Hub, Place, Reply, files, limits};
    use super::*;

    #[test]
    fn a_model_is_downloaded_once() {
        let (hub, place) = (Hub::honest(), Place::new());
        let heard = RefCell::new(Vec::new());
        let tell = |progress: Progress<'_>| match progress {
            Progress::File { name, done, total } if done == total => {
                heard.borrow_mut().push(format!("{name} {total}"))
            }
            Progress::File { .. } => {}
            other => heard.borrow_mut().push(format!("{other:?}")),
        };
        let mut env = place.env(&hub);
        let dir = resolve_model_with("org/name", &env, &Watch { tell: &tell, stop: &|| false }).unwrap();
        let heard = heard.borrow();
        assert!(heard[0].contains("3 files, 293.0 KiB") && heard[0].contains("commit 0123456"), "{heard:?}");
        assert_eq!(heard[1..], ["config.json 2", "tokenizer.json 10", "model.safetensors 300000"]);
        let mut names: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
        assert!(dir.join("config.json").read_link().unwrap().starts_with("../../blobs"));
        assert_eq!(place.faults(), Vec::<String>::new());
        // Again: from the cache, with the hub or without it.
        let requests = hub.log.lock().unwrap().len();
        assert_eq!(resolve_model_with("org/name", &env, &Watch::NOBODY).unwrap(), dir);
        env.offline = true;
        assert_eq!(resolve_model_with("org/name", &env, &Watch::NOBODY).unwrap(), dir);
        assert_eq!(hub.log.lock().unwrap().len(), requests);
    }

    #[test]
    fn revisions_are_names_for_commits() {
        let (hub, place) = (Hub::honest(), Place::new());
        let dir = resolve_model_with("org/name@refs/pr/1", &place.env(&hub), &Watch::NOBODY).unwrap();
        assert_eq!(std::fs::read_to_string(place.repo().join("refs/refs/pr/1")).unwrap(), COMMIT);
        assert!(hub.log.lock().unwrap()[0].path.starts_with("/api/models/org/name/revision/refs%2Fpr%2F1?"));
        assert_eq!(resolve_offline(&place.cache(), &format!("org/name@{COMMIT}")).unwrap(), dir);
        let other = format!("org/name@{}", "b".repeat(40));
        let error = resolve_model_with(&other, &place.env(&hub), &Watch::NOBODY).unwrap_err().to_string();
        assert!(error.contains("another commit"), "{error}");
    }

    #[test]
    fn damage_is_repaired_where_the_hub_can_be_asked() {
        let (hub, place) = (Hub::honest(), Place::new());
        let env = place.env(&hub);
        let dir = resolve_model_with("org/name", &env, &Watch::NOBODY).unwrap();
        for (name, bytes) in [("tokenizer.json", &b"damaged"[..]), ("model.safetensors", b"")] {
            std::fs::write(dir.join(name).canonicalize().unwrap(), bytes).unwrap();
            let heard = RefCell::new(String::new());
            let tell = |progress: Progress<'_>| heard.borrow_mut().push_str(&format!("{progress:?}"));
            resolve_model_with("org/name", &env, &Watch { tell: &tell, stop: &|| false }).unwrap();
            assert!(heard.borrow().contains("damaged"), "{heard:?}");
            assert_eq!(std::fs::read(dir.join(name)).unwrap(), hub.files[name]);
        }
    }

    #[test]
    fn two_downloads_at_once_fetch_each_file_once() {
        let (hub, place) = (Hub::honest(), Place::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| place.download(&hub, &Watch::NOBODY).unwrap());
            }
        });
        let contents = hub.log.lock().unwrap().iter().filter(|request| request.is_store).count();
        assert_eq!((contents, hub.count("GET", "config.json")), (1, 1));
        assert_eq!(place.faults(), Vec::<String>::new());
    }

    #[test]
    fn without_links_the_snapshot_holds_the_files() {
        use super::super::{blob, http, origin, store};
        let (hub, place) = (Hub::honest(), Place::new());
        let model = ModelName::parse("org/name").unwrap();
        let mut store = store::Store::create(&place.cache(), &model, COMMIT).unwrap();
        store.can_link = false;
        let (limits, watch) = (limits(), Watch::NOBODY);
        let endpoint = origin::Url::parse_endpoint(&hub.endpoint).unwrap();
        let url = endpoint.join(&format!("/org/name/resolve/{COMMIT}/config.json"));
        let client = http::Client::new(endpoint, None, None, &limits, &watch);
        let id = hash::ContentId::parse("9e26dfeeb6e641a33dae4961196235bdb965b21b").unwrap();
        let wanted = store::Wanted { name: "config.json".into(), id, size: Some(2), is_own_etag: true };
        for _ in 0..2 {
            blob::fetch(&client, &store, &url, &wanted).unwrap();
            let file = store.snapshot().join("config.json");
            assert!(file.symlink_metadata().unwrap().is_file());
            assert_eq!(std::fs::read(file).unwrap(), b"{}");
        }
        assert_eq!(hub.count("GET", "config.json"), 1);
    }

    #[test]
    fn a_model_that_breaks_off_is_not_taken_for_complete() {
        let index = br#"{"weight_map":{"a":"1.safetensors"}}"#;
        let mut all = files();
        all.retain(|(name, _)| *name != "model.safetensors");
        all.extend([("model.safetensors.index.json", index.to_vec()), ("1.safetensors", weights())]);
        let gone = |request: &super::super::testing::Request, reply| match request.is_store {
            true => Act::Reply(Reply::new(404, b"")),
            false => Act::Reply(reply),
        };
        let (hub, place) = (Hub::start(all.clone(), std::sync::Arc::new(gone)), Place::new());
        let error = place.download(&hub, &Watch::NOBODY).unwrap_err().to_string();
        assert!(error.contains("1.safetensors") && error.contains("404"), "{error}");
        assert!(resolve_offline(&place.cache(), "org/name").is_err());
        let hub = Hub::start(all, std::sync::Arc::new(|_, reply| Act::Reply(reply)));
        let dir = place.download(&hub, &Watch::NOBODY).unwrap();
        assert_eq!(resolve_offline(&place.cache(), "org/name").unwrap(), dir);
    }

    #[test]
    fn weights_of_torch_save_are_fetched_where_a_model_has_no_others() {
        let bin = include_bytes!("../../../tests/golden/torch_bin/zip.bin").to_vec();
        let index = br#"{"weight_map":{"0.weight":"1.bin"}}"#.to_vec();
        let all = [
            vec![("config.json", b"{}".to_vec()), ("pytorch_model.bin", bin.clone())],
            vec![
                ("config.json", b"{}".to_vec()),
                ("pytorch_model.bin.index.json", index),
                ("1.bin", bin.clone()),
            ],
        ];
        for files in all {
            let last = files.last().unwrap().0;
            let hub = Hub::start(files, std::sync::Arc::new(|_, reply| Act::Reply(reply)));
            let place = Place::new();
            let dir = place.download(&hub, &Watch::NOBODY).unwrap();
            assert_eq!(std::fs::read(dir.join(last)).unwrap(), bin);
            assert_eq!(resolve_offline(&place.cache(), "org/name").unwrap(), dir);
            std::fs::remove_file(dir.join(last)).unwrap();
            assert!(resolve_offline(&place.cache(), "org/name").is_err(), "{last}");
        }
    }

    #[test]
    fn an_unknown_or_pickled_model_says_what_to_do() {
        let hub = Hub::start(
            vec![("config.json", b"{}".to_vec()), ("model.ckpt", Vec::new())],
            std::sync::Arc::new(|_, reply| Act::Reply(reply)),
        );
        let place = Place::new();
        let env = place.env(&hub);
        let error = resolve_model_with("org/other", &env, &Watch::NOBODY).unwrap_err().to_string();
        assert!(error.contains("not complete in the cache") && error.contains("spelling"), "{error}");
        let error = resolve_model_with("org/name", &env, &Watch::NOBODY).unwrap_err().to_string();
        assert!(error.contains("pickle"), "{error}");
    }

    #[test]
    fn a_hub_that_is_away_or_misnamed_is_said() {
        let place = Place::new();
        let at = |endpoint: &str| HubEnv {
            cache_dir: Some(place.cache()),
            endpoint: Some(endpoint.to_owned()),
            ..HubEnv::default()
        };
        let try_at = |endpoint: &str, watch: &Watch<'_>| {
            let model = ModelName::parse("org/name").unwrap();
            super::super::download::download(&place.cache(), &model, &at(endpoint), watch, &limits())
                .unwrap_err()
        };
        let error = try_at("http://127.0.0.1:1", &Watch::NOBODY);
        assert!(error.to_string().contains("check the network"), "{error}");
        assert_eq!(error.exit_code(), 3);
        for endpoint in
            ["hub.co", "ftp://hub.co", "https://user:hf_secret@hub.co", "https://hub.co/?a", "https://a b"]
        {
            let error = try_at(endpoint, &Watch::NOBODY);
            assert!(
                error.to_string().contains("HF_ENDPOINT") && !error.to_string().contains("hf_secret"),
                "{error}"
            );
            assert_eq!(error.exit_code(), 2);
        }
        let heard = RefCell::new(String::new());
        let tell = |progress: Progress<'_>| heard.borrow_mut().push_str(&format!("{progress:?}"));
        try_at("http://mirror.invalid", &Watch { tell: &tell, stop: &|| false });
        assert!(
            heard.borrow().contains("Warning") && heard.borrow().contains("no token is sent"),
            "{heard:?}"
        );
        // A model without a tokenizer is used if the hub cannot be reached.
        let snapshot = add(&place.cache(), "org/name", &WHOLE);
        assert_eq!(
            resolve_model_with("org/name", &at("http://127.0.0.1:1"), &Watch::NOBODY).unwrap(),
            snapshot
        );
    }
}
