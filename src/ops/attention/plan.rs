//! The attention mask, as tiles of query rows and ranges of key rows: a plain value that can be printed and
//! tested, and for a GPU the same content as work lists in its memory.

use std::ops::Range;

use super::OP;
use super::gpu::Tables;
use crate::batch::Segment;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kinds::AttnMask;

/// Query rows of one tile: few enough for its scores to stay in the cache, enough for a fast matrix product.
const TILE: usize = 64;

/// Which keys of a range a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// All of them.
    Full,
    /// Keys up to its own row (causal).
    Causal,
    /// Keys at most this far from its own row.
    Window(usize),
}

/// A run of key rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvRange {
    /// The rows in the packed batch.
    pub rows: Range<usize>,
    /// Which of them a query sees.
    pub mask: MaskKind,
}

/// Query rows that see the same ranges of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryTile {
    /// Rows of the query tensor.
    pub rows: Range<usize>,
    /// The ranges of keys they see, in row order.
    pub keys: Vec<KvRange>,
}

/// Tiles that share key rows with each other and with no other tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) tiles: Range<usize>,
    pub(super) key_rows: Range<usize>,
    pub(super) query_rows: Range<usize>,
}

/// Capacity of the work lists of a plan, in GPU memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanCapacity {
    /// Rows of the query tensor.
    pub query_rows: usize,
    /// Rows of the key tensor.
    pub key_rows: usize,
    /// Segments of a batch.
    pub segments: usize,
    /// Ranges of keys over all query tiles.
    pub ranges: usize,
    /// Pairs of a query tile and a key tile.
    pub visits: usize,
}

impl PlanCapacity {
    /// An upper bound for every plan over these segments, whichever of their rows are queries.
    pub fn of(segments: &[Segment]) -> Self {
        let total = segments.last().map_or(0, |s| s.start + s.len);
        let mut capacity =
            Self { query_rows: total, key_rows: total, segments: segments.len(), ranges: 0, visits: 0 };
        for segment in segments {
            let tiles = segment.len.div_ceil(TILE);
            // Where only some rows are queries, those of a tile can be far apart, and see as many keys as without a window.
            let mut seen = Some(segment);
            while let Some(here) = seen {
                capacity.ranges += tiles;
                capacity.visits += tiles * here.len.div_ceil(TILE);
                seen = here.prefix.map(|prefix| &segments[prefix]);
            }
        }
        capacity
    }

    /// The larger of both in every field.
    pub fn max(self, other: Self) -> Self {
        Self {
            query_rows: self.query_rows.max(other.query_rows),
            key_rows: self.key_rows.max(other.key_rows),
            segments: self.segments.max(other.segments),
            ranges: self.ranges.max(other.ranges),
            visits: self.visits.max(other.visits),
        }
    }

    /// True if no field exceeds that of `room`.
    pub fn fits(self, room: Self) -> bool {
        self.max(room) == room
    }
}

/// See the module documentation. Query rows are the rows of the batch, or some of them
/// ([`AttentionPlan::for_rows`]).
///
/// A GPU reads the plan as work lists in its own memory: either uploaded once for one batch
/// ([`AttentionPlan::upload`]), or allocated for a capacity and rewritten for every batch at the same
/// addresses ([`AttentionPlan::with_capacity`], [`AttentionPlan::replace`]).
#[derive(Debug, Default)]
pub struct AttentionPlan {
    tiles: Vec<QueryTile>,
    groups: Vec<Group>,
    /// Key rows of every segment.
    segments: Vec<Range<usize>>,
    /// Packed row of every query row.
    query_rows: Vec<usize>,
    num_key_rows: usize,
    num_pairs: u64,
    /// None of an empty plan.
    mask: Option<AttnMask>,
    tables: Option<Tables>,
}

