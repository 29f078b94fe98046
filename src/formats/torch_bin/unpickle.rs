//! A reader of pickles that makes tensors, texts, numbers and containers of these, and calls nothing.
//!
//! Every instruction is bounded by the bytes it stands in, and all of them together by [`MAX_WORK`]; a text is shared, not copied; a
//! container is a number in a list of containers, so that no value is deeper than its tuples, whose depth has a limit.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use ::safetensors::tensor::Dtype;

use super::{AGAIN, bad, dtype_of};
use crate::error::{Error, shorten};

/// Deepest tuple in a tuple; those of tensors have depth 2.
const MAX_DEPTH: usize = 16;

/// Most instructions, and values copied by them; a tensor needs about 25.
const MAX_WORK: usize = 8_000_000;

/// Longest key of a storage; PyTorch's are numbers.
const MAX_KEY: usize = 4096;

/// What is wrong with a pickle.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is damaged, or no pickle.
    Damaged(&'static str),
    /// It asks for something that is no tensor.
    Refused(String),
}

impl Fault {
    pub(super) fn into_error(self, path: &Path) -> Error {
        match self {
            Self::Damaged(what) => bad(path, "the pickle is damaged").got(what).fix(AGAIN).into(),
            Self::Refused(what) => bad(path, "the pickle has more than tensors, and is not run")
                .got(what)
                .expected("a dictionary of names and tensors, as model.state_dict() gives it")
                .fix("save the state dict alone, or convert it with save_pretrained(safe_serialization=True)")
                .into(),
        }
    }
}

type Result<T> = std::result::Result<T, Fault>;

/// A tensor, as the pickle says it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    /// Key of its storage.
    pub(super) storage: Rc<str>,
    /// Its first element in the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<u64>,
}

/// A tensor under its name.
pub(super) type Named = (Rc<str>, Rc<Tensor>);

/// A value on the stack.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// None, and whatever is kept for its place only.
    Nothing,
    Bool(bool),
    Int(i64),
    /// PyTorch's magic number.
    Magic,
    Text(Rc<str>),
    /// With its depth.
    Tuple(Rc<[Value]>, usize),
    List(usize),
    Dict(usize),
    /// A function or class that is known.
    Known(Known),
    /// Type of its numbers, and its key.
    Storage(Dtype, Rc<str>),
    Tensor(Rc<Tensor>),
    /// The beginning of a run of values.
    Mark,
}

/// Functions and classes that a dictionary of tensors names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageClass(Dtype),
    Size,
}

impl Value {
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn is_magic(&self) -> bool {
        matches!(self, Self::Magic)
    }

    fn depth(&self) -> usize {
        match self {
            Self::Tuple(_, depth) => *depth,
            _ => 0,
        }
    }
}

/// PyTorch's magic number, 0x1950a86a20f9469cfc6c, as LONG1 has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// See the module text. Runs one pickle after the other; containers and storages of all of them are kept.
pub(super) struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    stack: Vec<Value>,
    memo: BTreeMap<u32, Value>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: BTreeMap<Rc<str>, Dtype>,
    /// Instructions and copies so far.
    work: usize,
}

