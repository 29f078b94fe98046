//! Compares the stored results with the tables of the instruction set, with the emulator, and, if there is
//! one, with a GPU.

use super::*;

/// The stored words of a case and primitive.
fn row(stored: &[u32], case: usize, name: &str) -> [u32; LANES] {
    let primitive = PRIMITIVES.iter().position(|(other, _)| *other == name).unwrap();
    std::array::from_fn(|lane| stored[(case * PRIMITIVES.len() + primitive) * LANES + lane])
}

/// The text of the file.
#[cfg(feature = "emulated")]
fn text(results: &[u32], device: &str) -> String {
    let mut text = format!(
        "# What the kernel `primitives` gives: case, primitive, 32 lanes. Recorded on {device};\n\
         # TANREN_RECORD_PRIMITIVES=FILE cargo test --features emulated --lib device::primitives writes it.\n"
    );
    for (index, words) in results.chunks_exact(LANES).enumerate() {
        let (case, (name, _)) = (CASES[index / PRIMITIVES.len()], PRIMITIVES[index % PRIMITIVES.len()]);
        let words: Vec<String> = words.iter().map(|word| format!("{word:08x}")).collect();
        text += &format!("{case} {name} {}\n", words.join(" "));
    }
    text
}

#[test]
fn the_file_is_complete_and_in_order() {
    let lines: Vec<&str> = STORED.lines().filter(|line| !line.starts_with('#')).collect();
    let mut names = CASES.iter().flat_map(|case| PRIMITIVES.map(|(name, _)| format!("{case} {name} ")));
    for line in &lines {
        let name = names.next().unwrap();
        assert!(line.starts_with(&name) && line.len() == name.len() + 9 * LANES - 1, "{name}: {line}");
    }
    assert!(names.next().is_none());
    assert_eq!(stored().len(), CASES.len() * PRIMITIVES.len() * LANES);
}

/// What lane `lane` gets in the case of integers, from the tables of the PTX ISA (`ldmatrix`, `mma.m16n8k16`, `shfl`), in the order
/// of [`PRIMITIVES`]. Sums of integers are exact in any order.
fn expected(lane: usize, inputs: &Inputs) -> [u32; 24] {
    let Inputs { words, numbers, matrices, a, b } = inputs;
    let (group, of_four) = (lane / 4, lane % 4);
    let pair = |low: bf16, high: bf16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    let matrix = |i: usize, row: usize, column: usize| matrices[i * 64 + row * 8 + column];
    let product = |row: usize, column: usize| -> f32 {
        (0..16).map(|k| a[row * 16 + k].to_f32() * b[k * 8 + column].to_f32()).sum()
    };
    let (all, four) = (&numbers[..LANES], &numbers[group * 4..][..4]);
    let largest = |of: &[f32]| of.iter().copied().fold(f32::MIN, f32::max).to_bits();
    let mut want = [0; 24];
    want[0] = words[5];
    want[1] = words[lane ^ 9];
    want[2] = words[if lane + 3 < LANES { lane + 3 } else { lane }];
    want[3] = (0..LANES).map(|i| (words[i] & 1) << i).sum();
    want[4] = all.iter().sum::<f32>().to_bits();
    want[5] = largest(all);
    want[6] = four.iter().sum::<f32>().to_bits();
    want[7] = largest(four);
    for i in 0..4 {
        want[8 + i] = pair(matrix(i, group, 2 * of_four), matrix(i, group, 2 * of_four + 1));
        want[12 + i] = pair(matrix(i, 2 * of_four, group), matrix(i, 2 * of_four + 1, group));
        let (row, column) = (group + i / 2 * 8, 2 * of_four + i % 2);
        want[MMA + i] = (product(row, column) + (i + 1) as f32).to_bits();
        want[20 + i] = if lane.is_multiple_of(2) { words[lane / 4 * 4 + i] } else { 0 };
    }
    want
}

