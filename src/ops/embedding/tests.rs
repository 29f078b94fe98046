//! Lookup of repeated ids, none at all, and an id beyond the table.

use super::{Forward, forward};
use crate::ops::LiveRows;
use crate::ops::testing::{cpu, random};

#[test]
fn rows_come_from_the_table() {
    let device = cpu();
    let table = random::<f64>(&device, 5, 3, 0);
    for ids in [vec![], vec![4u32, 4, 0, 1]] {
        let mut y = device.empty(ids.len(), 3).unwrap();
        forward(
            &device,
            Forward {
                table: &table,
                ids: &device.tensor(ids.len(), 1, &ids).unwrap(),
                y: &mut y,
                live_rows: LiveRows::ALL,
            },
        )
        .unwrap();
        for (t, &id) in ids.iter().enumerate() {
            assert_eq!(y.row(t), table.row(id as usize));
        }
    }
}

#[test]
fn an_id_beyond_the_table_is_an_error() {
    let device = cpu();
    let table = random::<f32>(&device, 5, 3, 0);
    let ids = device.tensor(1, 1, &[5u32]).unwrap();
    let error = forward(
        &device,
        Forward { table: &table, ids: &ids, y: &mut device.empty(1, 3).unwrap(), live_rows: LiveRows::ALL },
    )
    .unwrap_err();
    assert!(error.to_string().contains("got 5, expected \"below 5\""), "{error}");
}
