//! The content of tensors: creating, reading and overwriting it on every kind of device.

use super::tensor::{HostData, Tensor};
use super::{Device, Machine};
use crate::error::{Error, Result};
use crate::tensor::Element;

impl Device {
    /// A tensor `[rows, cols]` with unspecified content (all bits set, which is NaN for real numbers, in builds with debug
    /// assertions), to be overwritten whole.
    ///
    /// # Errors
    /// [`Error::Device`] if memory runs out, with the needed and the free bytes.
    pub fn empty<T: Element>(&self, rows: usize, cols: usize) -> Result<Tensor<T>> {
        let mut tensor = Tensor::new(self, rows, cols)?;
        if cfg!(debug_assertions) {
            // Nothing to do on a GPU, whose allocator has set the bits already.
            bytemuck::cast_slice_mut::<T, u8>(tensor.data_mut()).fill(0xff);
        }
        Ok(tensor)
    }

    /// A tensor `[rows, cols]` of zeros.
    ///
    /// # Errors
    /// As [`Device::empty`].
    pub fn zeros<T: Element>(&self, rows: usize, cols: usize) -> Result<Tensor<T>> {
        let mut tensor = Tensor::new(self, rows, cols)?;
        match tensor.block() {
            Some(block) => block.gpu().fill(block.ptr(), 0, tensor.bytes())?,
            None => tensor.data_mut().fill(T::zeroed()),
        }
        Ok(tensor)
    }

    /// A tensor `[rows, cols]` with the content of `values`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values is not rows times cols; else as [`Device::empty`].
    pub fn tensor<T: Element>(&self, rows: usize, cols: usize, values: &[T]) -> Result<Tensor<T>> {
        let mut tensor = Tensor::new(self, rows, cols)?;
        self.write(&mut tensor, values)?;
        Ok(tensor)
    }

    /// A read-only tensor over memory with another owner (the weights file). A GPU gets a copy.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values is not rows times cols; else as [`Device::empty`].
    pub fn borrowed<T: Element>(&self, rows: usize, cols: usize, data: HostData<T>) -> Result<Tensor<T>> {
        let values = data.as_ref().as_ref();
        if self.machine() == Machine::Gpu {
            return self.tensor(rows, cols, values);
        }
        if values.len() != rows * cols {
            return Err(Error::shape("device.borrowed", "data", rows * cols, values.len()));
        }
        Ok(Tensor::borrowed(self, rows, cols, data))
    }

    /// Copies the content of a tensor of this device to the host, after all work queued so far. Zeros on a
    /// dry device.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy or something before it failed.
    pub fn read<T: Element>(&self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        match tensor.block() {
            None if !self.is_dry() => Ok(tensor.data().to_vec()),
            _ => {
                let mut values = vec![T::zeroed(); tensor.len()];
                self.read_into(tensor, &mut values)?;
                Ok(values)
            }
        }
    }

    /// As [`Device::read`], into the caller's buffer. A dry device leaves the buffer unchanged.
    ///
    /// # Errors
    /// [`Error::Shape`] if the length of the buffer differs from the number of elements; else as
    /// [`Device::read`].
    pub fn read_into<T: Element>(&self, tensor: &Tensor<T>, values: &mut [T]) -> Result<()> {
        if values.len() != tensor.len() {
            return Err(Error::shape("device.read", "values", tensor.len(), values.len()));
        }
        match tensor.block() {
            Some(block) => block.gpu().read(block.ptr(), bytemuck::cast_slice_mut(values)),
            None if self.is_dry() => Ok(()),
            None => {
                values.copy_from_slice(tensor.data());
                Ok(())
            }
        }
    }

    /// Overwrites a tensor of this device with `values`, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer values than elements; [`Error::Device`] if the copy failed.
    pub fn write<T: Element>(&self, tensor: &mut Tensor<T>, values: &[T]) -> Result<()> {
        if values.len() != tensor.len() {
            return Err(Error::shape("device.write", "values", tensor.len(), values.len()));
        }
        self.write_start(tensor, values)
    }

    /// Overwrites the first elements of a tensor of this device, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more values than elements; [`Error::Device`] if the copy failed.
    pub fn write_start<T: Element>(&self, tensor: &mut Tensor<T>, values: &[T]) -> Result<()> {
        if values.len() > tensor.len() {
            return Err(Error::shape("device.write", "values", tensor.len(), values.len()));
        }
        match tensor.block() {
            Some(block) => block.gpu().write(block.ptr(), bytemuck::cast_slice(values)),
            None if self.is_dry() => Ok(()),
            None => {
                tensor.data_mut()[..values.len()].copy_from_slice(values);
                Ok(())
            }
        }
    }
}
