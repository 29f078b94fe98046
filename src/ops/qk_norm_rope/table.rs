//! The positions of rows in their sequences, and the cosines and sines of these positions.

use std::sync::Arc;

use super::OP;
use crate::device::kernels::DevicePtr;
use crate::device::{Device, Table, Tensor};
use crate::error::{Error, Result};
use crate::ops::LiveRows;
use crate::tensor::{DType, Real};

/// Positions by row, and cosines and sines by position, `[num_positions, head_dim / 2]` each. Tables derived
/// from one table share its angles.
#[derive(Debug)]
pub struct RopeTable<T: Real> {
    positions: Vec<usize>,
    by_row: Table<u32>,
    angles: Arc<Angles<T>>,
}

#[derive(Debug)]
struct Angles<T: Real> {
    cos: Tensor<T>,
    sin: Tensor<T>,
}

impl<T: Real> RopeTable<T> {
    /// The table for rows at these `positions`, with base `theta` and no spare capacity.
    ///
    /// The angles of f32 are rounded where transformers rounds them (inverse frequency and product in f32),
    /// since at position 1000 one rounding more or less changes the angle by 6e-5. In f64 nothing is rounded
    /// to f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if `head_dim` is odd; else errors of the device.
    pub fn new(device: &Device, positions: &[usize], head_dim: usize, theta: f64) -> Result<Self> {
        let num_positions = positions.iter().max().map_or(0, |&last| last + 1);
        let mut table = Self::with_capacity(device, positions.len(), num_positions, head_dim, theta)?;
        table.write(device, positions)?;
        Ok(table)
    }

    /// An empty table, with capacity for `capacity` rows at positions below `num_positions`.
    ///
    /// # Errors
    /// As [`RopeTable::new`].
    pub fn with_capacity(
        device: &Device,
        capacity: usize,
        num_positions: usize,
        head_dim: usize,
        theta: f64,
    ) -> Result<Self> {
        if !head_dim.is_multiple_of(2) || head_dim == 0 {
            return Err(Error::shape(OP, "head_dim", "an even number", head_dim));
        }
        let mut by_row = Table::with_capacity(device, capacity)?;
        by_row.write(device, &[])?;
        let angles = Arc::new(Angles::new(device, num_positions, head_dim, theta)?);
        Ok(Self { positions: Vec::new(), by_row, angles })
    }

    /// An empty table, with capacity for `capacity` rows at the positions of this one.
    ///
    /// # Errors
    /// Those of the device.
    pub fn sibling(&self, device: &Device, capacity: usize) -> Result<Self> {
        let mut by_row = Table::with_capacity(device, capacity)?;
        by_row.write(device, &[])?;
        Ok(Self { positions: Vec::new(), by_row, angles: self.angles.clone() })
    }

    /// Replaces the rows, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows exceed the capacity, or a position is beyond the last; else errors of the
    /// device.
    pub fn write(&mut self, device: &Device, positions: &[usize]) -> Result<()> {
        let limit = self.angles.cos.rows();
        if let Some(position) = positions.iter().find(|&&position| position >= limit) {
            return Err(Error::shape(OP, "positions", format!("below {limit}"), position));
        }
        let entries: Vec<u32> = positions.iter().map(|&position| position as u32).collect();
        self.by_row.write(device, &entries)?;
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        Ok(())
    }

    /// The same table for some of its rows.
    ///
    /// # Errors
    /// Those of the device.
    pub fn gather(&self, device: &Device, rows: &[usize]) -> Result<Self> {
        let positions: Vec<usize> = rows.iter().map(|&row| self.positions[row]).collect();
        let entries: Vec<u32> = positions.iter().map(|&position| position as u32).collect();
        let by_row = Table::new(device, &entries)?;
        Ok(Self { positions, by_row, angles: self.angles.clone() })
    }

    /// The number of live rows.
    pub fn live_rows(&self) -> LiveRows {
        LiveRows::at(self.by_row.count_ptr())
    }

    /// Capacity in rows.
    pub fn capacity(&self) -> usize {
        self.by_row.capacity()
    }

    /// Elements of a head.
    pub(super) fn head_dim(&self) -> usize {
        2 * self.angles.cos.cols()
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Cosines and sines of a row, on the host.
    pub(super) fn of_row(&self, row: usize) -> (&[T], &[T]) {
        let position = self.positions[row];
        (self.angles.cos.row(position), self.angles.sin.row(position))
    }

    /// Addresses of the positions, the cosines and the sines.
    pub(super) fn ptrs(&self) -> [DevicePtr; 3] {
        [self.by_row.ptr(), self.angles.cos.ptr(), self.angles.sin.ptr()]
    }
}

impl<T: Real> Angles<T> {
    fn new(device: &Device, num_positions: usize, head_dim: usize, theta: f64) -> Result<Self> {
        let half = head_dim / 2;
        if device.is_dry() {
            return Ok(Self {
                cos: device.empty(num_positions, half)?,
                sin: device.empty(num_positions, half)?,
            });
        }
        let inverse: Vec<f64> =
            (0..half).map(|i| 1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)).collect();
        let mut values = [Vec::with_capacity(num_positions * half), Vec::with_capacity(num_positions * half)];
        for position in 0..num_positions {
            for &inverse in &inverse {
                let angle = match T::DTYPE {
                    DType::F64 => position as f64 * inverse,
                    _ => f64::from(position as f32 * inverse as f32),
                };
                values[0].push(T::from_f64(angle.cos()));
                values[1].push(T::from_f64(angle.sin()));
            }
        }
        let [cos, sin] = values;
        Ok(Self {
            cos: device.tensor(num_positions, half, &cos)?,
            sin: device.tensor(num_positions, half, &sin)?,
        })
    }
}
