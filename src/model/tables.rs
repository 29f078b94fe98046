//! What a pass reads of its batch, in the memory of the device: made once with a capacity, and written anew for every batch.
//!
//! On a GPU the addresses stay, so that launches recorded once serve every batch that fits ([`PassCapacity`]).

use crate::batch::{AdapterRows, Batch, LabelTarget, Segment, TokenTarget};
use crate::config::ModelConfig;
use crate::config::block::{AttnMask, AttnSpec, BlockSpec, RopeSpec, Wiring};
use crate::config::head::{HeadSpec, Pool};
use crate::device::{Class, Device, Table, Tensor};
use crate::error::{Error, Result};
use crate::ops::LiveRows;
use crate::ops::attention::{AttentionPlan, PlanCapacity};
use crate::ops::label_head::Targets as LabelTargets;
use crate::ops::linear_cross_entropy::Targets;
use crate::ops::lora_matmul::{RowKeys, Rows};
use crate::ops::qk_norm_rope::{RopeRow, RopeTable};
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
    /// Angles, by what they are made from.
    ropes: Vec<(Rope, RopeTable<T::Stat>)>,
    /// Counts the rows of a model without rotation.
    counter: Option<Table<u32>>,
    /// Who sees whom, by mask.
    plans: Vec<(AttnMask, AttentionPlan)>,
    /// All of them by number, where a gradient that came along the stream is added to another one; none in wirings without that.
    pub(super) own: Option<RowIndex>,
}

/// What a table of angles is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rope {
    spec: RopeSpec,
    head_dim: usize,
}

impl Rope {
    fn of(attn: &AttnSpec) -> Option<Self> {
        Some(Self { spec: attn.rope?, head_dim: attn.head_dim })
    }
}

/// What the tables of a model are for.
struct Kinds {
    ropes: Vec<Rope>,
    masks: Vec<AttnMask>,
    adds_gradients: bool,
}

impl Kinds {
    /// Of rows that only go through linear layers.
    fn none() -> Self {
        Self { ropes: Vec::new(), masks: Vec::new(), adds_gradients: false }
    }

    fn of(model: &ModelConfig) -> Self {
        let mut kinds = Self { ropes: Vec::new(), masks: Vec::new(), adds_gradients: false };
        for BlockSpec { wiring, attn, .. } in &model.blocks {
            let rope = Rope::of(attn).filter(|rope| !kinds.ropes.contains(rope));
            kinds.ropes.extend(rope);
            if !kinds.masks.contains(&attn.mask) {
                kinds.masks.push(attn.mask);
            }
            kinds.adds_gradients |= *wiring == Wiring::PostNorm;
        }
        kinds
    }
}

impl<T: Real> RowSet<T> {
    /// Empty, for at most `max_rows` rows of a batch with `capacity`. `ropes` are those of the model.
    fn with_capacity(
        device: &Device,
        kinds: &Kinds,
        ropes: Vec<(Rope, RopeTable<T::Stat>)>,
        (capacity, max_rows): (PassCapacity, usize),
        dropout: bool,
    ) -> Result<Self> {
        let tables = device.class(Class::Tables);
        let counter = match ropes.is_empty() {
            true => {
                let mut counter = Table::with_capacity(&tables, max_rows)?;
                counter.write(&tables, &[])?;
                Some(counter)
            }
            false => None,
        };
        let counted = ropes.first().map(|(_, rope)| rope.live_rows());
        let counted = counted.or_else(|| Some(LiveRows::at(counter.as_ref()?.count_ptr())));
        let live_rows = counted.ok_or_else(|| Error::shape("tables", "rows", "a count", "none"))?;
        let plan = PlanCapacity { query_rows: max_rows, ..capacity.plan };
        let rows = Rows::with_capacity(&tables, max_rows, capacity.plan.segments, dropout)?;
        let of_mask = |&mask: &AttnMask| Ok((mask, AttentionPlan::with_capacity(&tables, mask, plan)?));
        Ok(Self {
            live_rows,
            rows: rows.counted(live_rows),
            ropes,
            counter,
            plans: kinds.masks.iter().map(of_mask).collect::<Result<_>>()?,
            own: kinds.adds_gradients.then(|| RowIndex::with_capacity(&tables, max_rows)).transpose()?,
        })
    }