impl<'b> Machine<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            stack: Vec::new(),
            memo: BTreeMap::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: BTreeMap::new(),
            work: 0,
        }
    }

    /// The first byte behind what was run.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The storages that were named, each with the bytes of a number.
    pub(super) fn storages(&self) -> impl Iterator<Item = (&str, u64)> {
        self.storages.iter().map(|(key, dtype)| (&**key, dtype.bitsize() as u64 / 8))
    }

    /// Runs the next pickle and gives its value.
    pub(super) fn run(&mut self) -> Result<Value> {
        self.stack.clear();
        self.memo.clear();
        loop {
            let op = self.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.spend(1)?;
            self.step(op)?;
        }
    }

    /// Counts work against its limit.
    fn spend(&mut self, work: usize) -> Result<()> {
        self.work += work;
        match self.work <= MAX_WORK {
            true => Ok(()),
            false => Err(Fault::Refused("more instructions than tensors need".to_owned())),
        }
    }

    fn step(&mut self, op: u8) -> Result<()> {
        let value = match op {
            // PROTO: a version; the instructions say themselves what they are.
            0x80 => return self.byte().map(drop),
            // FRAME: a length.
            0x95 => return self.take(8).map(drop),
            b'N' => Value::Nothing,
            0x88 | 0x89 => Value::Bool(op == 0x88),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            0x8a => self.long()?,
            // BINFLOAT: no tensor needs one.
            b'G' => {
                self.take(8)?;
                Value::Nothing
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            // BINSTRING, SHORT_BINSTRING: texts of Python 2.
            b'T' => self.text(4)?,
            b'U' => self.text(1)?,
            b'(' => Value::Mark,
            b')' => Value::Tuple(Rc::from([]), 1),
            b'}' => {
                self.dicts.push(Vec::new());
                Value::Dict(self.dicts.len() - 1)
            }
            b']' => {
                self.lists.push(Vec::new());
                Value::List(self.lists.len() - 1)
            }
            b't' => {
                let values = self.run_of_values()?;
                tuple(values)?
            }
            0x85..=0x87 => {
                let count = usize::from(op - 0x84);
                let first = self.stack.len().checked_sub(count).ok_or(SHORT)?;
                let values = self.stack.split_off(first);
                tuple(values)?
            }
            b'q' | b'r' | 0x94 => {
                let key = match op {
                    b'q' => u32::from(self.byte()?),
                    b'r' => u32::from_le_bytes(self.array()?),
                    _ => self.memo.len() as u32,
                };
                let top = self.stack.last().ok_or(SHORT)?.clone();
                self.memo.insert(key, top);
                return Ok(());
            }
            b'h' | b'j' => {
                let key =
                    if op == b'h' { u32::from(self.byte()?) } else { u32::from_le_bytes(self.array()?) };
                self.memo.get(&key).cloned().ok_or(Fault::Damaged("a reference to nothing"))?
            }
            b'a' | b'e' => {
                let values = if op == b'a' { vec![self.pop()?] } else { self.run_of_values()? };
                let Some(Value::List(list)) = self.stack.last() else { return Err(SHORT) };
                self.lists[*list].extend(values);
                return Ok(());
            }
            b's' | b'u' => {
                let values = match op {
                    b's' => {
                        let value = self.pop()?;
                        vec![self.pop()?, value]
                    }
                    _ => self.run_of_values()?,
                };
                let Some(Value::Dict(dict)) = self.stack.last() else { return Err(SHORT) };
                let mut values = values.into_iter();
                while let (Some(key), Some(value)) = (values.next(), values.next()) {
                    self.dicts[*dict].push((key, value));
                }
                return Ok(());
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                known(module, name)?
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&module, &name) {
                    (Value::Text(module), Value::Text(name)) => known(module, name)?,
                    _ => return Err(Fault::Damaged("a name that is no text")),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(&id)?
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(&function, &arguments)?
            }
            // BUILD: attributes of a dictionary (`_metadata`), which say nothing about tensors.
            b'b' => {
                self.pop()?;
                return match self.stack.last() {
                    Some(Value::Dict(_)) => Ok(()),
                    _ => Err(Fault::Refused("attributes of an object".to_owned())),
                };
            }
            other => return Err(Fault::Refused(format!("the instruction {:?}", char::from(other)))),
        };
        self.stack.push(value);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or(SHORT)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.first_chunk().copied().ok_or(SHORT)
    }

    /// A text with its length before it, in so many bytes.
    fn text(&mut self, bytes: usize) -> Result<Value> {
        let mut length = [0; 4];
        length[..bytes].copy_from_slice(self.take(bytes)?);
        let text = self.take(u32::from_le_bytes(length) as usize)?;
        let text = std::str::from_utf8(text).map_err(|_| Fault::Damaged("a text that is not UTF-8"))?;
        Ok(Value::Text(Rc::from(text)))
    }

    /// A text up to the end of its line.
    fn line(&mut self) -> Result<&'b str> {
        let end = self.bytes[self.at..].iter().position(|&byte| byte == b'\n').ok_or(SHORT)?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| Fault::Damaged("a name that is not UTF-8"))
    }

    /// LONG1: a whole number of any size, of which those of eight bytes and PyTorch's magic one are known.
    fn long(&mut self) -> Result<Value> {
        let count = usize::from(self.byte()?);
        let bytes = self.take(count)?;
        if bytes == MAGIC {
            return Ok(Value::Magic);
        }
        if count > 8 {
            return Err(Fault::Refused("a number of more than 64 bits".to_owned()));
        }
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut all = [fill; 8];
        all[..count].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(all)))
    }

    fn pop(&mut self) -> Result<Value> {
        match self.stack.pop() {
            None | Some(Value::Mark) => Err(SHORT),
            Some(value) => Ok(value),
        }
    }

    /// The values behind the last mark.
    fn run_of_values(&mut self) -> Result<Vec<Value>> {
        let is_mark = |value: &Value| matches!(value, Value::Mark);
        let mark = self.stack.iter().rposition(is_mark).ok_or(SHORT)?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    /// The storage that `("storage", class, key, place, numbers)` names.
    fn storage(&mut self, id: &Value) -> Result<Value> {
        let refused = || Fault::Refused("a reference that is no storage".to_owned());
        let Value::Tuple(parts, _) = id else { return Err(refused()) };
        match &**parts {
            [Value::Text(kind), Value::Known(Known::StorageClass(dtype)), Value::Text(key), ..]
                if &**kind == "storage" =>
            {
                if key.len() > MAX_KEY {
                    return Err(Fault::Damaged("the name of a storage is too long"));
                }
                // The older format has views of storages here; nobody writes them any more.
                if parts.len() > 5 && !matches!(parts[5], Value::Nothing) {
                    return Err(Fault::Refused("a view of a storage".to_owned()));
                }
                match self.storages.insert(key.clone(), *dtype) {
                    Some(other) if other != *dtype => Err(Fault::Damaged("a storage of two types")),
                    _ => Ok(Value::Storage(*dtype, key.clone())),
                }
            }
            _ => Err(refused()),
        }
    }

    /// What a known function would give.
    fn call(&mut self, function: &Value, arguments: &Value) -> Result<Value> {
        let (Value::Known(known), Value::Tuple(arguments, _)) = (function, arguments) else {
            return Err(Fault::Refused("a call of something that is no function".to_owned()));
        };
        match (known, &**arguments) {
            (Known::OrderedDict, []) => {
                self.dicts.push(Vec::new());
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            // Pairs, as Python 2 wrote them.
            (Known::OrderedDict, [Value::List(list)]) => {
                self.spend(self.lists[*list].len())?;
                let mut pairs = Vec::new();
                for pair in &self.lists[*list] {
                    match pair {
                        Value::List(pair) => match &*self.lists[*pair] {
                            [key, value] => pairs.push((key.clone(), value.clone())),
                            _ => return Err(SHORT),
                        },
                        Value::Tuple(pair, _) if pair.len() == 2 => {
                            pairs.push((pair[0].clone(), pair[1].clone()))
                        }
                        _ => return Err(SHORT),
                    }
                }
                self.dicts.push(pairs);
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            (Known::Size, [Value::Tuple(sizes, depth)]) => Ok(Value::Tuple(sizes.clone(), *depth)),
            (Known::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            (
                Known::RebuildTensor,
                [
                    Value::Storage(dtype, key),
                    Value::Int(offset),
                    Value::Tuple(shape, _),
                    Value::Tuple(strides, _),
                    ..,
                ],
            ) => {
                if shape.len() > MAX_RANK || strides.len() > MAX_RANK {
                    return Err(Fault::Damaged("a tensor of too many dimensions"));
                }
                let numbers = |values: &[Value]| -> Option<Vec<u64>> {
                    values.iter().map(|value| u64::try_from(value.int()?).ok()).collect()
                };
                let (Ok(offset), Some(shape), Some(strides)) =
                    (u64::try_from(*offset), numbers(shape), numbers(strides))
                else {
                    return Err(Fault::Damaged("a shape that is no shape"));
                };
                let shape = shape.into_iter().map(|size| size as usize).collect();
                let tensor = Tensor { dtype: *dtype, storage: key.clone(), offset, shape, strides };
                Ok(Value::Tensor(Rc::new(tensor)))
            }
            _ => Err(Fault::Damaged("a tensor with other parts than PyTorch writes")),
        }
    }

    /// The tensors of a dictionary, by name.
    pub(super) fn tensors(&self, value: &Value) -> Result<Vec<Named>> {
        let Value::Dict(dict) = value else {
            return Err(Fault::Refused("something that is no dictionary".to_owned()));
        };
        let one = |(key, value): &(Value, Value)| match (key, value) {
            (Value::Text(name), Value::Tensor(tensor)) => Ok((name.clone(), tensor.clone())),
            (Value::Text(name), _) => Err(Fault::Refused(format!("{:?}, which is no tensor", shorten(name)))),
            _ => Err(Fault::Refused("a key that is no text".to_owned())),
        };
        self.dicts[*dict].iter().map(one).collect()
    }

    /// The texts of a list.
    pub(super) fn texts(&self, value: &Value) -> Result<Vec<Rc<str>>> {
        let Value::List(list) = value else { return Err(Fault::Damaged("a list of storages that is none")) };
        let one = |value: &Value| match value {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(Fault::Damaged("a storage without a name")),
        };
        self.lists[*list].iter().map(one).collect()
    }

    /// Whether a description of a machine says that its numbers are little-endian.
    pub(super) fn is_little_endian(&self, system: &Value) -> bool {
        let Value::Dict(dict) = system else { return false };
        self.dicts[*dict].iter().any(|pair| match pair {
            (Value::Text(key), Value::Bool(little)) => &**key == "little_endian" && *little,
            _ => false,
        })
    }
}

const MAX_RANK: usize = 8;
const SHORT: Fault = Fault::Damaged("it ends or lacks a value where one is needed");

fn tuple(values: Vec<Value>) -> Result<Value> {
    let depth = 1 + values.iter().map(Value::depth).max().unwrap_or(0);
    match depth > MAX_DEPTH {
        true => Err(Fault::Refused("tuples in tuples, too deep for a tensor".to_owned())),
        false => Ok(Value::Tuple(values.into(), depth)),
    }
}

/// A function or class by its name.
fn known(module: &str, name: &str) -> Result<Value> {
    Ok(Value::Known(match (module, name) {
        ("collections", "OrderedDict") => Known::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Known::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Known::RebuildParameter,
        ("torch", "Size") => Known::Size,
        _ => match dtype_of(name).filter(|_| module == "torch") {
            Some(dtype) => Known::StorageClass(dtype),
            None => return Err(Fault::Refused(format!("{}.{}", shorten(module), shorten(name)))),
        },
    }))
}
