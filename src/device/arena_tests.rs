//! The arena against a list of ranges, and how much of it a training step wastes.

use proptest::prelude::*;

use super::*;

/// A request: allocate this many bytes, or free one of the live allocations.
#[derive(Debug, Clone)]
enum Request {
    Take(u64),
    Give(prop::sample::Index),
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let size = prop_oneof![0..2000u64, 1..40u64, Just(256), Just(4096), 1..1_000_000u64];
    let request = prop_oneof![
        3 => size.prop_map(Request::Take),
        2 => any::<prop::sample::Index>().prop_map(Request::Give),
    ];
    prop::collection::vec(request, 0..200)
}

/// The results of all requests, the live (offset, bytes), and the arena.
type Played = (Vec<Result<u64, NoRoom>>, Vec<(u64, u64)>, Arena);

/// Plays `requests`.
fn play(mut arena: Arena, requests: &[Request]) -> Played {
    let (mut answers, mut live) = (Vec::new(), Vec::new());
    for request in requests {
        match request {
            Request::Take(bytes) => {
                let answer = arena.take(*bytes);
                if let Ok(offset) = answer {
                    live.push((offset, *bytes));
                }
                answers.push(answer);
            }
            Request::Give(_) if live.is_empty() => {}
            Request::Give(index) => {
                let (offset, _) = live.swap_remove(index.index(live.len()));
                arena.give(offset);
            }
        }
        check(&arena, &live);
    }
    (answers, live, arena)
}

/// The invariants of the arena.
fn check(arena: &Arena, live: &[(u64, u64)]) {
    let mut ranges: Vec<(u64, u64, bool)> = live
        .iter()
        .map(|&(offset, bytes)| (offset, bytes.max(1).next_multiple_of(ALIGNMENT), true))
        .chain(arena.holes.iter().map(|(&offset, &length)| (offset, length, false)))
        .collect();
    ranges.sort_unstable();
    // Tensors and holes tile the space below the top, and no hole has a hole or the top behind it.
    let mut end = 0;
    for (i, &(offset, length, used)) in ranges.iter().enumerate() {
        assert_eq!((offset, offset % ALIGNMENT), (end, 0));
        end += length;
        assert!(used || ranges.get(i + 1).is_some_and(|next| next.2), "a hole at {offset} is not merged");
    }
    assert_eq!(end, arena.top);
    let usage = arena.usage();
    assert!(arena.top <= usage.high_water_bytes && usage.high_water_bytes <= usage.capacity_bytes);
    assert_eq!(usage.used_bytes, ranges.iter().filter(|range| range.2).map(|range| range.1).sum::<u64>());
    let by_length: Vec<(u64, u64)> =
        arena.by_length.iter().map(|&(length, offset)| (offset, length)).collect();
    assert_eq!(by_length.len(), arena.holes.len());
    assert!(by_length.iter().all(|(offset, length)| arena.holes.get(offset) == Some(length)));
}

proptest! {
    #[test]
    fn tensors_never_overlap_and_everything_given_back_is_one_piece(requests in requests()) {
        let (_, live, mut arena) = play(Arena::without_end(), &requests);
        for (offset, _) in live {
            arena.give(offset);
        }
        check(&arena, &[]);
        prop_assert!(arena.is_empty() && arena.top == 0);
    }

    #[test]
    fn the_high_water_mark_of_a_plan_is_the_capacity_of_the_run(requests in requests()) {
        let (planned, _, plan) = play(Arena::without_end(), &requests);
        let needed = plan.usage().high_water_bytes;
        let (again, _, run) = play(Arena::new(needed), &requests);
        prop_assert_eq!(&again, &planned);
        prop_assert_eq!(run.usage().high_water_bytes, needed);
        if needed > 0 {
            let (short, _, _) = play(Arena::new(needed - 1), &requests);
            prop_assert!(short.iter().any(Result::is_err));
        }
    }

    #[test]
    fn a_request_fails_only_where_no_piece_is_large_enough(requests in requests(), capacity in 0..300_000u64) {
        let (answers, _, _) = play(Arena::new(capacity), &requests);
        for full in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            prop_assert!(full.largest < full.needed && full.largest <= full.free, "{:?}", full);
            prop_assert_eq!(full.capacity, capacity - capacity % ALIGNMENT);
        }
    }
}