#[test]
fn stored_integers_are_what_the_instruction_set_says() {
    let (inputs, stored) = (Inputs::new(), stored());
    assert_eq!(CASES[0], "integers");
    for lane in 0..LANES {
        for ((name, _), want) in PRIMITIVES.iter().zip(expected(lane, &inputs)) {
            assert_eq!(row(&stored, 0, name)[lane], want, "{name}, lane {lane}");
        }
    }
}

#[test]
fn stored_numbers_are_rounded_as_ieee_says() {
    let (inputs, stored) = (Inputs::new(), stored());
    let same = |got: u32, want: f32| got == want.to_bits() || f32::from_bits(got).is_nan() && want.is_nan();
    for case in 0..CASES.len() {
        let [round, pack, high, fused, root, inverse] =
            ["to_bf16", "pack_bf16", "mul_hi", "fmaf", "sqrtf", "reciprocal"]
                .map(|name| row(&stored, case, name));
        let [inverse_root, power] = ["rsqrtf", "exp2"].map(|name| row(&stored, case, name));
        let (numbers, words) = (&inputs.numbers[case * LANES..], &inputs.words[case * LANES..]);
        // cvt maps every NaN to the same one.
        let half = |x: f32| if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) };
        for lane in 0..LANES {
            let (x, next) = (numbers[lane], numbers[lane ^ 1]);
            assert_eq!(round[lane], half(x), "{x}");
            assert_eq!(pack[lane], half(x) | half(next) << 16, "{x} {next}");
            let product = u64::from(words[lane]) * u64::from(words[31 - lane]);
            assert_eq!(high[lane], (product >> 32) as u32);
            assert!(same(fused[lane], x.mul_add(next, 1.0)), "{x} * {next} + 1");
            assert!(same(root[lane], x.sqrt()), "root of {x}");
            assert!(same(inverse[lane], 1.0 / x), "1 / {x}");
            let exactly = |got: u32, want: f64| {
                let got = f64::from(f32::from_bits(got));
                // Overflow, and subnormal results, which the hardware flushes to 0.
                let want = if want > f64::from(f32::MAX) { f64::INFINITY } else { want };
                let want = if want < f64::from(f32::MIN_POSITIVE) { 0.0 } else { want };
                got == want || got.is_nan() && want.is_nan() || (got / want - 1.0).abs() < 5e-7
            };
            assert!(exactly(power[lane], f64::from(x).exp2()), "2^{x}: {:#x}", power[lane]);
            if x != 0.0 {
                assert!(exactly(inverse_root[lane], 1.0 / f64::from(x).sqrt()), "1 / root of {x}");
            }
        }
    }
}

#[test]
fn a_wrong_result_is_found_and_a_tolerable_one_is_not() {
    let (inputs, good) = (Inputs::new(), stored());
    assert_eq!(inputs.faults(&good, &good), Vec::<String>::new());
    // Fractions, which are the second case; a root of a negative one would be NaN with any bits.
    let lane = (0..LANES).find(|lane| inputs.numbers[LANES + lane] > 0.0).unwrap();
    for (index, (name, agreement)) in PRIMITIVES.into_iter().enumerate() {
        let at = (PRIMITIVES.len() + index) * LANES + lane;
        let off = |bits: u32| {
            let mut got = good.clone();
            got[at] ^= bits;
            inputs.faults(&got, &good)
        };
        let tolerant = !matches!(agreement, Agreement::Bits | Agreement::Float);
        assert_eq!(off(1).is_empty(), tolerant, "{name}");
        let faults = off(1 << 20);
        assert_eq!(faults.len(), 1, "{name}");
        assert!(faults[0].starts_with(&format!("{name} of fractions, lane {lane}: got 0x")), "{}", faults[0]);
    }
    let mut other_nan = good.clone();
    let sum = (3 * PRIMITIVES.len() + 4) * LANES;
    assert!(f32::from_bits(good[sum]).is_nan(), "the sum of the special numbers");
    other_nan[sum] ^= 0x8000_0001;
    assert!(inputs.faults(&other_nan, &good).is_empty());
    other_nan[sum] = 0;
    assert_eq!(inputs.faults(&other_nan, &good).len(), 1);
    assert_eq!(inputs.faults(&good[1..], &good).len(), 1);
}