    /// Takes the rows `rows` (ascending) of a batch with these segments.
    fn write(&mut self, device: &Device, segments: &[Segment], rows: &[usize], keys: RowKeys) -> Result<()> {
        let of = |&row: &usize| &segments[segments.partition_point(|s| s.start + s.len <= row)];
        let position = |row: &usize| of(row).position_offset + row - of(row).start;
        if !self.ropes.is_empty() {
            let row = |row| RopeRow {
                position: position(row),
                len: of(row).position_offset + of(row).len + of(row).tail,
            };
            let rows: Vec<RopeRow> = rows.iter().map(row).collect();
            for (_, rope) in &mut self.ropes {
                rope.write(device, &rows)?;
            }
        }
        if let Some(counter) = &mut self.counter {
            counter.write(device, &vec![0; rows.len()])?;
        }
        for (mask, plan) in &mut self.plans {
            plan.replace(device, AttentionPlan::for_rows(*mask, segments, rows)?)?;
        }
        if let Some(own) = &mut self.own {
            own.write(device, &(0..rows.len()).collect::<Vec<_>>())?;
        }
        let runs = runs(rows.iter().map(|row| of(row).adapter));
        self.rows.write(device, rows.len(), runs, Some(keys))
    }

    /// Who sees whom under a mask of the model.
    pub(super) fn plan(&self, mask: AttnMask) -> Result<&AttentionPlan> {
        let found = self.plans.iter().find(|(of, _)| *of == mask).map(|(_, plan)| plan);
        found.ok_or_else(|| Error::shape("tables", "mask", "one of the model", format!("{mask:?}")))
    }

    /// The angles of some attention of the model.
    pub(super) fn rope(&self, attn: &AttnSpec) -> Result<&RopeTable<T::Stat>> {
        let rope = Rope::of(attn);
        let found = self.ropes.iter().find(|(of, _)| Some(*of) == rope).map(|(_, table)| table);
        found.ok_or_else(|| Error::shape("tables", "rope", "one of the model", format!("{rope:?}")))
    }
}

/// See the module text.
pub(super) struct BatchTables<T: Real> {
    /// `[tokens, 1]`.
    pub(super) ids: Tensor<u32>,
    /// `[tokens, 1]`: rows of the table of positions; none in models without one.
    pub(super) position_ids: Option<Tensor<u32>>,
    /// The position of the first token of a sequence in that table.
    first_position: usize,
    /// `[tokens, 1]`: rows of the table of token types; none in models without one.
    pub(super) token_type_ids: Option<Tensor<u32>>,
    pub(super) all: RowSet<T>,
    /// The rows that the last block has to finish.
    pub(super) supervised: RowSet<T>,
    /// A row for every sequence, where a head takes the mean over its rows and has a frozen layer; none elsewhere.
    pub(super) pooled: Option<RowSet<T>>,
    /// Which rows of the batch the last block has to finish.
    pub(super) target_rows: RowIndex,
    pub(super) targets: Targets,
    /// Sequences with labels, of models with a head for them.
    labels: Option<LabelTargets>,
}

