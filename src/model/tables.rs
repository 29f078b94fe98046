//! What a pass reads of its batch, in the memory of the device: made once with a capacity, and written anew for every batch.
//!
//! On a GPU the addresses stay, so that launches recorded once serve every batch that fits ([`PassCapacity`]).

use super::weights::BlockWeights;
use crate::batch::{AdapterRows, Batch, Segment, TokenTarget};
use crate::config::block::Wiring;
use crate::device::{Class, Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::LiveRows;
use crate::ops::attention::{AttentionPlan, PlanCapacity};
use crate::ops::linear_cross_entropy::Targets;
use crate::ops::lora_matmul::{RowKeys, Rows};
use crate::ops::qk_norm_rope::RopeTable;
use crate::ops::rows::RowIndex;
use crate::tensor::Real;

/// How much the batch of a pass may have of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassCapacity {
    /// Tokens, segments, and who sees whom.
    pub plan: PlanCapacity,
    /// Rows with targets.
    pub target_rows: usize,
    /// Targets.
    pub targets: usize,
    /// One more than the largest position.
    pub positions: usize,
}

impl PassCapacity {
    /// What `batch` needs.
    pub fn of(batch: &Batch) -> Self {
        Self {
            plan: PlanCapacity::of(&batch.segments),
            target_rows: batch.target_rows().len(),
            targets: batch.targets.len(),
            positions: batch.segments.iter().map(|s| s.position_offset + s.len).max().unwrap_or(0),
        }
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.plan.key_rows
    }

    /// Whether a batch that needs `other` fits.
    pub fn holds(&self, other: Self) -> bool {
        self.max(other) == *self
    }

    /// What both need.
    pub fn max(self, other: Self) -> Self {
        Self {
            plan: self.plan.max(other.plan),
            target_rows: self.target_rows.max(other.target_rows),
            targets: self.targets.max(other.targets),
            positions: self.positions.max(other.positions),
        }
    }
}

/// What the ops need to know about some rows of the batch.
pub(super) struct RowSet<T: Real> {
    /// How many of the rows there are.
    pub(super) live_rows: LiveRows,
    pub(super) rows: Rows,
    pub(super) rope: RopeTable<T::Stat>,
    pub(super) plan: AttentionPlan,
    /// All of them by number, where a gradient that came along the stream is added to another one; none in wirings without that.
    pub(super) own: Option<RowIndex>,
}

impl<T: Real> RowSet<T> {
    /// Empty, with `capacity`, for as many rows as `rope` has capacity for.
    fn with_capacity(
        device: &Device,
        rope: RopeTable<T::Stat>,
        capacity: PassCapacity,
        (dropout, adds_gradients): (bool, bool),
    ) -> Result<Self> {
        let tables = device.class(Class::Tables);
        let plan = PlanCapacity { query_rows: rope.capacity(), ..capacity.plan };
        let rows = Rows::with_capacity(&tables, rope.capacity(), capacity.plan.segments, dropout)?;
        Ok(Self {
            live_rows: rope.live_rows(),
            rows: rows.counted(rope.live_rows()),
            plan: AttentionPlan::with_capacity(&tables, plan)?,
            own: adds_gradients.then(|| RowIndex::with_capacity(&tables, rope.capacity())).transpose()?,
            rope,
        })
    }

    /// Takes the rows `rows` (ascending) of a batch with these segments.
    fn write(&mut self, device: &Device, segments: &[Segment], rows: &[usize], keys: RowKeys) -> Result<()> {
        let of = |&row: &usize| &segments[segments.partition_point(|s| s.start + s.len <= row)];
        let position = |row: &usize| of(row).position_offset + row - of(row).start;
        self.rope.write(device, &rows.iter().map(position).collect::<Vec<_>>())?;
        self.plan.replace(device, AttentionPlan::for_rows(segments, rows))?;
        if let Some(own) = &mut self.own {
            own.write(device, &(0..rows.len()).collect::<Vec<_>>())?;
        }
        let runs = runs(rows.iter().map(|row| of(row).adapter));
        self.rows.write(device, rows.len(), runs, Some(keys))
    }
}

/// See the module text.
pub(super) struct BatchTables<T: Real> {
    /// `[tokens, 1]`.
    pub(super) ids: Tensor<u32>,
    pub(super) all: RowSet<T>,
    /// The rows that the last block has to finish.
    pub(super) supervised: RowSet<T>,
    /// Which rows of the batch they are.
    pub(super) target_rows: RowIndex,
    pub(super) targets: Targets,
}

impl<T: Real> BatchTables<T> {
    /// Empty tables for batches through these blocks. `dropout`: whether masks are drawn.
    pub(super) fn with_capacity(
        device: &Device,
        blocks: &[BlockWeights<T>],
        capacity: PassCapacity,
        dropout: bool,
    ) -> Result<Self> {
        let tables = device.class(Class::Tables);
        let attn = blocks.first().map(|block| block.spec.attn);
        let attn = attn.ok_or_else(|| Error::shape("tables", "blocks", "at least one", 0))?;
        let (head_dim, theta) = (attn.head_dim, attn.rope_theta);
        let rope = RopeTable::with_capacity(&tables, capacity.tokens(), capacity.positions, head_dim, theta)?;
        let adds_gradients = blocks.iter().any(|block| block.spec.wiring == Wiring::PostNorm);
        let of_supervised = rope.sibling(&tables, capacity.target_rows)?;
        Ok(Self {
            ids: tables.empty(capacity.tokens(), 1)?,
            all: RowSet::with_capacity(device, rope, capacity, (dropout, adds_gradients))?,
            supervised: RowSet::with_capacity(device, of_supervised, capacity, (dropout, adds_gradients))?,
            target_rows: RowIndex::with_capacity(&tables, capacity.target_rows)?,
            targets: Targets::with_capacity(&tables, capacity.target_rows, capacity.targets)?,
        })
    }

    /// Takes a batch whose loss has the factor `scale`. `rows` (ascending) are those whose final state is wanted.
    pub(super) fn write(&mut self, device: &Device, batch: &Batch, rows: &[usize], scale: f64) -> Result<()> {
        device.write_start(&mut self.ids, &batch.input_ids)?;
        let all: Vec<usize> = (0..batch.total_tokens()).collect();
        let keys = RowKeys::new(&batch.segments);
        self.supervised.write(device, &batch.segments, rows, keys.gather(rows))?;
        self.all.write(device, &batch.segments, &all, keys)?;
        self.target_rows.write(device, rows)?;
        let place = |t: &TokenTarget| TokenTarget { row: rows.partition_point(|&row| row < t.row), ..*t };
        let targets: Vec<TokenTarget> = batch.targets.tokens().iter().map(place).collect();
        self.targets.write(device, &targets, rows.len(), scale)
    }
}

/// Runs of equal adapters, row by row.
fn runs(adapters: impl Iterator<Item = usize>) -> Vec<AdapterRows> {
    let mut runs: Vec<AdapterRows> = Vec::new();
    for (row, adapter) in adapters.enumerate() {
        match runs.last_mut() {
            Some(run) if run.adapter == adapter => run.rows.end = row + 1,
            _ => runs.push(AdapterRows { adapter, rows: row..row + 1 }),
        }
    }
    runs
}
