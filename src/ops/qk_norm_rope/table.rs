//! The positions of rows in their sequences, and the cosines and sines of these positions.

use std::sync::Arc;

use super::OP;
use crate::device::kernels::DevicePtr;
use crate::device::{Device, Table, Tensor};
use crate::error::{Error, Result};
use crate::kinds::RopeSpec;
use crate::ops::LiveRows;
use crate::tensor::{DType, Real};

/// For every row the place of its cosines and sines, which are `[places, head_dim / 2]` each: the place is the position, or, where
/// angles depend on the length of a sequence and this one is too long for the common ones, a place of the row's own. Tables derived
/// from one table share its angles, unless rows have their own.
#[derive(Debug)]
pub struct RopeTable<T: Real> {
    places: Vec<usize>,
    by_row: Table<u32>,
    angles: Arc<Angles<T>>,
    spec: RopeSpec,
    /// Positions that have a place.
    num_positions: usize,
}

/// Where a row stands in its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeRow {
    /// Its position.
    pub position: usize,
    /// Number of tokens of the sequence.
    pub len: usize,
}

#[derive(Debug)]
struct Angles<T: Real> {
    cos: Tensor<T>,
    sin: Tensor<T>,
}

impl<T: Real> RopeTable<T> {
    /// The table for rows at these `positions` of sequences without scaled angles, with base `theta` and no spare capacity.
    ///
    /// The angles of f32 are rounded where transformers rounds them (inverse frequency and product in f32),
    /// since at position 1000 one rounding more or less changes the angle by 6e-5. In f64 nothing is rounded
    /// to f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if `head_dim` is odd; else errors of the device.
    pub fn new(device: &Device, positions: &[usize], head_dim: usize, theta: f64) -> Result<Self> {
        let num_positions = positions.iter().max().map_or(0, |&last| last + 1);
        let spec = RopeSpec::unscaled(theta);
        let mut table = Self::with_capacity(device, positions.len(), num_positions, head_dim, spec)?;
        let rows = positions.iter().map(|&position| RopeRow { position, len: num_positions });
        table.write(device, &rows.collect::<Vec<_>>())?;
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
        spec: RopeSpec,
    ) -> Result<Self> {
        if !head_dim.is_multiple_of(2) || head_dim == 0 {
            return Err(Error::shape(OP, "head_dim", "an even number", head_dim));
        }
        let mut by_row = Table::with_capacity(device, capacity)?;
        by_row.write(device, &[])?;
        let common = num_positions.min(spec.max_fixed_len().unwrap_or(usize::MAX));
        let places = if common < num_positions { common + capacity } else { common };
        let angles = Arc::new(Angles::new(device, (common, places), head_dim, spec)?);
        Ok(Self { places: Vec::new(), by_row, angles, spec, num_positions })
    }

    /// An empty table, with capacity for `capacity` rows at the positions of this one.
    ///
    /// # Errors
    /// Those of the device.
    pub fn sibling(&self, device: &Device, capacity: usize) -> Result<Self> {
        if self.has_own_places() {
            return Self::with_capacity(device, capacity, self.num_positions, self.head_dim(), self.spec);
        }
        let mut by_row = Table::with_capacity(device, capacity)?;
        by_row.write(device, &[])?;
        let (spec, num_positions) = (self.spec, self.num_positions);
        Ok(Self { places: Vec::new(), by_row, angles: self.angles.clone(), spec, num_positions })
    }

    /// Whether rows of long sequences have places of their own.
    fn has_own_places(&self) -> bool {
        self.spec.max_fixed_len().is_some_and(|common| common < self.num_positions)
    }

    /// Replaces the rows, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows exceed the capacity, or a position is beyond the last; else errors of the
    /// device.
    pub fn write(&mut self, device: &Device, rows: &[RopeRow]) -> Result<()> {
        let limit = self.num_positions;
        if let Some(row) = rows.iter().find(|row| row.position >= limit) {
            return Err(Error::shape(OP, "positions", format!("below {limit}"), row.position));
        }
        let common = self.spec.max_fixed_len().unwrap_or(usize::MAX);
        let place = |(i, row): (usize, &RopeRow)| if row.len > common { common + i } else { row.position };
        let places: Vec<usize> = rows.iter().enumerate().map(place).collect();
        let entries: Vec<u32> = places.iter().map(|&place| place as u32).collect();
        self.by_row.write(device, &entries)?;
        self.places = places;
        if self.has_own_places() && rows.iter().any(|row| row.len > common) && !device.is_dry() {
            self.write_own(device, rows)?;
        }
        Ok(())
    }

