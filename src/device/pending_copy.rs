//! Asynchronous copies to the host: started now, received later, while the device continues.

use super::Device;
#[cfg(feature = "cuda")]
use super::recording::InFlight;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::tensor::Element;

/// A host buffer for the content of one tensor at a time.
#[derive(Debug)]
pub struct PendingCopy {
    device: Device,
    /// The content, if it is on the host already: from a device that computes synchronously.
    here: Option<Vec<u8>>,
    /// The copy in flight, or its buffer for the next copy.
    #[cfg(feature = "cuda")]
    in_flight: Option<InFlight>,
    /// True if a copy was started and not yet received.
    is_full: bool,
}

impl PendingCopy {
    /// No copy.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            here: None,
            #[cfg(feature = "cuda")]
            in_flight: None,
            is_full: false,
        }
    }

    /// Starts the copy of the first `len` elements of `tensor`, after all work queued so far. An earlier copy
    /// that was not received is lost.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor is shorter; [`Error::Device`] if the driver failed.
    pub fn send<T: Element>(&mut self, tensor: &Tensor<T>, len: usize) -> Result<()> {
        if len > tensor.len() {
            return Err(Error::shape("pending copy", "len", format!("at most {}", tensor.len()), len));
        }
        self.is_full = true;
        #[cfg(feature = "cuda")]
        if let Some(block) = tensor.block().filter(|block| block.gpu().is_card()) {
            // With capacity for the whole tensor, so that no later copy of it needs an allocation.
            let room = tensor.len() * size_of::<T>();
            self.in_flight =
                Some(block.gpu().post(self.in_flight.take(), block.ptr(), len * size_of::<T>(), room)?);
            return Ok(());
        }
        let values = self.device.read(tensor)?;
        self.here = Some(bytemuck::cast_slice(&values[..len]).to_vec());
        Ok(())
    }

    /// Waits for the copy and returns its content.
    ///
    /// # Errors
    /// [`Error::Shape`] if no copy was started; [`Error::Device`] if the copy or something before it failed.
    pub fn take<T: Element>(&mut self) -> Result<Vec<T>> {
        if !std::mem::take(&mut self.is_full) {
            return Err(Error::shape("pending copy", "content", "something sent", "nothing"));
        }
        let bytes = match self.here.take() {
            Some(bytes) => bytes,
            #[cfg(feature = "cuda")]
            None => self.in_flight.as_mut().map_or_else(|| Ok(Vec::new()), InFlight::receive)?,
            #[cfg(not(feature = "cuda"))]
            None => Vec::new(),
        };
        let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(&bytes);
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_can_be_taken_once() {
        let device = Device::cpu(1).unwrap();
        let mut copy = PendingCopy::new(&device);
        assert!(copy.take::<f32>().is_err());
        copy.send(&device.tensor(1, 3, &[1.0f32, 2.0, 3.0]).unwrap(), 2).unwrap();
        assert_eq!(copy.take::<f32>().unwrap(), [1.0, 2.0]);
        assert!(copy.take::<f32>().is_err());
        assert!(copy.send(&device.tensor(1, 1, &[1u32]).unwrap(), 2).is_err());
    }
}