#[test]
fn the_smallest_hole_that_fits_is_taken_and_the_lowest_of_equal_ones() {
    let mut arena = Arena::without_end();
    // Holes of 3, 1, 2 and 1 units, with walls between.
    let offsets: Vec<u64> =
        [3, 1, 1, 1, 2, 1, 1, 1].iter().map(|units| arena.take(units * ALIGNMENT).unwrap()).collect();
    for i in [0, 2, 4, 6] {
        arena.give(offsets[i]);
    }
    assert_eq!(arena.take(ALIGNMENT).unwrap(), offsets[2]);
    assert_eq!(arena.take(2 * ALIGNMENT - 5).unwrap(), offsets[4]);
    assert_eq!(arena.take(1).unwrap(), offsets[6]);
    assert_eq!(arena.take(0).unwrap(), offsets[0]);
    assert_eq!(arena.take(2 * ALIGNMENT).unwrap(), offsets[0] + ALIGNMENT);
    assert_eq!(arena.take(1).unwrap(), arena.usage().high_water_bytes - ALIGNMENT);
}

#[test]
fn absurd_sizes_are_refused() {
    for bytes in [u64::MAX, u64::MAX - 1, u64::MAX - 300, 1 << 63] {
        let mut arena = Arena::new(1 << 40);
        let full = arena.take(bytes).unwrap_err();
        assert_eq!((full.free, full.largest), (1 << 40, 1 << 40));
        assert!(full.needed >= bytes && arena.is_empty());
    }
    assert!(Arena::new(255).take(1).is_err());
}

/// The requests of one training pass of a decoder: per block the saved and the temporary tensors, then the
/// backward pass.
fn step(arena: &mut Arena, tokens: u64, peak: &mut u64) {
    const BLOCKS: usize = 28;
    let (hidden, mlp, kv, rank) = (1024, 3072, 1024, 16);
    let row = |width: u64| tokens * width * 2;
    let mut take = |arena: &mut Arena, bytes| {
        let offset = arena.take(bytes).unwrap();
        *peak = (*peak).max(arena.usage().used_bytes);
        offset
    };
    let free = |arena: &mut Arena, offsets: Vec<u64>| offsets.into_iter().for_each(|o| arena.give(o));
    let mut stream = take(arena, row(hidden));
    let mut saved = Vec::new();
    for _ in 0..BLOCKS {
        let normed = take(arena, row(hidden));
        let mut kept: Vec<u64> =
            [row(2 * hidden), row(kv), row(kv), row(rank) * 3, tokens * 4].map(|b| take(arena, b)).into();
        let rotated = [row(2 * hidden), row(kv)].map(|b| take(arena, b));
        kept.extend([row(2 * hidden), tokens * 16 * 4].map(|b| take(arena, b)));
        free(arena, vec![normed, rotated[0], rotated[1]]);
        kept.extend([row(hidden), row(rank), tokens * 4].map(|b| take(arena, b)));
        let normed = take(arena, row(hidden));
        kept.extend([row(mlp), row(mlp), row(rank) * 2].map(|b| take(arena, b)));
        let h = take(arena, row(mlp));
        let next = take(arena, row(hidden));
        kept.push(take(arena, row(rank)));
        free(arena, vec![normed, h]);
        kept.push(std::mem::replace(&mut stream, next));
        saved.push(kept);
    }
    let mut gradient = take(arena, row(hidden));
    let logits = take(arena, 512 << 20);
    free(arena, vec![logits, stream]);
    for kept in saved.into_iter().rev() {
        let temporary = [row(mlp), row(mlp), row(mlp), row(hidden)].map(|b| take(arena, b));
        free(arena, temporary.into());
        let temporary = [2 * hidden, 2 * hidden, 2 * hidden, kv, kv, kv, hidden].map(|w| take(arena, row(w)));
        let next = take(arena, row(hidden));
        free(arena, temporary.into());
        free(arena, vec![std::mem::replace(&mut gradient, next)]);
        free(arena, kept);
    }
    arena.give(gradient);
}

#[test]
fn a_training_step_wastes_little() {
    // Several passes of different lengths, while the weights stay allocated.
    let mut arena = Arena::without_end();
    let mut peak = 0;
    arena.take(1 << 30).unwrap();
    for tokens in [4096, 3500, 4096, 1017, 4001, 64, 4096] {
        step(&mut arena, tokens, &mut peak);
    }
    let waste = arena.usage().high_water_bytes as f64 / peak as f64 - 1.0;
    assert!(waste < 0.02, "{:.2}% more than the tensors that lived at once", 100.0 * waste);
}