    /// Writes the angles of rows of long sequences to their places.
    fn write_own(&mut self, device: &Device, rows: &[RopeRow]) -> Result<()> {
        let (head_dim, spec) = (self.head_dim(), self.spec);
        let common = spec.max_fixed_len().unwrap_or(usize::MAX);
        let angles = Arc::get_mut(&mut self.angles);
        let angles = angles.ok_or_else(|| Error::shape(OP, "angles", "those of one table", "shared ones"))?;
        let mut values = Content::new(&spec);
        let of_common = spec.frequencies(head_dim, common);
        (0..common).for_each(|position| values.push(&of_common, position));
        let mut frequencies = (0, Vec::new());
        for &RopeRow { position, len } in rows {
            if frequencies.0 != len {
                frequencies = (len, spec.frequencies(head_dim, len));
            }
            values.push(&frequencies.1, position);
        }
        device.write_start(&mut angles.cos, &values.cos)?;
        device.write_start(&mut angles.sin, &values.sin)
    }

    /// The same table for some of its rows.
    ///
    /// # Errors
    /// Those of the device.
    pub fn gather(&self, device: &Device, rows: &[usize]) -> Result<Self> {
        let places: Vec<usize> = rows.iter().map(|&row| self.places[row]).collect();
        let entries: Vec<u32> = places.iter().map(|&place| place as u32).collect();
        let by_row = Table::new(device, &entries)?;
        let (spec, num_positions) = (self.spec, self.num_positions);
        Ok(Self { places, by_row, angles: self.angles.clone(), spec, num_positions })
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
        self.places.len()
    }

    /// Cosines and sines of a row, on the host.
    pub(super) fn of_row(&self, row: usize) -> (&[T], &[T]) {
        let place = self.places[row];
        (self.angles.cos.row(place), self.angles.sin.row(place))
    }

    /// Addresses of the places, the cosines and the sines.
    pub(super) fn ptrs(&self) -> [DevicePtr; 3] {
        [self.by_row.ptr(), self.angles.cos.ptr(), self.angles.sin.ptr()]
    }
}

impl<T: Real> Angles<T> {
    /// Those of the first `common` positions, with room for `places`.
    fn new(
        device: &Device,
        (common, places): (usize, usize),
        head_dim: usize,
        spec: RopeSpec,
    ) -> Result<Self> {
        let half = head_dim / 2;
        if device.is_dry() {
            return Ok(Self { cos: device.empty(places, half)?, sin: device.empty(places, half)? });
        }
        let mut values = Content::new(&spec);
        let frequencies = spec.frequencies(head_dim, common);
        (0..common).for_each(|position| values.push(&frequencies, position));
        values.cos.resize(places * half, T::ZERO);
        values.sin.resize(places * half, T::ZERO);
        Ok(Self {
            cos: device.tensor(places, half, &values.cos)?,
            sin: device.tensor(places, half, &values.sin)?,
        })
    }
}

/// Cosines and sines, position after position.
struct Content<T> {
    cos: Vec<T>,
    sin: Vec<T>,
    factor: f64,
}

impl<T: Real> Content<T> {
    fn new(spec: &RopeSpec) -> Self {
        Self { cos: Vec::new(), sin: Vec::new(), factor: spec.attention_factor() }
    }

    fn push(&mut self, frequencies: &[f64], position: usize) {
        for &frequency in frequencies {
            let angle = match T::DTYPE {
                DType::F64 => position as f64 * frequency,
                _ => f64::from(position as f32 * frequency as f32),
            };
            self.cos.push(T::from_f64(angle.cos() * self.factor));
            self.sin.push(T::from_f64(angle.sin() * self.factor));
        }
    }
}
