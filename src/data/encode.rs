//! x

/// x
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// One label per token.
    pub labels: Vec<i64>,
    /// x
    pub prompt_len: usize,
    /// x
    pub record: usize,
    /// x
    pub truncated: bool,
}
