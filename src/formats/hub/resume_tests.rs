//! Downloads that resume, wait or stop, and caches with unexpected content.

use std::cell::RefCell;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Watch;
use super::testing::End::{Fails, Whole};
use super::testing::{
    Act, COMMIT, Case, End, Hub, Place, Reply, Twist, WEIGHTS, drip, files, id_of, limits, only, run,
};

/// The path of the file of weights that is not complete.
fn incomplete(place: &Place) -> std::path::PathBuf {
    let blobs = place.repo().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    blobs.join(format!("{}.incomplete", weights_id()))
}

fn weights() -> Vec<u8> {
    files().into_iter().find(|(name, _)| *name == WEIGHTS).unwrap().1
}

fn weights_id() -> String {
    id_of(WEIGHTS, &weights())
}

#[test]
fn a_download_goes_on_whatever_the_hub_makes_of_the_question() {
    let begun: &dyn Fn(&Place) = &|place| std::fs::write(incomplete(place), &weights()[..1000]).unwrap();
    let cases: [Case; 5] = [
        ("206", |_, a| Act::Reply(a), Whole),
        ("200 to a part", |r, a| only(r.is_store, a, |_| Reply::new(200, &weights())), Whole),
        (
            "416 once",
            |r, a| only(r.is_store && r.header("range").is_some(), a, |_| Reply::new(416, b"")),
            Whole,
        ),
        (
            "another range",
            |r, a| only(r.is_store, a, |a| a.with("content-range", "bytes 5-299999/300000")),
            Fails(3, "another range"),
        ),
        (
            "another whole",
            |r, a| only(r.is_store, a, |a| a.with("content-range", "bytes 1000-299999/300001")),
            Fails(3, "another range"),
        ),
    ];
    for (name, twist, end) in cases {
        let hub = run(name, Arc::new(twist), files(), begun, end);
        let log = hub.log.lock().unwrap();
        let asked = log.iter().find(|request| request.is_store).unwrap();
        assert_eq!(asked.header("range"), Some("bytes=1000-"), "{name}");
        // The store has an ETag of its own: the condition would never hold.
        assert_eq!(asked.header("if-range"), None, "{name}");
    }
    let config = id_of("config.json", b"{}");
    let small: &dyn Fn(&Place) = &|place| {
        incomplete(place);
        std::fs::write(place.repo().join(format!("blobs/{config}.incomplete")), "{").unwrap();
    };
    let hub = run("if-range", Arc::new(|_, a| Act::Reply(a)), files(), small, Whole);
    let log = hub.log.lock().unwrap();
    let asked = log.iter().find(|request| request.is("GET", "config.json")).unwrap();
    assert_eq!(asked.header("if-range"), Some(format!("\"{config}\"").as_str()));
}

#[test]
fn what_an_earlier_download_left_is_not_trusted() {
    for (name, left) in [
        ("damaged", vec![7; 1000]),
        ("damaged, all of it", vec![7; 300_000]),
        ("too long", vec![7; 300_001]),
        ("complete", weights()),
    ] {
        let prepare = |place: &Place| std::fs::write(incomplete(place), &left).unwrap();
        let hub = run(name, Arc::new(|_, reply| Act::Reply(reply)), files(), &prepare, Whole);
        let contents = hub.log.lock().unwrap().iter().filter(|request| request.is_store).count();
        assert_eq!(
            contents,
            match name {
                "complete" => 0,
                "damaged" => 2,
                _ => 1,
            },
            "{name}"
        );
    }
}

/// Content of the cache before a download: its name, how to create it, and how the download ends.
type Planted<'a> = (&'a str, &'a dyn Fn(&Place), End);

#[test]
fn links_in_the_cache_lead_nowhere() {
    let outside = |place: &Place| place.home().join("secret");
    let cases: [Planted<'_>; 8] = [
        (
            "unfinished weights are a link",
            &|place| symlink(outside(place), incomplete(place)).unwrap(),
            Whole,
        ),
        (
            "unfinished weights are a second name",
            &|place| std::fs::hard_link(outside(place), incomplete(place)).unwrap(),
            Whole,
        ),
        (
            "a blob is a link",
            &|place| {
                let blobs = incomplete(place).parent().unwrap().to_owned();
                symlink(outside(place), blobs.join(weights_id())).unwrap();
            },
            Whole,
        ),
        (
            "a file of the snapshot is a link",
            &|place| {
                let snapshot = place.repo().join("snapshots").join(COMMIT);
                std::fs::create_dir_all(&snapshot).unwrap();
                symlink(outside(place), snapshot.join("config.json")).unwrap();
            },
            Whole,
        ),
        (
            "the ref is a link",
            &|place| {
                std::fs::create_dir_all(place.repo().join("refs")).unwrap();
                symlink(outside(place), place.repo().join("refs/main")).unwrap();
            },
            Whole,
        ),
        (
            "the lock is a link",
            &|place| {
                let locks = place.cache().join(".locks/models--org--name");
                std::fs::create_dir_all(&locks).unwrap();
                symlink(outside(place), locks.join(format!("{}.lock", weights_id()))).unwrap();
            },
            Fails(3, "lock"),
        ),
        (
            "the model is a link",
            &|place| {
                std::fs::create_dir_all(place.cache()).unwrap();
                symlink(place.home(), place.repo()).unwrap();
            },
            Fails(2, "is not a folder"),
        ),
        (
            "the blobs are a link",
            &|place| {
                std::fs::create_dir_all(place.repo()).unwrap();
                symlink(place.home(), place.repo().join("blobs")).unwrap();
            },
            Fails(2, "is not a folder"),
        ),
    ];
    for (name, prepare, end) in cases {
        // A file behind a linked folder is not a blob of this cache.
        run(name, Arc::new(|_, reply| Act::Reply(reply)), files(), prepare, end);
    }
}

