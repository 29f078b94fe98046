//! A list in GPU memory that changes from batch to batch, with a capacity and a number of entries.
//!
//! A graph is recorded once, with the addresses of its tables and with grids for their capacity; only the
//! content of the tables differs between batches. So kernels read the number of entries from memory
//! ([`Table::count_ptr`]), and blocks beyond it return at once.

use std::marker::PhantomData;

use super::Device;
use super::kernels::DevicePtr;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// Words before the entries: their number, and padding so that the entries start at a sector of 32 bytes.
const HEADER: usize = 8;

/// See the module documentation. `S` is a struct shared with kernels, whose size is a multiple of 4 bytes.
#[derive(Debug)]
pub struct Table<S> {
    words: Tensor<u32>,
    capacity: usize,
    len: usize,
    entry: PhantomData<S>,
}

impl<S: bytemuck::Pod> Table<S> {
    const WORDS: usize = size_of::<S>() / size_of::<u32>();

    /// A table of these entries, without spare capacity.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device, entries: &[S]) -> Result<Self> {
        let mut table = Self::with_capacity(device, entries.len())?;
        table.write(device, entries)?;
        Ok(table)
    }

    /// An empty table with capacity for `capacity` entries. Its content is unspecified until the first [`Table::write`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, capacity: usize) -> Result<Self> {
        let words = device.empty(1, HEADER + capacity * Self::WORDS)?;
        Ok(Self { words, capacity, len: 0, entry: PhantomData })
    }

    /// Replaces the content, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Shape`] if the entries exceed the capacity; errors of the device.
    pub fn write(&mut self, device: &Device, entries: &[S]) -> Result<()> {
        if entries.len() > self.capacity {
            return Err(Error::shape(
                "table",
                "entries",
                format!("at most {}", self.capacity),
                entries.len(),
            ));
        }
        let mut words = vec![0u32; HEADER];
        words[0] = entries.len() as u32;
        words.extend_from_slice(bytemuck::cast_slice(entries));
        self.len = entries.len();
        device.write_start(&mut self.words, &words)
    }

    /// Address of the first entry.
    pub fn ptr(&self) -> DevicePtr {
        match self.words.ptr() {
            DevicePtr(0) => DevicePtr(0),
            DevicePtr(base) => DevicePtr(base + (HEADER * size_of::<u32>()) as u64),
        }
    }

    /// Address of the number of entries, an i32.
    pub fn count_ptr(&self) -> DevicePtr {
        self.words.ptr()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Capacity in entries, which grids are sized for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_its_room_and_refuses_more() {
        let device = Device::cpu(1).unwrap();
        let mut table = Table::<[u32; 2]>::with_capacity(&device, 3).unwrap();
        table.write(&device, &[[1, 2], [3, 4]]).unwrap();
        assert_eq!((table.len(), table.capacity()), (2, 3));
        assert_eq!(table.words.data()[..12], [2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        table.write(&device, &[[5, 6]]).unwrap();
        assert_eq!(table.words.data()[..10], [1, 0, 0, 0, 0, 0, 0, 0, 5, 6]);
        assert!(table.write(&device, &[[0, 0]; 4]).is_err());
        assert_eq!(Table::<u32>::new(&Device::dry(), &[1, 2, 3]).unwrap().ptr(), DevicePtr(0));
    }
}
