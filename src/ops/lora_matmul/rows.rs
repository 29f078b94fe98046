//! The mapping of rows to adapters, and their keys for dropout: on the host, and on a GPU also in its memory.

use super::{OP, RowKeys};
use crate::batch::AdapterRows;
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::LoraRun;
use crate::device::{Device, Machine, Table};
use crate::error::{Error, Result};
use crate::ops::LiveRows;

/// The rows that go through a group of layers.
#[derive(Debug)]
pub struct Rows {
    runs: Vec<AdapterRows>,
    keys: RowKeys,
    /// Rows of the tensors.
    capacity: usize,
    live: LiveRows,
    /// `None` on a CPU.
    tables: Option<Tables>,
}

/// The same for kernels.
#[derive(Debug)]
struct Tables {
    runs: Table<LoraRun>,
    /// The dropout keys of the rows; `None` without dropout.
    keys: Option<Table<[u32; 2]>>,
}

impl Rows {
    /// The rows of a batch: ascending `runs` (a row outside all runs has no adapter), and for dropout the
    /// `keys`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the runs do not ascend within `num_rows` or there are not as many keys as rows; errors of the device.
    pub fn new(
        device: &Device,
        num_rows: usize,
        runs: &[AdapterRows],
        keys: Option<&RowKeys>,
    ) -> Result<Self> {
        let mut rows = Self::with_capacity(device, num_rows, runs.len(), keys.is_some())?;
        rows.write(device, num_rows, runs.to_vec(), keys.cloned())?;
        Ok(rows)
    }

    /// Empty, with capacity for `capacity` rows in at most `runs` runs, with or without keys for dropout.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, capacity: usize, runs: usize, has_keys: bool) -> Result<Self> {
        let tables = match device.machine() {
            Machine::Cpu => None,
            Machine::Gpu => {
                let keys = has_keys.then(|| Table::with_capacity(device, capacity)).transpose()?;
                Some(Tables { runs: Table::with_capacity(device, runs)?, keys })
            }
        };
        Ok(Self { runs: Vec::new(), keys: RowKeys::default(), capacity, live: LiveRows::ALL, tables })
    }

    /// The same rows with another source for the number of live rows.
    pub fn counted(self, live: LiveRows) -> Self {
        Self { live, ..self }
    }

    /// Replaces the rows by those of another batch; see [`Rows::new`].
    ///
    /// # Errors
    /// As [`Rows::new`], and [`Error::Shape`] if there are more rows or runs than capacity.
    pub fn write(
        &mut self,
        device: &Device,
        num_rows: usize,
        runs: Vec<AdapterRows>,
        keys: Option<RowKeys>,
    ) -> Result<()> {
        let mut next = 0;
        for run in &runs {
            if run.rows.start < next || run.rows.end > num_rows || run.rows.start > run.rows.end {
                return Err(Error::shape(OP, "runs", format!("ascending, below {num_rows}"), &run.rows));
            }
            next = run.rows.end;
        }
        if num_rows > self.capacity {
            return Err(Error::shape(OP, "rows", format!("at most {}", self.capacity), num_rows));
        }
        if let Some(keys) = keys.as_ref().filter(|keys| keys.len() != num_rows) {
            return Err(Error::shape(OP, "keys", num_rows, keys.len()));
        }
        let entry = |run: &AdapterRows| LoraRun {
            row_start: run.rows.start as i32,
            row_end: run.rows.end as i32,
            adapter: run.adapter as i32,
            reserved: 0,
        };
        if let Some(tables) = &mut self.tables {
            tables.runs.write(device, &runs.iter().map(entry).collect::<Vec<_>>())?;
            if let (Some(table), Some(keys)) = (&mut tables.keys, &keys) {
                table.write(device, keys.as_slice())?;
            }
        }
        (self.runs, self.keys) = (runs, keys.unwrap_or_default());
        Ok(())
    }

    /// Rows of the tensors.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of live rows.
    pub(super) fn live(&self) -> LiveRows {
        self.live
    }

    /// The machine that the rows are made for.
    pub(super) fn machine(&self) -> Machine {
        if self.tables.is_some() { Machine::Gpu } else { Machine::Cpu }
    }

    pub(super) fn runs(&self) -> &[AdapterRows] {
        &self.runs
    }

    pub(super) fn keys(&self) -> &RowKeys {
        &self.keys
    }

    /// One more than the largest adapter that a run names.
    pub(super) fn adapters_named(&self) -> usize {
        self.runs.iter().map(|run| run.adapter + 1).max().unwrap_or(0)
    }

    /// Addresses of the runs and of their number, for kernels; null on a CPU.
    pub(super) fn run_ptrs(&self) -> [DevicePtr; 2] {
        self.tables.as_ref().map_or([DevicePtr(0); 2], |tables| [tables.runs.ptr(), tables.runs.count_ptr()])
    }

    /// True if the keys for dropout are in GPU memory.
    pub(super) fn has_key_table(&self) -> bool {
        self.tables.as_ref().is_some_and(|tables| tables.keys.is_some())
    }

    /// Address of the keys of the rows; null without.
    pub(super) fn key_ptr(&self) -> DevicePtr {
        let keys = self.tables.as_ref().and_then(|tables| tables.keys.as_ref());
        keys.map_or(DevicePtr(0), Table::ptr)
    }
}
