//! Files of models and checkpoints, and what a hub answers.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tanren::formats::checkpoint::Manifest;
use tanren::formats::safetensors::Header;
use tanren::formats::shard_index::ShardIndex;
use tanren::formats::torch_bin::Layout;
use tanren::formats::weight_files::WeightFormat;

use super::name;

/// What tanren refuses and the library does not, by words of the error.
const STRICTER: [&str; 9] = [
    "bytes; 1 to 512 are allowed",
    "has a control character",
    "more than 8 dimensions",
    "more than 1000000 tensors",
    "unknown key",
    "is there twice",
    "invalid type: sequence",
    "header length out of range",
    "a Git LFS pointer",
];

/// Most bytes of data that are put behind a header.
const MOST_DATA: u64 = 1 << 16;

/// The input is a whole file, or the text of a header that gets its length before it and its data behind it.
pub(super) fn safetensors(input: &[u8]) {
    if input.first() != Some(&b'{') {
        return agree(input);
    }
    let ends = serde_json::from_slice::<Value>(input).ok().map(|header| {
        let end = |entry: &Value| entry.get("data_offsets")?.get(1)?.as_u64();
        header.as_object().into_iter().flatten().filter_map(|(_, entry)| end(entry)).max().unwrap_or(0)
    });
    let data = ends.unwrap_or(0);
    let mut file = (input.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(input);
    // A file that is too large to be made is only said to be there.
    let len = (file.len() as u64).saturating_add(data);
    if data > MOST_DATA {
        let _ = Header::parse(name(), &file, len);
        return;
    }
    file.resize(file.len() + data as usize, 0);
    agree(&file);
}

/// Tanren and the library read the same out of a file, or tanren says which of its rules is stricter.
fn agree(file: &[u8]) {
    let theirs = SafeTensors::read_metadata(file);
    match (Header::parse(name(), file, file.len() as u64), theirs) {
        (Ok(ours), Ok((_, theirs))) => {
            let ours = ours.tensors();
            assert_eq!(facts(ours), facts(&theirs), "names, types, shapes or offsets differ");
            assert_eq!(ours.data_len(), theirs.data_len());
            assert_eq!(ours.offset_keys(), theirs.offset_keys());
        }
        (Ok(_), Err(error)) => panic!("the library refuses what tanren accepts: {error}"),
        (Err(error), Ok(_)) => {
            let error = error.to_string();
            let known = STRICTER.iter().any(|rule| error.contains(rule));
            assert!(known, "the library accepts, and this is no rule of tanren's own: {error}");
        }
        (Err(_), Err(_)) => {}
    }
}

/// Name, type, shape and offsets of a tensor.
type Facts = (String, Dtype, Vec<usize>, (usize, usize));

/// Those of each tensor, sorted.
fn facts(header: &Metadata) -> Vec<Facts> {
    let tensors = header.tensors().into_iter();
    let mut facts: Vec<_> =
        tensors.map(|(name, info)| (name, info.dtype, info.shape.clone(), info.data_offsets)).collect();
    facts.sort();
    facts
}

/// Tensors of a file of `torch.save` lie in it, and have the bytes of their shapes.
pub(super) fn torch_bin(input: &[u8]) {
    let len = input.len() as u64;
    let Ok(layout) = Layout::read(std::io::Cursor::new(input), name(), len) else { return };
    for (name, info, start) in layout.tensors() {
        let bytes = info.shape.iter().product::<usize>() * info.dtype.bitsize() / 8;
        assert_eq!(info.data_offsets, (0, bytes), "{name}");
        assert!(start.checked_add(bytes as u64).is_some_and(|end| end <= len), "{name}");
    }
}

/// The names of shards are plain, and the map is the one that a plain reader of JSON sees.
pub(super) fn shard_index(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let format = WeightFormat::Safetensors;
    let Ok(index) = ShardIndex::parse(name(), format, text) else { return };
    // Other keys are passed over, also a number in them that no reader takes.
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    let plain: BTreeMap<String, String> = serde_json::from_value(value["weight_map"].clone()).unwrap();
    assert_eq!(index.weight_map, plain);
    for shard in index.shards() {
        assert!(is_plain(shard) && shard.ends_with(".safetensors"), "{shard:?}");
    }
    let again = json!({ "weight_map": index.weight_map }).to_string();
    assert_eq!(ShardIndex::parse(name(), format, &again).unwrap().weight_map, index.weight_map);
}

/// Whether a name stays in its folder when it is joined to one.
fn is_plain(name: &str) -> bool {
    let joined = std::path::Path::new("/folder").join(name);
    joined.parent() == Some(std::path::Path::new("/folder"))
        && joined.file_name().and_then(|last| last.to_str()) == Some(name)
        && !name.starts_with('.')
        && !name.contains(|c: char| c.is_control() || c == '\\')
}

/// The input as it is, and with the hash that it should have: else no changed manifest would get past the hash.
pub(super) fn manifest(input: &[u8]) {
    let _ = Manifest::parse(name(), input);
    let Ok(mut value) = serde_json::from_slice::<Value>(input) else { return };
    let Some(files) = value.get("files").and_then(Value::as_array) else { return };
    let mut lines = format!("{}\n", value["step"]);
    for file in files {
        let text = |key: &str| file[key].as_str().unwrap_or_default();
        lines.push_str(&format!("{}\n{}\n{}\n", text("name"), file["size"], text("sha256")));
    }
    let digest: String = Sha256::digest(lines).iter().map(|byte| format!("{byte:02x}")).collect();
    value["digest"] = digest.into();
    let Ok(manifest) = Manifest::parse(name(), value.to_string().as_bytes()) else { return };
    let names: Vec<&str> =
        value["files"].as_array().unwrap().iter().filter_map(|f| f["name"].as_str()).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(is_plain(name) && *name != "MANIFEST.json", "{name:?}");
        assert!(!names[..i].contains(name), "{name:?} twice");
    }
    let again = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(Manifest::parse(name(), &again).unwrap(), manifest);
    // One changed step is damage.
    value["step"] = (value["step"].as_u64().unwrap() ^ 1).into();
    assert!(Manifest::parse(name(), value.to_string().as_bytes()).is_err(), "a changed step is not seen");
}

