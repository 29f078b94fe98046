//! Tests of the container: one named test per rule of the header, exhaustive damage, and the bytes of the official writer.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::error::Result;

/// A file with this header and `data` zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn check(bytes: &[u8]) -> Result<Header> {
    Header::parse(Path::new("x.safetensors"), bytes, bytes.len() as u64)
}

/// Asserts that the file is refused with a message that has `part` and a fix.
fn refused(bytes: &[u8], part: &str) {
    let error = check(bytes).expect_err(part).to_string();
    assert!(error.contains(part) && error.contains("fix:"), "wanted {part:?} in: {error}");
}

/// Asserts that a header, with 4 bytes of data, is refused.
fn refused_header(header: &str, part: &str) {
    refused(&file(header, 4), part);
}

fn named<'a>(name: &str, shape: &[usize], data: TensorData<'a>) -> NamedTensor<'a> {
    NamedTensor { name: name.to_owned(), shape: shape.to_vec(), data }
}

/// A small file with three types.
fn small() -> Vec<u8> {
    let tensors = [
        named("u", &[3], TensorData::U8(&[1, 2, 3])),
        named("w", &[2, 1], TensorData::F32(&[1.0, -2.0])),
        named("d", &[], TensorData::F64(&[0.5])),
    ];
    serialize(&tensors, &[("format", "pt")]).unwrap()
}

#[test]
fn a_file_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, small()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!((file.metadata("format"), file.metadata("other")), (Some("pt"), None));
    assert_eq!(file.names().collect::<Vec<_>>(), ["d", "u", "w"]);
    assert_eq!(file.data_bytes(), 8 + 8 + 3);
    let w = file.get("w").unwrap();
    assert_eq!((w.name(), w.dtype(), w.shape(), w.path()), ("w", Dtype::F32, &[2, 1][..], path.as_path()));
    assert_eq!(w.to_f32().unwrap(), [1.0, -2.0]);
    assert_eq!((w.bytes(5).unwrap(), w.num_bytes()), (vec![0, 0, 128, 63, 0], 8));
    drop((file.get("d"), file));
    assert_eq!(
        w.elements::<f32>().unwrap().unwrap(),
        [1.0, -2.0],
        "the file is open as long as its views live"
    );
}

#[test]
fn other_types_are_converted_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, small()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let d = file.get("d").unwrap();
    assert_eq!((d.to_f32().unwrap(), d.shape()), (vec![0.5], &[][..]));
    assert!(d.elements::<f32>().unwrap().is_none());
    let error = file.get("u").unwrap().to_f32().unwrap_err().to_string();
    assert!(error.contains("field \"u\"") && error.contains("got U8"), "{error}");
    assert!(file.get("missing").is_none());
}

#[test]
fn large_tensors_are_converted_in_parallel_to_the_same_numbers() {
    let numbers: Vec<half::bf16> = (0..600_001).map(|i| half::bf16::from_f32(i as f32)).collect();
    let size = numbers.len() * 2;
    let header = format!(r#"{{"a":{{"dtype":"BF16","shape":[600001],"data_offsets":[0,{size}]}}}}"#);
    let mut bytes = file(&header, 0);
    bytes.extend_from_slice(bytemuck::cast_slice(&numbers));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let view = TensorFile::open(&path).unwrap().get("a").unwrap();
    assert_eq!(view.elements::<half::bf16>().unwrap().unwrap(), numbers);
    let converted = view.to_f32().unwrap();
    assert!(
        converted.iter().zip(&numbers).all(|(a, b)| *a == b.to_f32()) && converted.len() == numbers.len()
    );
}

#[test]
fn numbers_may_lie_anywhere() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let header = format!("{header}{}", " ".repeat((9 - header.len() % 8) % 8));
    let mut bytes = file(&header, 0);
    assert_eq!(bytes.len() % 8, 1);
    bytes.extend_from_slice(&1.5f32.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let view = TensorFile::open(&path).unwrap().get("a").unwrap();
    assert_eq!(view.elements::<f32>().unwrap().unwrap(), [1.5]);
    assert_eq!(view.to_f32().unwrap(), [1.5]);
}

#[test]
fn our_bytes_are_those_of_the_official_writer() {
    let (a, b) = (7.0f32.to_le_bytes(), 2.0f64.to_le_bytes());
    let view =
        |dtype, shape: &[usize], data| ::safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data);
    let theirs = [
        ("b", view(::safetensors::Dtype::F32, &[1], &a).unwrap()),
        ("a\"é", view(::safetensors::Dtype::F32, &[1, 1], &a).unwrap()),
        ("z", view(::safetensors::Dtype::F64, &[1], &b).unwrap()),
        ("c", view(::safetensors::Dtype::U8, &[0, 4], &[]).unwrap()),
    ];
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let theirs = ::safetensors::serialize(theirs, Some(metadata)).unwrap();
    let ours = [
        named("b", &[1], TensorData::F32(&[7.0])),
        named("c", &[0, 4], TensorData::U8(&[])),
        named("z", &[1], TensorData::F64(&[2.0])),
        named("a\"é", &[1, 1], TensorData::F32(&[7.0])),
    ];
    assert_eq!(serialize(&ours, &[("format", "pt")]).unwrap(), theirs);
    let dir = tempfile::tempdir().unwrap();
    write_safetensors(&dir.path().join("a"), &ours, &[("format", "pt")]).unwrap();
    assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), theirs);
    check(&theirs).unwrap();
}

