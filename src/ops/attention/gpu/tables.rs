//! The work lists that the kernels read: built from a plan and kept in GPU memory at a fixed capacity.

use std::cmp::Reverse;

use super::plan::{TILE, TileCapacity};
use crate::device::kernels::params::{AttentionKeyTile, AttentionRange, AttentionTile};
use crate::device::{Device, Table};
use crate::error::{Error, Result};
use crate::ops::attention::{AttentionPlan, MaskKind, OP, PlanCapacity, QueryTile};

/// The lists on the host. See `kernels/attention.cuh` for what an entry means.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) tiles: Vec<AttentionTile>,
    pub(super) ranges: Vec<AttentionRange>,
    pub(super) packed_rows: Vec<i32>,
    pub(super) key_tiles: Vec<AttentionKeyTile>,
    pub(super) visits: Vec<i32>,
}

impl Lists {
    /// The lists of a plan. Tiles with the most work come first.
    pub(super) fn new(plan: &AttentionPlan) -> Self {
        let mut lists = Self::default();
        let mut tiles: Vec<&QueryTile> = plan.tiles().iter().collect();
        tiles.sort_by_key(|tile| {
            Reverse(tile.keys.iter().map(|r| r.rows.len().div_ceil(TILE)).sum::<usize>())
        });
        for tile in &tiles {
            lists.add_queries(plan, tile);
        }
        lists.add_keys(plan, &tiles);
        lists
    }

    fn add_queries(&mut self, plan: &AttentionPlan, tile: &QueryTile) {
        let packed = &plan.packed_rows()[tile.rows.clone()];
        let range_start = self.ranges.len() as i32;
        for range in tile.keys.iter().filter(|range| !range.rows.is_empty()) {
            let unmasked_end = match range.mask {
                MaskKind::Full => range.rows.end,
                MaskKind::Causal => range.rows.end.min(packed[0] + 1),
                MaskKind::Window(_) => range.rows.start,
            };
            let reach = match range.mask {
                MaskKind::Full | MaskKind::Causal => 0,
                MaskKind::Window(reach) => reach,
            };
            self.ranges.push(AttentionRange {
                key_start: range.rows.start as i32,
                key_end: range.rows.end as i32,
                unmasked_end: unmasked_end as i32,
                reach: reach as i32,
            });
        }
        self.tiles.push(AttentionTile {
            row_start: tile.rows.start as i32,
            row_end: tile.rows.end as i32,
            range_start,
            range_end: self.ranges.len() as i32,
        });
        self.packed_rows.extend(packed.iter().map(|&row| row as i32));
        self.packed_rows.resize(self.tiles.len() * TILE, i32::MAX);
    }

    fn add_keys(&mut self, plan: &AttentionPlan, tiles: &[&QueryTile]) {
        // Key tiles in row order, and the first of every segment.
        let (mut first, mut rows) = (Vec::new(), Vec::new());
        for segment in plan.segments() {
            first.push(rows.len());
            rows.extend(segment.clone().step_by(TILE).map(|start| start..segment.end.min(start + TILE)));
        }
        let mut visits: Vec<Vec<i32>> = vec![Vec::new(); rows.len()];
        for (index, tile) in tiles.iter().enumerate() {
            let earliest = plan.packed_rows()[tile.rows.start];
            let latest = plan.packed_rows()[tile.rows.end - 1];
            for range in tile.keys.iter().filter(|range| !range.rows.is_empty()) {
                // Ranges are within a segment, and begin where it begins but for windows.
                let segment = plan.segments().partition_point(|s| s.end <= range.rows.start);
                let start = plan.segments()[segment].start;
                let key_tiles = (range.rows.start - start) / TILE..(range.rows.end - start).div_ceil(TILE);
                for key_tile in first[segment] + key_tiles.start..first[segment] + key_tiles.end {
                    let keys = &rows[key_tile];
                    let masked = match range.mask {
                        MaskKind::Full => false,
                        MaskKind::Causal => earliest + 1 < keys.end,
                        MaskKind::Window(reach) => {
                            latest > keys.start + reach || keys.end > earliest + reach + 1
                        }
                    };
                    visits[key_tile].push(2 * index as i32 + i32::from(masked));
                }
            }
        }
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&key_tile| Reverse(visits[key_tile].len()));
        for key_tile in order {
            let visit_start = self.visits.len() as i32;
            self.visits.append(&mut visits[key_tile]);
            self.key_tiles.push(AttentionKeyTile {
                key_start: rows[key_tile].start as i32,
                key_end: rows[key_tile].end as i32,
                visit_start,
                visit_end: self.visits.len() as i32,
            });
        }
    }
}

/// The lists on the device.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(super) tiles: Table<AttentionTile>,
    pub(super) ranges: Table<AttentionRange>,
    pub(super) packed_rows: Table<i32>,
    pub(super) key_tiles: Table<AttentionKeyTile>,
    pub(super) visits: Table<i32>,
    /// The capacity of the lists.
    pub(crate) capacity: PlanCapacity,
}

impl Tables {
    /// The lists of `plan`, with exactly the capacity that it needs.
    pub(crate) fn exact(device: &Device, plan: &AttentionPlan) -> Result<Self> {
        let lists = Lists::new(plan);
        Ok(Self {
            tiles: Table::new(device, &lists.tiles)?,
            ranges: Table::new(device, &lists.ranges)?,
            packed_rows: Table::new(device, &lists.packed_rows)?,
            key_tiles: Table::new(device, &lists.key_tiles)?,
            visits: Table::new(device, &lists.visits)?,
            capacity: PlanCapacity {
                query_rows: plan.num_query_rows(),
                key_rows: plan.num_key_rows(),
                segments: plan.segments().len(),
                ranges: lists.ranges.len(),
                visits: lists.visits.len(),
            },
        })
    }

