//! RoPE is a rotation by position; gradients with and without QK-norm against central differences.

use super::{
    Backward, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob, RopeRow, RopeTable, backward, forward,
};
use crate::device::Tensor;
use crate::kinds::{RopeScaling, RopeSpec};
use crate::ops::cols::Cols;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random};

#[test]
fn position_0_changes_nothing_and_scores_depend_on_the_distance_only() {
    let device = cpu();
    let x = random::<f64>(&device, 1, 8, 0);
    let at = |position: usize| {
        let table = RopeTable::new(&device, &[position], 8, 10_000.0).unwrap();
        let mut y = device.empty(1, 8).unwrap();
        let op = QkNormRope { norm: None, table: &table, head_dim: 8 };
        forward(&device, &mut [RopeJob { x: (&x).into(), op, y: &mut y }]).unwrap();
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
        let jobs = &mut [RopeBackwardJob { x: (&x).into(), op, dy: &mut dx }];
        backward(&device, Backward { jobs, projection: None, complete: &[] }).unwrap();
        check_gradient(&device, "x", &x, dx.data(), |x: &Tensor<f64>| {
            let mut y = device.empty(3, 12).unwrap();
            forward(&device, &mut [RopeJob { x: x.into(), op, y: &mut y }]).unwrap();
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
    let mut table = RopeTable::<f64>::with_capacity(&device, 3, 10, 4, RopeSpec::unscaled(1e4)).unwrap();
    let rows = |positions: &[usize]| -> Vec<RopeRow> {
        positions.iter().map(|&position| RopeRow { position, len: 10 }).collect()
    };
    table.write(&device, &rows(&[9, 0])).unwrap();
    let direct = RopeTable::<f64>::new(&device, &[9, 0], 4, 1e4).unwrap();
    assert_eq!((table.of_row(0), table.of_row(1)), (direct.of_row(0), direct.of_row(1)));
    assert!(table.write(&device, &rows(&[10])).is_err());
    assert!(table.write(&device, &rows(&[0; 4])).is_err());
}

#[test]
fn long_sequences_have_angles_of_their_own_where_scaling_depends_on_the_length() {
    let device = cpu();
    let spec = RopeSpec { theta: 100.0, scaling: RopeScaling::Dynamic { factor: 2.0, max_positions: 4 } };
    let mut table = RopeTable::<f64>::with_capacity(&device, 9, 12, 4, spec).unwrap();
    let mut some = table.sibling(&device, 2).unwrap();
    for lens in [vec![3, 6], vec![9], vec![4, 5]] {
        let row = |len: usize| (0..len).map(move |position| RopeRow { position, len });
        let rows: Vec<RopeRow> = lens.iter().flat_map(|&len| row(len)).collect();
        let last = [rows[1], rows[rows.len() - 1]];
        table.write(&device, &rows).unwrap();
        some.write(&device, &last).unwrap();
        for (table, rows) in [(&table, &rows[..]), (&some, &last[..])] {
            for (i, RopeRow { position, len }) in rows.iter().enumerate() {
                let theta = match len {
                    0..=4 => 100.0,
                    // The exponent is d / (d - 2).
                    &n => 100.0 * (2.0 * n as f64 / 4.0 - 1.0).powi(2),
                };
                let angle = *position as f64 / theta.sqrt();
                let (cos, sin) = table.of_row(i);
                assert!((cos[1] - angle.cos()).abs() < 1e-12 && (sin[1] - angle.sin()).abs() < 1e-12);
                assert!((cos[0] - (*position as f64).cos()).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn runs_of_columns_turn_in_place_beside_others() {
    let device = cpu();
    let (rows, d) = (5, 4);
    let table = RopeTable::<f64>::new(&device, &[0, 1, 2, 0, 1], d, 1e4).unwrap();
    let op = QkNormRope { norm: None, table: &table, head_dim: d };
    let whole = random::<f64>(&device, rows, 12, 0);
    let part = |tensor: &Tensor<f64>| -> Vec<f64> {
        (0..rows).flat_map(|row| tensor.row(row)[..8].to_vec()).collect()
    };
    let alone = device.tensor(rows, 8, &part(&whole)).unwrap();
    let mut y = [device.empty(rows, 8).unwrap(), device.empty(rows, 8).unwrap()];
    for (x, y) in [Cols::new(&whole, 0..8).unwrap(), (&alone).into()].into_iter().zip(&mut y) {
        forward(&device, &mut [RopeJob { x, op, y }]).unwrap();
    }
    assert_eq!(y[0].data(), y[1].data());
    let (mut wide, mut narrow) = (cast::<f64, f64>(&device, &whole), cast::<f64, f64>(&device, &alone));
    for (x, dy) in [(Cols::new(&whole, 0..8).unwrap(), &mut wide), ((&alone).into(), &mut narrow)] {
        let jobs = &mut [RopeBackwardJob { x, op, dy }];
        backward(&device, Backward { jobs, projection: None, complete: &[] }).unwrap();
    }
    assert_eq!(part(&wide), narrow.data());
    assert!((0..rows).all(|row| wide.row(row)[8..] == whole.row(row)[8..]), "the others are left alone");
}