#[test]
fn a_file_may_be_written_over_while_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let numbers: Vec<f32> = (0..10_000).map(|i| i as f32).collect();
    write_safetensors(&path, &[named("a", &[10_000], TensorData::F32(&numbers))], &[]).unwrap();
    let old = TensorFile::open(&path).unwrap();
    old.check_unchanged().unwrap();
    write_safetensors(&path, &[named("a", &[10_000], TensorData::F32(&[2.0; 10_000]))], &[]).unwrap();
    assert_eq!(old.get("a").unwrap().to_f32().unwrap(), numbers, "the old file keeps its bytes");
    assert_eq!(old.check_unchanged().unwrap_err().exit_code(), 3);
    assert_eq!(TensorFile::open(&path).unwrap().get("a").unwrap().to_f32().unwrap(), [2.0; 10_000]);
}

#[test]
fn a_file_cut_short_while_it_is_open_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let numbers = vec![1.0f32; 1 << 20];
    write_safetensors(&path, &[named("a", &[1 << 20], TensorData::F32(&numbers))], &[]).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let view = file.get("a").unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 16).unwrap();
    for error in [
        view.to_f32().unwrap_err(),
        view.elements::<f32>().unwrap_err(),
        view.bytes(usize::MAX).unwrap_err(),
        file.check_unchanged().unwrap_err(),
    ] {
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("while it was in use"), "{error}");
    }
}

#[test]
fn bad_tensors_are_not_written() {
    let one = TensorData::F32(&[1.0]);
    for tensors in [
        vec![named("a", &[2], one)],
        vec![named("a", &[usize::MAX, 2], one)],
        vec![named("", &[1], one)],
        vec![named("a\n", &[1], one)],
        vec![named("__metadata__", &[1], one)],
        vec![named("a", &[1], one), named("a", &[1], one)],
    ] {
        assert!(serialize(&tensors, &[]).is_err(), "{tensors:?}");
    }
    assert!(serialize(&[], &[("a", "1"), ("a", "2")]).is_err());
    check(&serialize(&[], &[]).unwrap()).unwrap();
}

#[test]
fn the_header_must_fit() {
    refused(b"", "too short");
    refused(&[0; 7], "too short");
    refused(&[0; 8], "does not start");
    refused(&u64::MAX.to_le_bytes(), "header length");
    refused(&[&1u64.to_le_bytes()[..], b""].concat(), "header length");
    // 3 MB of header in a file of 3 MB is more than half of it plus 1 MB.
    let padding = " ".repeat(3_000_000);
    refused(&file(&format!("{{}}{padding}"), 0), "header length");
    check(&file("{}", 0)).unwrap();
}

#[test]
fn the_header_must_be_one_json_object() {
    refused_header(" {}", "does not start");
    refused_header("[]", "does not start");
    refused_header("{", "invalid header");
    refused_header("{}{}", "invalid header");
    refused_header("{}\0", "invalid header");
    refused_header("{\"a\":1}", "invalid header");
    refused_header("{\"a\":[\"F32\",[1],[0,4]]}", "invalid header");
    refused(&[&3u64.to_le_bytes()[..], b"{\xff}"].concat(), "invalid header");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull");
}