#[cfg(feature = "emulated")]
mod devices {
    use super::*;
    use crate::device::{EmulatorOptions, Schedule};
    use crate::ops::testing::kernel_device;

    #[test]
    fn the_emulator_gives_what_is_stored_in_every_mode() {
        let fast = EmulatorOptions { threads: 1, ..EmulatorOptions::default() };
        let checked = EmulatorOptions { check: true, ..fast };
        let scheduled = EmulatorOptions { schedule: Schedule::Random(3), ..checked };
        // The tolerances are made for truncated sums.
        for options in [fast, checked, scheduled, EmulatorOptions { truncates_mma: true, ..fast }] {
            let findings = self_test(&Device::emulated(options).unwrap()).unwrap();
            assert!(findings.iter().all(|finding| finding.outcome == Outcome::Passed), "{findings:?}");
        }
    }

    /// 16 products of 1.5 * 2^-24 onto 1, 2, 3 and 4. Each of them rounds 1 up to the next number, 2^-23
    /// further. Truncated, each is 2^-24, and eight of them are 2^-21; added to 2 or more they vanish.
    #[test]
    fn the_emulator_cuts_sums_off_where_it_is_told_to() {
        let sums = |truncates_mma| {
            let options = EmulatorOptions { truncates_mma, threads: 1, ..EmulatorOptions::default() };
            let mut inputs = Inputs::new();
            inputs.a[..SQUARE].fill(bf16::from_f32(1.5 / 4096.0));
            inputs.b[..NARROW].fill(bf16::from_f32(1.0 / 4096.0));
            let got = inputs.run(&Device::emulated(options).unwrap()).unwrap();
            [0, 1, 2, 3].map(|i| f32::from_bits(got[(MMA + i) * LANES]) - (i + 1) as f32)
        };
        assert_eq!(sums(false), [16.0 * f32::EPSILON, 0.0, 0.0, 0.0]);
        assert_eq!(sums(true), [8.0 * f32::EPSILON, 0.0, 0.0, 0.0]);
    }

    /// On a GPU with `TANREN_TEST_DEVICE=cuda`. `TANREN_RECORD_PRIMITIVES` names a file for what the device gave.
    #[test]
    fn gpu_gives_what_is_stored() {
        let device = kernel_device(1);
        let inputs = Inputs::new();
        let got = inputs.run(&device).unwrap();
        if let Some(path) = std::env::var_os("TANREN_RECORD_PRIMITIVES") {
            std::fs::write(path, text(&got, device.label())).unwrap();
        }
        let faults = inputs.faults(&got, &stored());
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    /// As often as `TANREN_TEST_REPEATS` says.
    #[test]
    fn gpu_repeats_give_the_same_bits() {
        let repeats = std::env::var("TANREN_TEST_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
        let device = kernel_device(2);
        let inputs = Inputs::new();
        let first = inputs.run(&device).unwrap();
        for _ in 0..repeats {
            assert!(inputs.run(&device).unwrap() == first);
        }
    }
    /// Unwritten memory reads as NaN in builds with debug assertions, so the test exists in these only.
    #[cfg(debug_assertions)]
    #[test]
    fn gpu_memory_starts_as_nan() {
        let device = kernel_device(3);
        for reserved in [0, 1 << 20] {
            device.reserve(reserved).unwrap();
            for len in [5, 7000] {
                let used = device.tensor(1, len, &vec![1.0_f32; len]).unwrap();
                drop(used);
                let fresh = device.read(&device.empty::<f32>(1, len).unwrap()).unwrap();
                assert!(fresh.iter().all(|x| x.is_nan()), "{len} numbers, {reserved} bytes reserved");
            }
        }
    }
}
