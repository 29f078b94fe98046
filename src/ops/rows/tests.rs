//! Gather and scatter are transposes of each other; bad rows are refused; an index keeps its capacity.

use super::{RowIndex, gather, scatter_add};
use crate::ops::testing::{cpu, inner, random};

#[test]
fn scatter_is_the_transpose_of_gather() {
    let device = cpu();
    let (x, y) = (random::<f64>(&device, 6, 5, 0), random::<f64>(&device, 3, 5, 1));
    let rows = RowIndex::new(&device, &[0, 3, 5]).unwrap();
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
    assert!(gather(&device, &x, &RowIndex::new(&device, &[2]).unwrap()).is_err());
    assert!(RowIndex::new(&device, &[1, 0]).is_err());
    assert!(RowIndex::new(&device, &[1, 1]).is_err());
}

#[test]
fn an_index_may_be_written_again_within_its_room() {
    let device = cpu();
    let x = random::<f64>(&device, 6, 5, 0);
    let mut index = RowIndex::with_capacity(&device, 3).unwrap();
    assert!(index.rows().is_empty());
    index.write(&device, &[2, 4]).unwrap();
    let picked = gather(&device, &x, &index).unwrap();
    assert_eq!((picked.rows(), picked.row(1)), (3, x.row(4)));
    assert!(index.write(&device, &[0, 1, 2, 3]).is_err());
    assert_eq!(index.rows(), [2, 4]);
}
