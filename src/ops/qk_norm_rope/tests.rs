//! RoPE is a rotation by position; gradients with and without QK-norm against central differences.

use super::{Backward, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob, RopeTable, backward, forward};
use crate::device::Tensor;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random};

#[test]
fn position_0_changes_nothing_and_scores_depend_on_the_distance_only() {
    let device = cpu();
    let x = random::<f64>(&device, 1, 8, 0);
    let at = |position: usize| {
        let table = RopeTable::new(&device, &[position], 8, 10_000.0).unwrap();
        let mut y = device.empty(1, 8).unwrap();
        let op = QkNormRope { norm: None, table: &table, head_dim: 8 };
        forward(&device, &mut [RopeJob { x: &x, op, y: &mut y }]).unwrap();
        y
    };
    assert_eq!(at(0).data(), x.data());
    let score = |a, b| inner(at(a).data(), at(b).data());
    assert!((score(3, 10) - score(103, 110)).abs() < 1e-9);
    assert!((score(3, 10) - score(3, 11)).abs() > 1e-6);
}

#[test]
fn backward_is_the_gradient() {
    let device = cpu();
    let (x, dy) = (random::<f64>(&device, 3, 12, 0), random(&device, 3, 12, 1));
    let weight = random(&device, 1, 6, 2);
    let table = RopeTable::new(&device, &[0, 5, 1000], 6, 100.0).unwrap();
    for norm in [None, Some(HeadNorm { weight: &weight, eps: 1e-6 })] {
        let op = QkNormRope { norm, table: &table, head_dim: 6 };
        let mut dx = cast(&device, &dy);
        let jobs = &mut [RopeBackwardJob { x: &x, op, dy: &mut dx }];
        backward(&device, Backward { jobs, projection: None, complete: &[] }).unwrap();
        check_gradient(&device, "x", &x, dx.data(), |x: &Tensor<f64>| {
            let mut y = device.empty(3, 12).unwrap();
            forward(&device, &mut [RopeJob { x, op, y: &mut y }]).unwrap();
            inner(y.data(), dy.data())
        });
    }
}

#[test]
fn a_gathered_table_is_that_of_the_gathered_positions() {
    let device = cpu();
    let table = RopeTable::<f32>::new(&device, &[4, 7, 9], 4, 1e6).unwrap().gather(&device, &[2, 0]).unwrap();
    let direct = RopeTable::<f32>::new(&device, &[9, 4], 4, 1e6).unwrap();
    for row in 0..2 {
        assert_eq!(table.of_row(row), direct.of_row(row));
    }
}

#[test]
fn an_odd_head_is_refused() {
    assert!(RopeTable::<f32>::new(&cpu(), &[0], 5, 1e4).is_err());
}

#[test]
fn a_table_may_be_written_again_within_its_room_and_positions() {
    let device = cpu();
    let mut table = RopeTable::<f64>::with_capacity(&device, 3, 10, 4, 1e4).unwrap();
    table.write(&device, &[9, 0]).unwrap();
    let direct = RopeTable::<f64>::new(&device, &[9, 0], 4, 1e4).unwrap();
    assert_eq!((table.of_row(0), table.of_row(1)), (direct.of_row(0), direct.of_row(1)));
    assert!(table.write(&device, &[10]).is_err());
    assert!(table.write(&device, &[0; 4]).is_err());
}