    /// Empty lists, with capacity for every plan within `capacity`.
    pub(crate) fn with_capacity(device: &Device, capacity: PlanCapacity) -> Result<Self> {
        let PlanCapacity { query_rows, key_rows, segments, ranges, visits } = capacity;
        // Every segment may end with a partial tile.
        let tiles = query_rows / TILE + segments.min(query_rows);
        let key_tiles = key_rows / TILE + segments.min(key_rows);
        let mut tables = Self {
            tiles: Table::with_capacity(device, tiles)?,
            ranges: Table::with_capacity(device, ranges)?,
            packed_rows: Table::with_capacity(device, tiles * TILE)?,
            key_tiles: Table::with_capacity(device, key_tiles)?,
            visits: Table::with_capacity(device, visits)?,
            capacity,
        };
        tables.write(device, &Lists::default())?;
        Ok(tables)
    }

    /// Replaces the lists by those of `plan`. On an error nothing has changed.
    pub(crate) fn replace(&mut self, device: &Device, plan: &AttentionPlan) -> Result<()> {
        let PlanCapacity { query_rows, key_rows, segments, ranges, visits } = self.capacity;
        let lists = Lists::new(plan);
        for (arg, most, got) in [
            ("query rows", query_rows, plan.num_query_rows()),
            ("key rows", key_rows, plan.num_key_rows()),
            ("segments", segments, plan.segments().len()),
            ("ranges of keys (prefixes of prefixes)", ranges, lists.ranges.len()),
            ("pairs of tiles", visits, lists.visits.len()),
        ] {
            at_most(arg, most, got)?;
        }
        self.write(device, &lists)
    }

    fn write(&mut self, device: &Device, lists: &Lists) -> Result<()> {
        self.tiles.write(device, &lists.tiles)?;
        self.ranges.write(device, &lists.ranges)?;
        self.packed_rows.write(device, &lists.packed_rows)?;
        self.key_tiles.write(device, &lists.key_tiles)?;
        self.visits.write(device, &lists.visits)
    }

    /// The capacity that grids are sized for.
    pub(super) fn tile_capacity(&self) -> TileCapacity {
        TileCapacity { tiles: self.tiles.capacity(), key_tiles: self.key_tiles.capacity() }
    }
}

fn at_most(arg: &'static str, most: usize, got: usize) -> Result<()> {
    if got <= most { Ok(()) } else { Err(Error::shape(OP, arg, format!("at most {most}"), got)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::attention::AttnMask;
    use crate::ops::attention::tests::{linked_segments, seen};

    /// The (query, key) pairs in the query lists, and those in the key lists.
    fn pairs(lists: &Lists) -> [Vec<(i32, i32)>; 2] {
        let packed =
            |tile: usize| lists.packed_rows[tile * TILE..][..TILE].iter().filter(|&&row| row < i32::MAX);
        let mut shown = [Vec::new(), Vec::new()];
        for (index, tile) in lists.tiles.iter().enumerate() {
            assert_eq!(packed(index).count() as i32, tile.row_end - tile.row_start);
            for range in &lists.ranges[tile.range_start as usize..tile.range_end as usize] {
                for &row in packed(index) {
                    let end = range.key_end.min(range.unmasked_end.max(row + 1));
                    shown[0].extend((range.key_start..end).map(|key| (row, key)));
                }
            }
        }
        for tile in &lists.key_tiles {
            for visit in &lists.visits[tile.visit_start as usize..tile.visit_end as usize] {
                for &row in packed((visit >> 1) as usize) {
                    let keys = tile.key_start..tile.key_end;
                    shown[1].extend(keys.filter(|&key| visit & 1 == 0 || key <= row).map(|key| (row, key)));
                }
            }
        }
        shown.iter_mut().for_each(|pairs| pairs.sort_unstable());
        shown
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Both lists contain exactly the pairs of the links, cover all keys, and stay within the capacity
        /// for this many rows.
        #[test]
        fn lists_show_every_row_what_its_links_say((segments, rows) in linked_segments()) {
            let mut expected: Vec<(i32, i32)> = Vec::new();
            for &row in &rows {
                expected.extend(seen(&segments, row).into_iter().map(|key| (row as i32, key as i32)));
            }
            expected.sort_unstable();
            let plan = AttentionPlan::for_rows(AttnMask::Causal, &segments, &rows).unwrap();
            let lists = Lists::new(&plan);
            let [of_queries, of_keys] = pairs(&lists);
            prop_assert_eq!(&of_queries, &expected);
            prop_assert_eq!(&of_keys, &expected);
            let keys: usize = lists.key_tiles.iter().map(|t| (t.key_end - t.key_start) as usize).sum();
            prop_assert_eq!(keys, segments.last().unwrap().rows().end);

            let capacity = PlanCapacity { query_rows: rows.len(), ..PlanCapacity::of(&segments) };
            let tables = Tables::with_capacity(&Device::dry(), capacity).unwrap();
            prop_assert!(lists.tiles.len() <= tables.tiles.capacity());
            prop_assert!(lists.ranges.len() <= tables.ranges.capacity());
            prop_assert!(lists.packed_rows.len() <= tables.packed_rows.capacity());
            prop_assert!(lists.key_tiles.len() <= tables.key_tiles.capacity());
            prop_assert!(lists.visits.len() <= tables.visits.capacity());
        }
    }
}
