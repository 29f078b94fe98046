//! Hostile hubs that lie, stall and break: none can make a download write outside the cache, send the token
//! to other hosts, wait beyond its limits, or publish content that does not match its hash.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::testing::End::{Fails, Whole};
use super::testing::{Act, COMMIT, Case, Reply, TOKEN, WEIGHTS, drip, files, listing, only, run};

/// The list of files with another value in it.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Reply {
    let files = files().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let mut value = listing(&files, COMMIT);
    edit(&mut value);
    Reply::new(200, value.to_string().as_bytes())
}

fn named(name: &str) -> Reply {
    edited(|list| list["siblings"].as_array_mut().unwrap().push(serde_json::json!({"rfilename": name})))
}

const CASES: &[Case] = &[
    // Names that would become paths.
    (
        "etag is a path",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("etag", "\"../../../../home/escaped\"")),
        Fails(3, "etag"),
    ),
    (
        "linked etag is a path",
        |r, a| only(r.is("HEAD", WEIGHTS), a, |a| a.with("x-linked-etag", "\"../../../home/escaped\"")),
        Fails(3, "x-linked-etag"),
    ),
    (
        "etag is absolute",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("etag", "/tmp/escaped")),
        Fails(3, "etag"),
    ),
    (
        "etag is no text",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("etag", b"\"\xff\xfe\"".to_vec())),
        Fails(3, "etag"),
    ),
    ("no etag", |r, a| only(r.is("HEAD", "config.json"), a, |a| a.without("etag")), Fails(3, "which hash")),
    (
        "commit header is a path",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("x-repo-commit", "../../../../home")),
        Fails(3, "x-repo-commit"),
    ),
    (
        "listed commit is a path",
        |r, a| only(r.is_listing(), a, |_| edited(|list| list["sha"] = "../../../home".into())),
        Fails(3, "commit"),
    ),
    (
        "file name goes up",
        |r, a| only(r.is_listing(), a, |_| named("../../../../home/escaped")),
        Fails(3, "not safe"),
    ),
    (
        "file name is absolute",
        |r, a| only(r.is_listing(), a, |_| named("/tmp/escaped")),
        Fails(3, "not safe"),
    ),
    (
        "file name has backslashes",
        |r, a| only(r.is_listing(), a, |_| named("..\\escaped")),
        Fails(3, "not safe"),
    ),
    (
        "file name has a line end",
        |r, a| only(r.is_listing(), a, |_| named("a\r\nX-Evil: b")),
        Fails(3, "not safe"),
    ),
    (
        "listed hash is a path",
        |r, a| only(r.is_listing(), a, |_| edited(|list| list["siblings"][1]["blobId"] = "../x".into())),
        Fails(3, "is invalid"),
    ),
    // Redirects.
    (
        "redirects in a circle",
        |r, a| {
            only(r.is("HEAD", "config.json"), a, |_| {
                Reply::new(302, b"").with("location", format!("/org/name/resolve/{COMMIT}/config.json"))
            })
        },
        Fails(3, "circle"),
    ),
    (
        "redirects without end",
        |r, a| {
            only(r.path.contains("config.json"), a, |_| {
                Reply::new(302, b"").with("location", format!("{}x", r.path))
            })
        },
        Fails(3, "more than 5 redirects"),
    ),
    (
        "redirect to another host by http",
        |r, a| {
            only(r.is("HEAD", "config.json"), a, |_| {
                Reply::new(302, b"").with("location", "http://hub.invalid/x")
            })
        },
        Fails(3, "another host by http"),
    ),
    (
        "redirect to a file",
        |r, a| {
            only(r.is("GET", "config.json"), a, |_| {
                Reply::new(302, b"").with("location", "file:///etc/passwd")
            })
        },
        Fails(3, "neither https nor http"),
    ),
    (
        "redirect with a password",
        |r, a| {
            only(r.is("GET", "config.json"), a, |_| {
                Reply::new(307, b"").with("location", "https://a:b@hub.invalid/")
            })
        },
        Fails(3, "user name"),
    ),
    (
        "redirect to nowhere",
        |r, a| only(r.is("GET", "config.json"), a, |_| Reply::new(302, b"")),
        Fails(3, "without a target"),
    ),
    (
        "list of files moves on the hub",
        |r, a| {
            only(r.is_listing() && !r.path.ends_with("&x"), a, |_| {
                Reply::new(307, b"").with("location", format!("{}&x", r.path))
            })
        },
        Whole,
    ),
    (
        "list of files is elsewhere",
        |r, a| {
            only(r.is_listing() && !r.is_store, a, |_| {
                Reply::new(307, b"").with("location", format!("{}{}", r.store, r.path))
            })
        },
        Whole,
    ),
    (
        "small files move on the hub",
        |r, a| {
            only(r.path.ends_with("config.json"), a, |_| {
                Reply::new(307, b"").with("location", format!("{}?moved", r.path))
            })
        },
        Whole,
    ),
    // Heads.
    (
        "a huge header",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("x-huge", "a".repeat(1 << 20))),
        Fails(3, "header"),
    ),
    (
        "a thousand headers",
        |r, a| {
            only(r.is_listing(), a, |mut a| {
                a.headers.extend((0..1000).map(|i| (format!("x-{i}"), b"1".to_vec())));
                a
            })
        },
        Fails(3, ""),
    ),
    (
        "headers without end",
        |r, a| {
            drip(
                r.is_listing(),
                a,
                b"HTTP/1.1 200 OK\r\n",
                b"x-a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
                1,
            )
        },
        Fails(3, ""),
    ),
    (
        "headers byte by byte",
        |r, a| drip(r.is_listing(), a, b"HTTP/1.1 200 OK\r\nx-a: ", b"a", 100),
        Fails(3, "in time"),
    ),
    (
        "interim answers without end",
        |r, a| drip(r.is_listing(), a, b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 20),
        Fails(3, ""),
    ),
    ("silence", |r, a| drip(r.is_listing(), a, b"", b"", 100), Fails(3, "in time")),
    ("not HTTP", |r, a| drip(r.is_listing(), a, b"\0\x01SSH-2.0 hello\r\n\r\n", b"\0", 100), Fails(3, "")),
    (
        "two etags",
        |r, a| {
            only(r.is("HEAD", "config.json"), a, |mut a| {
                a.headers.push(("etag".into(), "a".repeat(40).into()));
                a
            })
        },
        Fails(3, "two values"),
    ),
    (
        "a negative length",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("content-length", "-5")),
        Fails(3, ""),
    ),
    // Lists of files.
    (
        "a web page for a list",
        |r, a| only(r.is_listing(), a, |_| Reply::new(200, b"<!DOCTYPE html><html>Log in</html>")),
        Fails(3, "web page"),
    ),
    (
        "a huge list",
        |r, a| only(r.is_listing(), a, |a| a.with("content-length", "99999999999")),
        Fails(3, "larger than"),
    ),
    (
        "a list without end",
        |r, a| drip(r.is_listing(), a, b"HTTP/1.1 200 OK\r\n\r\n[", &[b' '; 100_000], 1),
        Fails(3, "larger than"),
    ),
    (
        "a list byte by byte",
        |r, a| drip(r.is_listing(), a, b"HTTP/1.1 200 OK\r\n\r\n[", b" ", 50),
        Fails(3, "too slowly"),
    ),
    (
        "a deep list",
        |r, a| only(r.is_listing(), a, |_| Reply::new(200, "[".repeat(500_000).as_bytes())),
        Fails(3, "not the expected JSON"),
    ),
    (
        "half a list",
        |r, a| {
            only(r.is_listing(), a, |mut a| {
                a.cut = Some(50);
                a
            })
        },
        Fails(3, ""),
    ),
    // Contents.
    (
        "a stall in the contents",
        |r, a| drip(r.is_store, a, b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\nabc", b"", 100),
        Fails(3, "try again"),
    ),
    (
        "contents byte by byte",
        |r, a| drip(r.is_store, a, b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n", b"\0", 50),
        Fails(3, "bytes arrived in"),
    ),
    (
        "short contents, always",
        |r, a| {
            only(r.is("GET", "config.json"), a, |mut a| {
                a.cut = Some(0);
                a
            })
        },
        Fails(3, ""),
    ),
    (
        "short contents, once",
        |r, a| {
            only(r.is_store && r.earlier == 0, a, |mut a| {
                a.cut = Some(100_000);
                a
            })
        },
        Whole,
    ),
    (
        "longer than announced",
        |r, a| {
            only(r.is_store, a, |a| {
                let body = [a.body.as_slice(), b"more"].concat();
                Reply::new(200, &body)
            })
        },
        Fails(3, "300004 bytes announced"),
    ),
    (
        "longer in chunks",
        |r, a| {
            only(r.is_store, a, |a| {
                let body = [a.body.as_slice(), b"more"].concat();
                Reply::new(200, &body).chunked()
            })
        },
        Fails(3, "more than the expected 300000"),
    ),
    (
        "chunks that break off",
        |r, a| {
            only(r.is_store, a, |a| {
                let mut a = a.chunked();
                a.cut = Some(70_000);
                a
            })
        },
        Fails(3, ""),
    ),
    (
        "chunks, and no length anywhere",
        |r, a| match r.is_listing() {
            true => Act::Reply(edited(|list| {
                list["siblings"].as_array_mut().unwrap().iter_mut().for_each(|file| {
                    file.as_object_mut().unwrap().remove("size");
                })
            })),
            false => only(r.path.contains("config.json"), a, Reply::chunked),
        },
        Whole,
    ),
    (
        "weights with another bit",
        |r, a| {
            only(r.is_store, a, |mut a| {
                a.body[1234] ^= 1;
                a
            })
        },
        Fails(3, "wrong SHA-256"),
    ),
    (
        "a small file with another bit",
        |r, a| {
            only(r.is("GET", "config.json"), a, |mut a| {
                a.body = b"[]".to_vec();
                a
            })
        },
        Fails(3, "wrong Git id"),
    ),
    (
        "another size than listed",
        |r, a| only(r.is("HEAD", WEIGHTS), a, |a| a.with("x-linked-size", "7")),
        Fails(3, "than in the list"),
    ),
    (
        "another hash than listed",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.with("etag", format!("\"{}\"", "a".repeat(40)))),
        Fails(3, "than in the list"),
    ),
    (
        "a file of another commit",
        |r, a| only(r.is("HEAD", WEIGHTS), a, |a| a.with("x-repo-commit", "b".repeat(40))),
        Fails(3, "is of commit"),
    ),
    (
        "contents of another commit",
        |r, a| only(r.is("GET", "config.json"), a, |a| a.with("x-repo-commit", "b".repeat(40))),
        Fails(3, "another commit"),
    ),
    (
        "no commit",
        |r, a| only(r.is("HEAD", "config.json"), a, |a| a.without("x-repo-commit")),
        Fails(3, "of which commit"),
    ),
    (
        "packed contents",
        |r, a| only(r.is("GET", "config.json"), a, |a| a.with("content-encoding", "gzip")),
        Fails(3, "compressed"),
    ),
    (
        "contents that change",
        |r, a| only(r.is("GET", "config.json"), a, |a| a.with("etag", format!("\"{}\"", "a".repeat(40)))),
        Fails(3, "changed"),
    ),
    (
        "a part that nobody asked for",
        |r, a| {
            only(r.is_store, a, |mut a| {
                a.status = 206;
                a.with("content-range", "bytes 0-299999/300000")
            })
        },
        Fails(3, "status 206 instead of the content"),
    ),
    // Refusals and storms.
    ("429 for ever", |r, a| only(r.is_listing(), a, |_| Reply::new(429, b"")), Fails(3, "429")),
    (
        "429 for a day",
        |r, a| only(r.is_listing(), a, |_| Reply::new(429, b"").with("retry-after", "86400")),
        Fails(3, "asks to wait 86400 s"),
    ),
    (
        "429 once, for a second",
        |r, a| only(r.is_listing() && r.earlier == 0, a, |_| Reply::new(429, b"").with("retry-after", "1")),
        Whole,
    ),
    ("500 for ever", |r, a| only(r.is_store, a, |_| Reply::new(500, b"")), Fails(3, "500")),
    ("500 once each", |r, a| only(r.earlier == 0, a, |_| Reply::new(503, b"")), Whole),
    (
        "a connection that closes",
        |r, a| if r.is_listing() { Act::Close(b"HTTP/1.".to_vec()) } else { Act::Reply(a) },
        Fails(3, ""),
    ),
    ("a connection that closes at once", |_, _| Act::Close(Vec::new()), Fails(3, "")),
    (
        "gated",
        |r, a| only(!r.is_listing(), a, |_| Reply::new(403, b"").with("x-error-code", "GatedRepo")),
        Fails(2, "may read it"),
    ),
    (
        "unauthorised, with the token in its answer",
        |_, _| Act::Reply(Reply::new(401, b"").with("x-error-message", format!("bad token {TOKEN}"))),
        Fails(2, "bad token ***"),
    ),
    (
        "unknown",
        |_, _| Act::Reply(Reply::new(404, b"").with("x-error-code", "RepoNotFound")),
        Fails(2, "check the spelling"),
    ),
    ("a status that is none", |r, a| only(r.is_listing(), a, |_| Reply::new(999, b"")), Fails(3, "999")),
];

#[test]
fn no_misbehaviour_of_a_hub_does_harm() {
    assert!(CASES.len() >= 30);
    let next = AtomicUsize::new(0);
    // Most of their time is waiting.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((name, twist, end)) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(name, Arc::new(twist), files(), &|_| {}, *end);
                }
            });
        }
    });
}

#[test]
fn a_shard_name_that_goes_up_is_refused() {
    for (shard, words) in
        [("../../../../home/escaped.safetensors", "unsafe shard name"), ("lost.safetensors", "does not have")]
    {
        let index = serde_json::json!({"weight_map": {"a": shard}}).to_string().into_bytes();
        let mut files = files();
        files.retain(|(name, _)| *name != WEIGHTS);
        files.push(("model.safetensors.index.json", index));
        run(shard, Arc::new(|_, reply| Act::Reply(reply)), files, &|_| {}, Fails(2, words));
    }
}
