//! Gather and scatter are transposes of each other; bad rows are refused.

use super::{gather, scatter_add};
use crate::ops::testing::{cpu, inner, random};

#[test]
fn scatter_is_the_transpose_of_gather() {
    let device = cpu();
    let (x, y) = (random::<f64>(&device, 6, 5, 0), random::<f64>(&device, 3, 5, 1));
    let rows = [0, 3, 5];
    let mut back = device.zeros(6, 5).unwrap();
    scatter_add(&device, &y, &rows, &mut back).unwrap();
    let picked = gather(&device, &x, &rows).unwrap();
    assert_eq!(picked.row(1), x.row(3));
    assert!((inner(picked.data(), y.data()) - inner(x.data(), back.data())).abs() < 1e-12);
}

#[test]
fn bad_rows_are_refused() {
    let device = cpu();
    let x = random::<f32>(&device, 2, 2, 0);
    assert!(gather(&device, &x, &[2]).is_err());
    assert!(gather(&device, &x, &[1, 0]).is_err());
    assert!(gather(&device, &x, &[1, 1]).is_err());
}
