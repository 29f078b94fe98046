//! Tests of model names: folders, the cache, and downloads from a hub on this machine.

use std::path::Path;

use super::*;

fn offline(root: &Path) -> HubEnv {
    HubEnv { cache_dir: Some(root.to_owned()), offline: true, ..HubEnv::default() }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with one model that has these files.
fn cache_with(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let repo = root.path().join("models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), format!("{COMMIT}\n")).unwrap();
    for name in files {
        std::fs::write(snapshot.join(name), r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#)
            .unwrap();
    }
    (root, snapshot)
}

#[test]
fn the_environment_has_the_order_of_the_python_library() {
    let env = |pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, String)> = pairs.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        HubEnv::from_lookup(move |name| Some(pairs.iter().find(|(k, _)| k == name)?.1.clone().into()))
    };
    let cache =
        |pairs: &[(&str, &str)]| env(pairs).cache_dir.map(|p| p.display().to_string()).unwrap_or_default();
    let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
    assert_eq!(cache(&all), "/a");
    assert_eq!(cache(&all[1..]), "/b/hub");
    assert_eq!(cache(&all[2..]), "/c/huggingface/hub");
    assert_eq!(cache(&all[3..]), "/d/.cache/huggingface/hub");
    assert_eq!(cache(&[("HF_HOME", ""), ("HOME", "/d")]), "/d/.cache/huggingface/hub");
    assert_eq!(cache(&[]), "");
    assert!(env(&[("HF_HUB_OFFLINE", "1")]).offline && env(&[("TRANSFORMERS_OFFLINE", "YES")]).offline);
    assert!(!env(&[("HF_HUB_OFFLINE", "0")]).offline && !env(&[]).offline);
    assert_eq!(env(&[("HF_TOKEN", " t\n")]).token.as_deref(), Some("t"));
    assert_eq!(env(&[("HF_ENDPOINT", "http://m/")]).endpoint.as_deref(), Some("http://m"));
}

#[test]
fn a_folder_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().to_str().unwrap();
    assert_eq!(resolve_model_with(name, &HubEnv::default(), &|_| {}).unwrap(), dir.path());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(resolve_model_with(file.to_str().unwrap(), &HubEnv::default(), &|_| {}).is_err());
}

#[test]
fn ids_cannot_name_paths() {
    for id in ["gpt2", "Qwen/Qwen3-0.6B", "org/name_1.5"] {
        assert_eq!(check_id(id), Ok(()), "{id}");
    }
    let long = "a".repeat(97);
    let bad = [
        "", "/", "a/", "/a", "a/b/c", "..", "../a", "a/..", "./a", "a/.b", "a--b", "a..b", "-a", "a-", "a.",
        "a b", "a\\b", "a\0", "あ", "a?b", "a#b", "a%2fb", "a:b", "a.git", "~", "~/a", &long,
    ];
    let root = tempfile::tempdir().unwrap();
    for id in bad {
        assert!(check_id(id).is_err(), "{id:?}");
        // An existing folder is no id: "/" and ".." are used as they are.
        if !Path::new(id).exists() {
            let error = resolve_model_with(id, &offline(root.path()), &|_| {}).unwrap_err().to_string();
            assert!(error.contains("fix:"), "{error}");
        }
    }
}

#[test]
fn a_complete_model_is_found_in_the_cache() {
    for files in [
        &["config.json", "model.safetensors"][..],
        &["config.json", "model.safetensors.index.json", "1.safetensors", "2.safetensors"],
    ] {
        let (root, snapshot) = cache_with(files);
        assert_eq!(resolve_model_with("org/name", &offline(root.path()), &|_| {}).unwrap(), snapshot);
    }
}