impl AttentionPlan {
    /// Causal, and every row is a query: it sees the prefixes of its segment and the segment up to itself.
    pub fn causal(segments: &[Segment]) -> Self {
        Self::build(AttnMask::Causal, segments, &all_rows(segments))
    }

    /// Every row is a query. With [`AttnMask::Causal`] it sees the prefixes of its segment and the segment up to itself, else its
    /// segment, or a window of that.
    ///
    /// # Errors
    /// As [`AttentionPlan::for_rows`].
    pub fn of_all(mask: AttnMask, segments: &[Segment]) -> Result<Self> {
        Self::for_rows(mask, segments, &all_rows(segments))
    }

    /// Only the rows `query_rows` (ascending) are queries; the query tensor holds these rows only.
    ///
    /// # Errors
    /// [`Error::Shape`] for prefixes without a causal mask: the prefix would have to see what continues it.
    pub fn for_rows(mask: AttnMask, segments: &[Segment], query_rows: &[usize]) -> Result<Self> {
        if mask != AttnMask::Causal && segments.iter().any(|segment| segment.prefix.is_some()) {
            return Err(Error::shape(
                OP,
                "segments",
                "none with a prefix where the mask is not causal",
                "one",
            ));
        }
        Ok(Self::build(mask, segments, query_rows))
    }

    fn build(mask: AttnMask, segments: &[Segment], query_rows: &[usize]) -> Self {
        let mut plan = Self {
            segments: segments.iter().map(Segment::rows).collect(),
            query_rows: query_rows.to_vec(),
            num_key_rows: segments.last().map_or(0, |s| s.start + s.len),
            mask: Some(mask),
            ..Self::default()
        };
        let mut next = 0;
        for (i, segment) in segments.iter().enumerate() {
            let first_tile = plan.tiles.len();
            let first_row = next;
            let prefixes = prefix_ranges(segments, i);
            let end = next + query_rows[next..].partition_point(|&row| row < segment.start + segment.len);
            while next < end {
                let rows = next..end.min(next + TILE);
                let own = own_range(mask, segment, query_rows[next], query_rows[rows.end - 1]);
                let keys = prefixes.iter().cloned().chain(std::iter::once(own)).collect();
                next = rows.end;
                plan.tiles.push(QueryTile { rows, keys });
            }
            let mut group = Group {
                tiles: first_tile..plan.tiles.len(),
                key_rows: segment.rows(),
                query_rows: first_row..next,
            };
            // A segment joins the groups of everything between its first prefix and itself.
            let from = prefixes.first().map_or(segment.start, |p| p.rows.start);
            while let Some(earlier) = plan.groups.pop_if(|g| g.key_rows.end > from) {
                group.tiles.start = earlier.tiles.start;
                group.key_rows.start = earlier.key_rows.start;
                group.query_rows.start = earlier.query_rows.start;
            }
            plan.groups.push(group);
        }
        plan.num_pairs = plan.count_pairs();
        plan
    }

