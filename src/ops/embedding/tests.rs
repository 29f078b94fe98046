//! Lookup of repeated ids, none at all, and an id beyond the table.

use super::{Forward, Lookup, forward};
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
                types: None,
                positions: None,
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
fn rows_of_further_tables_are_added() {
    let device = cpu();
    let [table, types, positions] =
        [(5, 0), (2, 1), (7, 2)].map(|(rows, i)| random::<f64>(&device, rows, 3, i));
    let ids = [[4u32, 0, 1], [1, 0, 1], [6, 0, 3]];
    let [tokens, type_ids, position_ids] = ids.map(|ids| device.tensor(3, 1, &ids).unwrap());
    let mut y = device.empty(3, 3).unwrap();
    let args = Forward {
        table: &table,
        ids: &tokens,
        types: Some(Lookup { table: &types, ids: &type_ids }),
        positions: Some(Lookup { table: &positions, ids: &position_ids }),
        y: &mut y,
        live_rows: LiveRows::ALL,
    };
    forward(&device, args).unwrap();
    for t in 0..3 {
        let rows = [&table, &types, &positions].map(|table| table);
        for i in 0..3 {
            let expected: f64 = rows.iter().zip(ids).map(|(table, ids)| table.row(ids[t] as usize)[i]).sum();
            assert!((y.row(t)[i] - expected).abs() < 1e-14);
        }
    }
}

#[test]
fn an_id_beyond_the_table_is_an_error() {
    let device = cpu();
    let table = random::<f32>(&device, 5, 3, 0);
    let ids = device.tensor(1, 1, &[5u32]).unwrap();
    let good = device.tensor(1, 1, &[0u32]).unwrap();
    let (bad, fine) = (Lookup { table: &table, ids: &ids }, Lookup { table: &table, ids: &good });
    for (ids, types, positions) in
        [(&ids, None, None), (&good, Some(bad), Some(fine)), (&good, Some(fine), Some(bad))]
    {
        let (mut y, live_rows) = (device.empty(1, 3).unwrap(), LiveRows::ALL);
        let args = Forward { table: &table, ids, types, positions, y: &mut y, live_rows };
        let error = forward(&device, args).unwrap_err();
        assert!(error.to_string().contains("got 5, expected \"below 5\""), "{error}");
    }
}