#[test]
fn an_incomplete_model_is_an_error_offline() {
    for files in [
        &["config.json"][..],
        &["model.safetensors"],
        &["config.json", "model.safetensors.index.json", "1.safetensors"],
    ] {
        let (root, _) = cache_with(files);
        let error = resolve_model_with("org/name", &offline(root.path()), &|_| {}).unwrap_err().to_string();
        assert!(error.contains("not complete in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
    }
}

#[test]
fn a_reference_out_of_the_cache_is_ignored() {
    let (root, _) = cache_with(&["config.json", "model.safetensors"]);
    for commit in ["../../..", "..", "", "/etc", "main", "abc"] {
        std::fs::write(root.path().join("models--org--name/refs/main"), commit).unwrap();
        assert!(resolve_model_with("org/name", &offline(root.path()), &|_| {}).is_err(), "{commit:?}");
    }
}

#[cfg(feature = "hub")]
mod with_a_hub {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Serves one model in the way of the hub; returns its address. The thread ends with the process.
    fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files);
            }
        });
        address
    }

    fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let request = lines.next().unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut start, mut end) = (0, usize::MAX);
        for line in lines.take_while(|line| !line.is_empty()) {
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (from, to) = range.split_once('-').unwrap();
                start = from.parse().unwrap();
                end = to.parse().unwrap_or(usize::MAX);
            }
        }
        let (status, body, total) = if path.starts_with("/api/models/org/name") {
            let siblings: Vec<_> =
                files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let info = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes();
            ("200 OK", info, 0)
        } else if let Some(name) = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"))
            && let Some(file) = files.get(name)
        {
            let end = end.saturating_add(1).min(file.len());
            ("206 Partial Content", file[start..end].to_vec(), file.len())
        } else {
            ("404 Not Found", Vec::new(), 0)
        };
        let end = (start + body.len()).saturating_sub(1);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{end}/{total}\r\nETag: \"{}\"\r\n\
             x-repo-commit: {COMMIT}\r\nConnection: close\r\n\r\n",
            body.len(),
            path.rsplit('/').next().unwrap_or_default(),
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    }

    fn hub(files: &[(&str, &[u8])]) -> (tempfile::TempDir, HubEnv) {
        let root = tempfile::tempdir().unwrap();
        let files = files.iter().map(|&(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        let env = HubEnv {
            cache_dir: Some(root.path().join("hub")),
            endpoint: Some(serve(files)),
            ..HubEnv::default()
        };
        (root, env)
    }

    #[test]
    fn a_model_is_downloaded_once() {
        let index = br#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
        let (_root, mut env) = hub(&[
            ("README.md", b"not wanted"),
            ("config.json", b"{}"),
            ("tokenizer.json", b"{ }"),
            ("pytorch_model.bin", b"not wanted"),
            ("model.safetensors.index.json", index),
            ("1.safetensors", b"first"),
            ("2.safetensors", b"second"),
        ]);
        let seen = RefCell::new(Vec::new());
        let dir =
            resolve_model_with("org/name", &env, &|name| seen.borrow_mut().push(name.to_owned())).unwrap();
        let expected = [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "1.safetensors",
            "2.safetensors",
        ];
        assert_eq!(*seen.borrow(), expected);
        assert_eq!(std::fs::read(dir.join("2.safetensors")).unwrap(), b"second");
        env.offline = true;
        assert_eq!(resolve_model_with("org/name", &env, &|_| {}).unwrap(), dir);
    }

    #[test]
    fn a_model_that_breaks_off_is_not_taken_for_complete() {
        let index = br#"{"weight_map":{"a":"1.safetensors"}}"#;
        let (_root, mut env) = hub(&[("config.json", b"{}"), ("model.safetensors.index.json", index)]);
        let error = resolve_model_with("org/name", &env, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("1.safetensors failed") && error.contains("404"), "{error}");
        env.offline = true;
        assert!(resolve_model_with("org/name", &env, &|_| {}).is_err());
    }

    #[test]
    fn an_unknown_or_pickled_model_says_what_to_do() {
        let (_root, env) = hub(&[("config.json", b"{}"), ("pytorch_model.bin", b"")]);
        let error = resolve_model_with("org/other", &env, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("not complete in the cache") && error.contains("spelling"), "{error}");
        let error = resolve_model_with("org/name", &env, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("pickle"), "{error}");
        let nobody = HubEnv { endpoint: Some("http://127.0.0.1:1".into()), ..env };
        let error = resolve_model_with("org/name", &nobody, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("check the network"), "{error}");
    }

    #[test]
    fn a_cached_model_without_tokenizer_is_used_when_the_hub_is_away() {
        let (root, snapshot) = cache_with(&["config.json", "model.safetensors"]);
        let env = HubEnv {
            cache_dir: Some(root.path().to_owned()),
            endpoint: Some("http://127.0.0.1:1".into()),
            ..HubEnv::default()
        };
        assert_eq!(resolve_model_with("org/name", &env, &|_| {}).unwrap(), snapshot);
    }
}
