//! Files of torch.save (torch 2.9.1, `tests/golden/torch_bin/generate.py`), what is refused of others, and files that are damaged.

use std::fs::File;
use std::path::PathBuf;

use super::super::safetensors::{Dtype, TensorFile};
use super::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch_bin").join(name)
}

fn open(path: &Path) -> Result<TensorFile> {
    TensorFile::pickled(File::open(path).unwrap(), path)
}

#[test]
fn tensors_of_both_containers_are_read() {
    for name in ["zip.bin", "legacy.bin", "dict.bin"] {
        let file = open(&path(name)).unwrap();
        let all: Vec<&str> = file.names().collect();
        let expected = [
            "0.bias",
            "0.weight",
            "1.bias",
            "1.weight",
            "bfloat",
            "double",
            "empty",
            "half",
            "ids",
            "mask",
            "one",
            "parameter",
            "tied",
        ];
        assert_eq!(all, expected, "{name}");
        let of = |tensor: &str| {
            let view = file.get(tensor).unwrap();
            (view.shape().to_vec(), view.to_f32().unwrap())
        };
        assert_eq!(of("0.weight"), (vec![2, 3], vec![-1.0, -0.75, -0.5, -0.25, 0.0, 0.25]), "{name}");
        assert_eq!(of("1.bias"), (vec![2], vec![-1.0, 0.0]));
        // Two views of one storage.
        assert_eq!(of("half"), (vec![2, 3], vec![1.0, 1.5, 2.0, 2.5, 3.0, 3.5]));
        assert_eq!(of("tied"), (vec![4], vec![-1.0, -0.5, 0.0, 0.5]));
        assert_eq!(of("bfloat"), (vec![5], vec![-1.0, -0.875, -0.75, -0.625, -0.5]));
        assert_eq!(of("double"), (vec![2], vec![-1.0, 2.0]));
        assert_eq!(of("one"), (vec![], vec![2.5]));
        assert_eq!(of("empty"), (vec![0, 3], vec![]));
        assert_eq!(of("parameter"), (vec![2], vec![-1.0, 0.0]));
        let ids = file.get("ids").unwrap();
        assert_eq!((ids.dtype(), ids.shape(), ids.bytes(16).unwrap()[8]), (Dtype::I64, &[1, 4][..], 1));
        assert_eq!(file.get("mask").unwrap().bytes(2).unwrap(), [1, 0]);
        assert!(
            file.check_unchanged().is_ok() && file.metadata("format").is_none() && file.data_bytes() > 90
        );
    }
}

#[test]
fn what_is_no_tensor_is_refused_by_its_name_and_never_run() {
    let run = Path::new("/tmp/tanren_was_run");
    assert!(!run.exists());
    for (name, part) in [
        ("attack.bin", "posix.system"),
        ("attack_legacy.bin", "posix.system"),
        ("transposed.bin", "strides [1, 3] for [3, 2]"),
        ("nested.bin", "\"model\", which is no tensor"),
        ("epoch.bin", "\"epoch\", which is no tensor"),
        ("generate.py", "the pickle"),
    ] {
        let error = open(&path(name)).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("fix: "), "{name}: {error}");
    }
    assert!(!run.exists(), "a pickle was run");
}

/// The value of a pickle, or what is wrong with it.
fn fault(bytes: &[u8]) -> unpickle::Fault {
    let mut machine = Machine::new(bytes);
    machine.run().and_then(|value| machine.tensors(&value)).unwrap_err()
}

#[test]
fn hostile_pickles_end_in_an_error() {
    let deep: Vec<u8> = [vec![b')'], vec![0x85; 1_000_000], vec![b'.']].concat();
    let marks: Vec<u8> = [vec![b'('; 1_000_000], vec![b'.']].concat();
    let lists: Vec<u8> = [vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat();
    for bytes in [
        &deep[..],
        &marks,
        &lists,
        b"",
        b".",
        b"}",
        b"h\x05.",
        b"cos\nsystem\n(X\x02\x00\x00\x00lstR.",
        b"\x8c\x02os\x8c\x06system\x93)R.",
        b"X\xff\xff\xff\xffabc",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"}X\x01\x00\x00\x00aK\x01s.",
        b"}K\x01K\x01s.",
        b"(K\x01u.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01tR.",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nK\x01tQ.",
        b"}}b",
        b"i",
        b"\x8a\xff",
    ] {
        fault(bytes);
    }
    assert_eq!(fault(b"cos\nsystem\n."), unpickle::Fault::Refused("os.system".to_owned()));
}

/// Every prefix, and every byte changed in several ways: an error or the tensors, and nothing else.
#[test]
fn damaged_files_end_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged.bin");
    for name in ["zip.bin", "legacy.bin"] {
        let whole = std::fs::read(path(name)).unwrap();
        let tried = |bytes: &[u8]| {
            std::fs::write(&damaged, bytes).unwrap();
            if let Ok(file) = open(&damaged) {
                let views = file.names().filter_map(|name| file.get(name));
                views.for_each(|view| drop(view.bytes(1 << 20)));
            }
        };
        for end in (0..whole.len()).step_by(7) {
            tried(&whole[..end]);
        }
        for at in (0..whole.len()).step_by(3) {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                tried(&bytes);
            }
        }
    }
}

/// Small files that ask for much: texts and lists that are named again and again, long tuples as shapes.
#[test]
fn files_that_ask_for_too_much_are_refused() {
    let twice = |start: &[u8], step: &[u8]| {
        let mut bytes = start.to_vec();
        (0..2_000_000).for_each(|_| bytes.extend(step));
        bytes.push(b'.');
        fault(&bytes);
    };
    // A list of pairs that becomes a dictionary over and over.
    let mut pairs = b"](".to_vec();
    (0..100_000).for_each(|_| pairs.extend(b"K\x01K\x02\x86"));
    pairs.extend(b"eq\x00ccollections\nOrderedDict\nq\x01");
    twice(&pairs, b"h\x01h\x00\x85R");
    // A shape of 100,000 dimensions.
    let mut shape = b"(".to_vec();
    (0..100_000).for_each(|_| shape.extend(b"K\x01"));
    shape.extend(b"tq\x00(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x01tQq\x01");
    shape.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x02");
    twice(&shape, b"h\x02(h\x01K\x00h\x00h\x00tR");
    // A storage whose name has a megabyte.
    let mut name = b"X\x00\x00\x10\x00".to_vec();
    name.extend(vec![b'a'; 1 << 20]);
    name.extend(b"q\x00ctorch\nFloatStorage\nq\x01X\x07\x00\x00\x00storageq\x02");
    twice(&name, b"(h\x02h\x01h\x00NK\x01tQ");
}