/// Lines of `name: value`, of which everything is asked that is ever asked.
#[cfg(feature = "hub")]
pub(super) fn hub_headers(input: &[u8]) {
    use tanren::formats::hub::{Head, Url};
    /// The largest file that is believed in.
    const LARGEST: u64 = 1 << 44;
    let (status, input) = input.split_first().unwrap_or((&0, &[]));
    let line = |line: &[u8]| {
        let colon = line.iter().position(|&b| b == b':')?;
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        Some((name, line[colon + 1..].trim_ascii().to_vec()))
    };
    let lines: Vec<(String, Vec<u8>)> = input.split(|&b| b == b'\n').filter_map(line).collect();
    let status = [200, 206, 302, 404][usize::from(*status) % 4];
    let head = Head::new(status, lines.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if let Ok(Some(id)) = head.content_id() {
        assert!(matches!(id.hex().len(), 40 | 64) && is_hex(id.hex()), "{id:?}");
    }
    if let Ok(Some(commit)) = head.commit() {
        assert!(commit.len() == 40 && is_hex(&commit), "{commit:?}");
    }
    if let Ok(Some(range)) = head.content_range() {
        assert!(range.first <= range.last && range.total.is_none_or(|total| range.last < total), "{range:?}");
    }
    for bytes in [head.size(), head.content_length()] {
        assert!(bytes.ok().flatten().is_none_or(|bytes| bytes <= LARGEST));
    }
    assert!(head.retry_after().is_none_or(|wait| wait.as_secs() <= LARGEST));
    if let Some(text) = head.explanation() {
        assert!(!text.contains(char::is_control) && text.chars().count() <= 302, "{text:?}");
    }
    let _ = (head.is_encoded(), head.is_linked());
    for from in ["https://hub.co/a", "https://localhost/a", "http://127.0.0.1:8080/a", "http://mirror.lan/a"]
    {
        let from = Url::parse(from).unwrap();
        let Ok(Some(location)) = head.bytes("location") else { continue };
        let Ok(target) = from.redirect(location, &from.origin) else { continue };
        assert!(target.origin.is_https || !from.origin.is_https, "{target:?} is less private than {from:?}");
        assert!(
            target.origin.is_https
                || target.origin.text().split(':').nth(1) == from.origin.text().split(':').nth(1)
        );
        assert!(!target.origin.is_loopback() || from.origin.is_loopback(), "{target:?} is this machine");
        assert_eq!(Url::parse(&target.text()).as_ref(), Ok(&target));
    }
}