/// As `huggingface_hub` keeps them since its version 2.
#[test]
fn weights_in_the_store_that_models_share_are_used_as_they_are() {
    let mut flipped = weights();
    flipped[7] ^= 1;
    for (name, shared, num_requests) in
        [("whole", weights(), 0), ("cut off", weights()[..1000].to_vec(), 1), ("damaged", flipped, 1)]
    {
        let (hub, place) = (Hub::honest(), Place::new());
        let hash = "ab".repeat(32);
        let path = place.cache().join("blobs/ab").join(&hash);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &shared).unwrap();
        let blob = incomplete(&place).with_file_name(weights_id());
        symlink(format!("../../blobs/ab/{hash}"), &blob).unwrap();
        let dir = place.download(&hub, &Watch::NOBODY).unwrap();
        assert_eq!(std::fs::read(dir.join(WEIGHTS)).unwrap(), weights(), "{name}");
        let num_asked = hub.log.lock().unwrap().iter().filter(|request| request.is_store).count();
        assert_eq!((num_asked, blob.is_symlink()), (num_requests, num_requests == 0), "{name}");
        // Other models may link to it, so it must not be changed.
        assert_eq!(std::fs::read(&path).unwrap(), shared, "{name}");
    }
}

#[test]
fn a_lock_that_is_held_is_waited_for_within_limits() {
    let (hub, place) = (Hub::honest(), Place::new());
    let locks = place.cache().join(".locks/models--org--name");
    std::fs::create_dir_all(&locks).unwrap();
    let held = std::fs::File::create(locks.join(format!("{}.lock", weights_id()))).unwrap();
    held.lock().unwrap();
    let error = place.download(&hub, &Watch::NOBODY).unwrap_err();
    assert!(error.to_string().contains("holds the lock"), "{error}");
    assert_eq!(error.exit_code(), 3);
    // A leftover lock file that no process holds is not a lock.
    drop(held);
    place.download(&hub, &Watch::NOBODY).unwrap();
}

#[test]
fn a_stop_is_heard_at_once_and_what_arrived_is_kept() {
    let stalls: [(&str, Twist); 3] = [
        (
            "in the contents",
            Arc::new(|r, a| {
                drip(r.is_store, a, b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n\0\x01\x02", b"", 50)
            }),
        ),
        ("before the head", Arc::new(|r, a| drip(r.is_store, a, b"", b"", 50))),
        (
            "in a pause",
            Arc::new(|r, a| only(r.is_store, a, |_| Reply::new(429, b"").with("retry-after", "9"))),
        ),
    ];
    for (name, twist) in stalls {
        let (hub, place) = (Hub::start(files(), twist), Place::new());
        let mut limits = limits();
        (limits.head, limits.idle) = (Duration::from_secs(60), Duration::from_secs(60));
        limits.retry_after = Duration::from_secs(60);
        let model = super::names::ModelName::parse("org/name").unwrap();
        let is_asked = || hub.log.lock().unwrap().iter().any(|request| request.is_store);
        let since = RefCell::new(None);
        let stop = || {
            is_asked()
                && since.borrow_mut().get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(400)
        };
        let watch = Watch { tell: &|_| {}, stop: &stop };
        let error =
            super::download::download(&place.cache(), &model, &place.env(&hub), &watch, &limits).unwrap_err();
        assert!(since.borrow().unwrap().elapsed() < Duration::from_secs(8), "{name}");
        assert_eq!(error.exit_code(), 130, "{name}: {error}");
        assert_eq!(place.faults(), Vec::<String>::new());
        if name == "in the contents" {
            assert_eq!(std::fs::read(incomplete(&place)).unwrap(), [0, 1, 2]);
        }
        // Another try goes on from there.
        let hub = Hub::honest();
        place.download(&hub, &Watch::NOBODY).unwrap();
        let range =
            hub.log.lock().unwrap().iter().find(|r| r.is_store).unwrap().header("range").map(str::to_owned);
        assert_eq!(range.as_deref(), (name == "in the contents").then_some("bytes=3-"), "{name}");
    }
}
