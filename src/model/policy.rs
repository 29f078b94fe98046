//! What blocks leave for the backward pass: memory against work. The results are the same, bit for bit.
//!
//! `keep_all` computes no linear layer twice. `drop_gate_up` computes gate and up again from `x_mid`: for 4 bytes of two-byte
//! numbers per column of the MLP, two products with `hidden_size`. `checkpoint` keeps the input of the block and computes all
//! of it again, except the output of `down_proj`, which nothing reads.

use std::fmt;

use serde::Serialize;

use crate::device::Class;

/// What one block keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// Everything that the backward pass reads.
    #[default]
    KeepAll,
    /// Everything but gate and up.
    DropGateUp,
    /// Its input.
    Checkpoint,
}

impl Policy {
    /// All of them, the one that keeps most first.
    pub const ALL: [Self; 3] = [Self::KeepAll, Self::DropGateUp, Self::Checkpoint];

    /// Its name in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAll => "keep_all",
            Self::DropGateUp => "drop_gate_up",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Whether a block keeps buffers of a class.
    pub fn keeps(self, class: Class) -> bool {
        match self {
            Self::KeepAll => class.is_saved(),
            Self::DropGateUp => class.is_saved() && class != Class::GateUp,
            Self::Checkpoint => class == Class::XIn,
        }
    }
}

/// The policies of all blocks, by block. Blocks beyond the end of the list keep all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Policies(Vec<Policy>);

impl Policies {
    /// The same policy for all of `blocks` blocks.
    pub fn uniform(policy: Policy, blocks: usize) -> Self {
        Self(vec![policy; blocks])
    }

    /// The lowest `checkpoint` blocks are checkpointed, `drop_gate_up` blocks above them drop gate and up, the others of
    /// `blocks` keep all.
    ///
    /// Backward goes from the top down. What the lowest blocks keep is held longest, and their turn comes when the blocks above
    /// have given back theirs: there the buffers of a block that is computed again meet almost nothing else. So the lowest
    /// blocks are the ones that keep least.
    pub fn lowest(checkpoint: usize, drop_gate_up: usize, blocks: usize) -> Self {
        let of_block = |layer| match layer {
            l if l < checkpoint => Policy::Checkpoint,
            l if l < checkpoint + drop_gate_up => Policy::DropGateUp,
            _ => Policy::KeepAll,
        };
        Self((0..blocks).map(of_block).collect())
    }

    /// True if every block keeps all.
    pub fn keep_all(&self) -> bool {
        self.0.iter().all(|&policy| policy == Policy::KeepAll)
    }

    /// By block.
    pub fn as_slice(&self) -> &[Policy] {
        &self.0
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs: Vec<&[Policy]> = self.0.chunk_by(|a, b| a == b).collect();
        if let [] | [_] = runs[..] {
            return f.write_str(self.0.first().copied().unwrap_or_default().name());
        }
        let mut first = 0;
        for (i, run) in runs.iter().enumerate() {
            let (comma, last) = (if i > 0 { ", " } else { "" }, first + run.len() - 1);
            write!(f, "{comma}{} in ", run[0].name())?;
            match run.len() {
                1 => write!(f, "block {first}")?,
                _ => write!(f, "blocks {first} to {last}")?,
            }
            first = last + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_described_by_their_runs() {
        for (policies, text) in [
            (Policies::default(), "keep_all"),
            (Policies::uniform(Policy::Checkpoint, 3), "checkpoint"),
            (Policies::lowest(0, 1, 3), "drop_gate_up in block 0, keep_all in blocks 1 to 2"),
            (
                Policies::lowest(2, 3, 6),
                "checkpoint in blocks 0 to 1, drop_gate_up in blocks 2 to 4, keep_all in block 5",
            ),
        ] {
            assert_eq!(policies.to_string(), text);
        }
    }

    #[test]
    fn a_policy_keeps_no_more_than_the_one_before_it() {
        for class in Class::ALL {
            let keeps = Policy::ALL.map(|policy| policy.keeps(class));
            assert!(
                keeps[0] == class.is_saved() && keeps[0] >= keeps[1] && keeps[1] >= keeps[2],
                "{class:?}"
            );
        }
    }
}