impl<T: Real> BatchTables<T> {
    /// Empty tables for batches through this model. `dropout`: whether masks are drawn.
    pub(super) fn with_capacity(
        device: &Device,
        model: &ModelConfig,
        capacity: PassCapacity,
        dropout: bool,
    ) -> Result<Self> {
        let tables = device.class(Class::Tables);
        let (kinds, tokens) = (Kinds::of(model), capacity.tokens());
        let of_all = |&Rope { spec, head_dim }: &Rope| {
            RopeTable::with_capacity(&tables, tokens, capacity.positions, head_dim, spec)
        };
        let of_all = kinds.ropes.iter().map(of_all).collect::<Result<Vec<_>>>()?;
        let sibling = |rope: &RopeTable<T::Stat>| rope.sibling(&tables, capacity.target_rows);
        let of_supervised = of_all.iter().map(sibling).collect::<Result<Vec<_>>>()?;
        let named = |tables: Vec<RopeTable<T::Stat>>| kinds.ropes.iter().copied().zip(tables).collect();
        let position_ids = match model.embed.positions {
            Some(_) => Some(tables.empty(tokens, 1)?),
            None => None,
        };
        let token_type_ids = match model.embed.token_types {
            Some(_) => Some(tables.empty(tokens, 1)?),
            None => None,
        };
        let pools =
            matches!(&model.head, HeadSpec::Labels(head) if head.pool == Pool::Mean && head.pooler.is_some());
        let pooled = pools.then(|| {
            let rows = (capacity, capacity.targets);
            RowSet::with_capacity(device, &Kinds::none(), Vec::new(), rows, dropout)
        });
        let (of_all, of_supervised) = (named(of_all), named(of_supervised));
        let narrow = capacity.target_rows;
        Ok(Self {
            ids: tables.empty(tokens, 1)?,
            position_ids,
            first_position: model.embed.positions.map_or(0, |positions| positions.offset),
            all: RowSet::with_capacity(device, &kinds, of_all, (capacity, tokens), dropout)?,
            supervised: RowSet::with_capacity(device, &kinds, of_supervised, (capacity, narrow), dropout)?,
            token_type_ids,
            pooled: pooled.transpose()?,
            target_rows: RowIndex::with_capacity(&tables, narrow)?,
            // A model has one kind of targets, and takes memory for these alone.
            targets: match model.head {
                HeadSpec::Tokens => Targets::with_capacity(&tables, narrow, capacity.targets)?,
                HeadSpec::Labels(_) => Targets::with_capacity(&tables, 0, 0)?,
            },
            labels: match &model.head {
                HeadSpec::Tokens => None,
                HeadSpec::Labels(head) => {
                    Some(LabelTargets::with_capacity(&tables, capacity.targets, head.num_labels)?)
                }
            },
        })
    }

    /// The sequences with labels.
    pub(super) fn label_targets(&self) -> Result<&LabelTargets> {
        self.labels.as_ref().ok_or_else(|| Error::shape("tables", "head", "one for labels", "tokens"))
    }

    /// Takes a batch whose loss has the factor `scale`. `rows` (ascending) are those whose final state is wanted.
    pub(super) fn write(&mut self, device: &Device, batch: &Batch, rows: &[usize], scale: f64) -> Result<()> {
        device.write_start(&mut self.ids, &batch.input_ids)?;
        if let Some(ids) = &mut self.position_ids {
            let positions = batch.position_ids().into_iter();
            let rows: Vec<u32> = positions.map(|position| (self.first_position + position) as u32).collect();
            device.write_start(ids, &rows)?;
        }
        if let Some(ids) = &mut self.token_type_ids {
            match batch.token_type_ids.is_empty() {
                true => device.write_start(ids, &vec![0; batch.total_tokens()])?,
                false => device.write_start(ids, &batch.token_type_ids)?,
            }
        }
        let all: Vec<usize> = (0..batch.total_tokens()).collect();
        let keys = RowKeys::new(&batch.segments);
        if let Some(pooled) = &mut self.pooled {
            let firsts: Vec<usize> = batch.targets.labels().iter().map(|target| target.rows.start).collect();
            pooled.write(device, &batch.segments, &firsts, keys.gather(&firsts))?;
        }
        self.supervised.write(device, &batch.segments, rows, keys.gather(rows))?;
        self.all.write(device, &batch.segments, &all, keys)?;
        self.target_rows.write(device, rows)?;
        let place = |t: &TokenTarget| TokenTarget { row: rows.partition_point(|&row| row < t.row), ..*t };
        let targets: Vec<TokenTarget> = batch.targets.tokens().iter().map(place).collect();
        let of_tokens = if self.labels.is_some() { 0 } else { rows.len() };
        self.targets.write(device, &targets, of_tokens, scale)?;
        match &mut self.labels {
            Some(labels) => labels.write(device, &among(rows, batch.targets.labels()), scale),
            None => Ok(()),
        }
    }
}

/// The targets with rows counted among `rows`, which ascend and contain theirs.
fn among(rows: &[usize], targets: &[LabelTarget]) -> Vec<LabelTarget> {
    let place = |row: usize| rows.partition_point(|&other| other < row);
    let of = |target: &LabelTarget| {
        let start = place(target.rows.start);
        LabelTarget { rows: start..start + target.rows.len(), ..target.clone() }
    };
    targets.iter().map(of).collect()
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