#[test]
fn keys_must_be_known_and_single() {
    let ok = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    check(&file(&format!("{{\"a\":{ok}}}"), 4)).unwrap();
    refused_header(&format!("{{\"a\":{ok},\"a\":{ok}}}"), "is there twice");
    refused_header(&format!("{{\"a\":{ok},\"\\u0061\":{ok}}}"), "is there twice");
    refused_header(
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        "is there twice",
    );
    refused_header(r#"{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}"#, "is there twice");
    refused_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":0}}"#, "unknown key");
    refused_header(r#"{"a":{"dtype":"F32","shape":[1]}}"#, "missing field `data_offsets`");
    refused_header(r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, "missing field `shape`");
    refused_header(r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, "missing field `dtype`");
    refused_header(&format!("{{\"__metadata__\":{{}},\"__metadata__\":{{}},\"a\":{ok}}}"), "is there twice");
    refused_header(&format!("{{\"__metadata__\":{{\"a\":\"\",\"a\":\"\"}},\"a\":{ok}}}"), "is there twice");
    refused_header(&format!("{{\"__metadata__\":{{\"a\":1}},\"a\":{ok}}}"), "invalid header");
    refused_header(&format!("{{\"__metadata__\":[],\"a\":{ok}}}"), "invalid header");
    let null = check(&file(&format!("{{\"__metadata__\":null,\"a\":{ok}}}"), 4)).unwrap();
    assert!(null.text.is_empty(), "the library takes null for none");
}

#[test]
fn names_must_be_short_and_printable() {
    let header =
        |name: &str| format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}");
    check(&file(&header(&"a".repeat(512)), 4)).unwrap();
    refused_header(&header(""), "0 bytes");
    refused_header(&header(&"a".repeat(513)), "513 bytes");
    refused_header(&header("a\\u0000"), "control character");
    refused_header(&header("a\\n"), "control character");
    refused_header(&header("a\u{85}"), "control character");
}

#[test]
fn shapes_must_be_small_lists_of_whole_numbers() {
    let header =
        |shape: &str| format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,4]}}}}");
    check(&file(&header("[]"), 4)).unwrap();
    check(&file(&header("[1,1,1,1,1,1,1,1]"), 4)).unwrap();
    refused_header(&header("[1,1,1,1,1,1,1,1,1]"), "more than 8 dimensions");
    for shape in ["[-1]", "[1.0]", "[1e0]", "[\"1\"]", "[null]", "1", "{}", "[18446744073709551616]", "[-0]"]
    {
        refused_header(&header(shape), "invalid header");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let header =
        |shape: &str| format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,4]}}}}");
    for shape in [
        "[4294967296,4294967296]",
        "[18446744073709551615]",
        "[4611686018427387905]",
        "[9223372036854775808,2]",
    ] {
        refused_header(&header(shape), "shape overflows");
    }
    let offsets =
        |offsets: &str| format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{offsets}}}}}");
    refused_header(&offsets("[4,0]"), "offsets and shape disagree");
    refused_header(&offsets("[0,5]"), "offsets and shape disagree");
    refused_header(&offsets("[18446744073709551612,0]"), "offsets and shape disagree");
    for text in ["[0]", "[0,4,4]", "[]", "[-4,0]", "[0,4.0]", "4", "[0,18446744073709551616]"] {
        refused_header(&offsets(text), "invalid header");
    }
}

