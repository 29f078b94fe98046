//! The norm over several tensors, and the clipping rule.

use super::{clip_factor, grad_norm};
use crate::ops::testing::cpu;

#[test]
fn the_norm_covers_all_tensors() {
    let device = cpu();
    let (a, b) = (device.tensor(1, 2, &[3.0f32, 0.0]).unwrap(), device.tensor(2, 1, &[0.0, -4.0]).unwrap());
    assert_eq!(grad_norm(&device, &[&a, &b]), 5.0);
    assert_eq!(grad_norm::<f32>(&device, &[]), 0.0);
}

#[test]
fn one_bad_element_shows() {
    let device = cpu();
    let bad = device.tensor(1, 2, &[1.0f32, f32::NAN]).unwrap();
    assert!(!grad_norm(&device, &[&bad]).is_finite());
}

#[test]
fn clipping_only_shrinks() {
    assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
    assert_eq!(clip_factor(4.0, Some(1.0)), 1.0 / (4.0 + 1e-6));
    assert_eq!(clip_factor(4.0, None), 1.0);
}
