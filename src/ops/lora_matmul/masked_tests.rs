//! Both forms of the op on both devices; how good masks are is tested with [`Dropout`].

use super::{Dropout, RowKeys, Rows, mask, mask_in_place};
use crate::batch::Batch;
use crate::device::Device;
use crate::tensor::Real;

const SHAPE: [usize; 2] = [37, 40];

fn rows(device: &Device) -> Rows {
    let mut batch = Batch::default();
    for len in [20, 17] {
        batch.push_segment(&vec![0; len], None, 0);
    }
    Rows::new(device, SHAPE[0], &[], Some(&RowKeys::new(&batch.segments))).unwrap()
}

/// The masked numbers 1, 2, ... of both forms.
fn run<T: Real>(device: &Device, dropout: Dropout) -> [Vec<f32>; 2] {
    let values: Vec<T> = (0..SHAPE[0] * SHAPE[1]).map(|i| T::from_f32((i % 97 + 1) as f32)).collect();
    let rows = rows(device);
    let mut x = device.tensor(SHAPE[0], SHAPE[1], &values).unwrap();
    let mut y = device.empty(SHAPE[0], SHAPE[1]).unwrap();
    mask(device, (dropout, &rows), &x, &mut y).unwrap();
    mask_in_place(device, (dropout, &rows), &mut x).unwrap();
    [y, x].map(|out| device.read(&out).unwrap().iter().map(|value| value.to_f64() as f32).collect())
}

#[test]
fn both_forms_give_the_masked_numbers() {
    let device = Device::cpu(2).unwrap();
    let dropout = Dropout::of_base(0.25, 7, 3, 1).unwrap();
    let [apart, there] = run::<f32>(&device, dropout);
    assert_eq!(apart, there);
    let kept = |i: usize| (i % 97 + 1) as f32 / 0.75;
    assert!(apart.iter().enumerate().all(|(i, &y)| y == 0.0 || (y / kept(i) - 1.0).abs() < 1e-6));
    let share = apart.iter().filter(|&&y| y == 0.0).count() as f64 / apart.len() as f64;
    assert!((share - 0.25).abs() < 0.05, "{share}");
    let others = [(7, 3, 2), (7, 4, 1), (8, 3, 1)].map(|(seed, step, place)| {
        run::<f32>(&device, Dropout::of_base(0.25, seed, step, place).unwrap())[0].clone()
    });
    assert!(others.iter().all(|other| *other != apart), "place, step and seed count");
    let of_layer = run::<f32>(&device, Dropout::new(0.25, 7, 3, 1).unwrap());
    assert_ne!(of_layer[0], apart, "the masks of adapters are others");
    assert!(Dropout::of_base(0.0, 1, 1, 1).is_none());
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let device = Device::cpu(1).unwrap();
    let (rows, dropout) = (rows(&device), Dropout::of_base(0.5, 1, 1, 1).unwrap());
    let (x, mut y) = (device.zeros::<f32>(37, 8).unwrap(), device.zeros::<f32>(37, 16).unwrap());
    assert!(mask(&device, (dropout, &rows), &x, &mut y).is_err());
    let mut other = device.zeros::<f32>(36, 8).unwrap();
    assert!(mask_in_place(&device, (dropout, &rows), &mut other).is_err());
}

#[cfg(feature = "emulated")]
mod gpu {
    use half::bf16;

    use super::*;
    use crate::ops::lora_matmul::gpu::dropout_keys;
    use crate::ops::testing::kernel_device;

    #[test]
    fn kernels_give_the_same_mask() {
        let dropout = Dropout::of_base(0.25, 7, 3, 1).unwrap();
        let [expected, _] = run::<f32>(&Device::cpu(2).unwrap(), dropout);
        let device = kernel_device(11);
        let key = dropout_keys(&device, &[dropout.key()]).unwrap();
        let [apart, there] = run::<bf16>(&device, dropout.with_key_at(key.ptr()));
        assert_eq!(apart, there);
        let rounded = |value: f32| bf16::from_f32(value).to_f32();
        assert!(apart.iter().zip(&expected).all(|(got, expected)| *got == rounded(*expected)));
    }
}