#[test]
fn types_of_the_library_are_known_and_only_used_ones_have_to_be_supported() {
    let header =
        |dtype: &str| format!("{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":[4],\"data_offsets\":[0,4]}}}}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    for dtype in ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"] {
        std::fs::write(&path, file(&header(dtype), 4)).unwrap();
        let view = TensorFile::open(&path).unwrap().get("a").unwrap();
        assert_eq!((view.dtype().to_string().as_str(), view.is_real()), (dtype, false));
        let error = view.to_f32().unwrap_err().to_string();
        assert!(error.contains("is not supported") && error.contains("field \"a\""), "{error}");
        assert!(!error.contains("damaged"), "{error}");
    }
    let small = r#"{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}"#;
    assert_eq!(check(&file(small, 4)).unwrap().tensors.info("a").unwrap().dtype, Dtype::F4);
    refused_header(r#"{"a":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}}"#, "offsets and shape disagree");
    for dtype in ["F9", "f32", ""] {
        let error = check(&file(&header(dtype), 4)).unwrap_err().to_string();
        assert!(error.contains("type of the tensor is unknown") && error.contains("fix:"), "{error}");
        assert!(!error.contains("damaged"), "{error}");
    }
}

#[test]
fn data_must_be_covered_exactly() {
    let two = |a: [u64; 2], b: [u64; 2]| {
        let entry = |[from, to]: [u64; 2]| {
            format!("{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{from},{to}]}}", to - from)
        };
        format!("{{\"a\":{},\"b\":{}}}", entry(a), entry(b))
    };
    check(&file(&two([2, 4], [0, 2]), 4)).unwrap();
    check(&file(&two([0, 4], [4, 4]), 4)).unwrap();
    check(&file(&two([0, 4], [0, 0]), 4)).unwrap();
    refused_header(&two([0, 2], [3, 4]), "there is a gap before");
    refused_header(&two([1, 2], [2, 4]), "there is a gap before");
    refused_header(&two([0, 3], [2, 4]), "overlaps");
    refused_header(&two([0, 4], [0, 4]), "overlaps");
    refused_header(&two([0, 4], [2, 2]), "overlaps");
    refused_header(&two([0, 2], [2, 3]), "does not end where");
    refused_header(&two([0, 2], [2, 5]), "does not end where");
    refused_header(&two([0, 1 << 60], [1 << 60, 1 << 61]), "does not end where");
    refused_header(&two([0, 1 << 62], [1 << 62, 1 << 63]), "shape overflows");
    refused(&file("{}", 1), "does not end where");
}

#[test]
fn a_dimension_beside_a_zero_may_be_large() {
    let header = r#"{"a":{"dtype":"U8","shape":[0,4611686018427387904],"data_offsets":[0,0]}}"#;
    assert_eq!(check(&file(header, 0)).unwrap().tensors.info("a").unwrap().shape, [0, 1 << 62]);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small();
    check(&bytes).unwrap();
    for length in 0..bytes.len() {
        assert!(check(&bytes[..length]).is_err(), "{length} bytes");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(check(&longer).is_err());
}

#[test]
fn every_changed_byte_of_the_header_is_an_error_or_a_valid_file() {
    let bytes = small();
    let header_end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for i in 0..header_end {
        for value in 0..=255 {
            let mut damaged = bytes.clone();
            damaged[i] = value;
            if let Ok(header) = check(&damaged) {
                for name in &header.names {
                    let (start, end) = header.tensors.info(name).unwrap().data_offsets;
                    assert!(start <= end && header.data_start as usize + end <= damaged.len());
                }
                // Every file that is accepted here is accepted by the official reader.
                ::safetensors::SafeTensors::deserialize(&damaged).unwrap();
            }
        }
    }
}

#[test]
fn many_tensors_are_refused_early() {
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let names: Vec<String> = (0..1_000_001).map(|i| format!("\"{i}\":{entry}")).collect();
    let header = format!("{{{}}}", names.join(","));
    let padding = header.len();
    refused(&file(&header, padding), "more than 1000000 tensors");
}

proptest! {
    #[test]
    fn random_files_never_panic(header in ".{0,200}", data in 0usize..20) {
        let _ = check(&file(&header, data));
    }

    #[test]
    fn random_tensors_come_back(shapes in proptest::collection::vec(proptest::collection::vec(0usize..5, 0..4), 0..6)) {
        let data: Vec<Vec<f32>> =
            shapes.iter().map(|shape| (0..shape.iter().product()).map(|i: usize| i as f32).collect()).collect();
        let tensors: Vec<NamedTensor<'_>> = shapes
            .iter()
            .zip(&data)
            .enumerate()
            .map(|(i, (shape, data))| named(&i.to_string(), shape, TensorData::F32(data)))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_safetensors(&path, &tensors, &[]).unwrap();
        let file = TensorFile::open(&path).unwrap();
        for tensor in &tensors {
            let view = file.get(&tensor.name).unwrap();
            prop_assert_eq!(view.shape(), &tensor.shape[..]);
            let i: usize = tensor.name.parse().unwrap();
            prop_assert_eq!(view.to_f32().unwrap(), data[i].clone());
            prop_assert_eq!(view.elements::<f32>().unwrap().unwrap(), data[i].clone());
        }
    }
}