    /// A plan without rows, for batches with this mask, whose work lists on the GPU have this capacity.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, mask: AttnMask, capacity: PlanCapacity) -> Result<Self> {
        let tables = Some(Tables::with_capacity(device, capacity)?);
        Ok(Self { mask: Some(mask), tables, ..Self::default() })
    }

    /// Copies the work lists to GPU memory. Required before the plan is used on a GPU.
    ///
    /// # Errors
    /// Those of the device.
    pub fn upload(&mut self, device: &Device) -> Result<()> {
        self.tables = Some(Tables::exact(device, self)?);
        Ok(())
    }

    /// Replaces this plan by `other`, after all work queued so far. Work lists on the GPU keep their
    /// addresses and their capacity; a plan without them stays without.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) if `other` exceeds the capacity, and then nothing has
    /// changed; errors of the device.
    pub fn replace(&mut self, device: &Device, other: Self) -> Result<()> {
        let mut tables = self.tables.take();
        let written = tables.as_mut().map_or(Ok(()), |tables| tables.replace(device, &other));
        if written.is_ok() {
            *self = other;
        }
        self.tables = tables;
        written
    }

    /// The tiles, in query row order; they cover every query row once.
    pub fn tiles(&self) -> &[QueryTile] {
        &self.tiles
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Key rows of the segments, in order.
    pub(super) fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// Packed row of every query row.
    pub(super) fn packed_rows(&self) -> &[usize] {
        &self.query_rows
    }

    /// The lists on the GPU.
    pub(super) fn tables(&self) -> Option<&Tables> {
        self.tables.as_ref()
    }

    /// Whether queries see windows.
    pub(super) fn has_window(&self) -> bool {
        matches!(self.mask, Some(AttnMask::Window(_)))
    }

    /// How far a window reaches on either side; 0 without.
    pub(super) fn reach(&self) -> usize {
        match self.mask {
            Some(AttnMask::Window(reach)) => reach,
            _ => 0,
        }
    }

    /// Number of query rows.
    pub fn num_query_rows(&self) -> usize {
        self.query_rows.len()
    }

    /// Number of key rows.
    pub fn num_key_rows(&self) -> usize {
        self.num_key_rows
    }

    /// Rows of the query and of the key tensor: those of the batch or, with work lists on a GPU, their
    /// capacity.
    pub(super) fn tensor_rows(&self) -> [usize; 2] {
        let capacity = self.tables().map(|tables| tables.capacity);
        capacity.map_or([self.num_query_rows(), self.num_key_rows], |c| [c.query_rows, c.key_rows])
    }

    /// The keys of `range` that query row `query` sees, counted from the first one of the range.
    pub fn visible(&self, query: usize, range: &KvRange) -> Range<usize> {
        let Range { start, end } = range.rows;
        let row = self.query_rows[query];
        match range.mask {
            MaskKind::Full => 0..end - start,
            MaskKind::Causal => 0..(row + 1).clamp(start, end) - start,
            MaskKind::Window(reach) => {
                let first = row.saturating_sub(reach).clamp(start, end) - start;
                first..row.saturating_add(reach).saturating_add(1).clamp(start, end) - start
            }
        }
    }

    /// Number of unmasked (query, key) pairs.
    pub fn num_pairs(&self) -> u64 {
        self.num_pairs
    }

    fn count_pairs(&self) -> u64 {
        let of_tile = |tile: &QueryTile| -> u64 {
            tile.rows
                .clone()
                .map(|q| tile.keys.iter().map(|r| self.visible(q, r).len() as u64).sum::<u64>())
                .sum()
        };
        self.tiles.iter().map(of_tile).sum()
    }
}

fn all_rows(segments: &[Segment]) -> Vec<usize> {
    (0..segments.last().map_or(0, |s| s.start + s.len)).collect()
}

/// The keys of its own segment that queries from row `first` to row `last` see.
fn own_range(mask: AttnMask, segment: &Segment, first: usize, last: usize) -> KvRange {
    let Range { start, end } = segment.rows();
    match mask {
        AttnMask::Causal => KvRange { rows: start..last + 1, mask: MaskKind::Causal },
        AttnMask::Full => KvRange { rows: start..end, mask: MaskKind::Full },
        AttnMask::Window(reach) => KvRange {
            rows: first.saturating_sub(reach).max(start)
                ..end.min(last.saturating_add(reach).saturating_add(1)),
            mask: MaskKind::Window(reach),
        },
    }
}

/// The rows of the prefixes of segment `i`, outermost first.
fn prefix_ranges(segments: &[Segment], i: usize) -> Vec<KvRange> {
    let mut ranges = Vec::new();
    let mut prefix = segments[i].prefix;
    while let Some(p) = prefix {
        ranges.push(KvRange { rows: segments[p].rows(), mask: MaskKind::Full });
        prefix = segments[p].prefix;
    }
    ranges.reverse();
    ranges
}
