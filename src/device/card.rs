//! Known GPUs by name: the data that a plan needs for a GPU that is not in this machine.
//!
//! Peaks are those of NVIDIA's documents, for dense products of bf16 with sums in f32. Ceilings are the rates
//! that a plan assumes. Unless they were measured they are fractions of the peak; the documentation of each
//! card says which. A number was measured by this project only where the documentation says so.

use super::arch::{Arch, Chip};

/// A card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// Name in options.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Architecture.
    pub arch: Arch,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes available to programs; the driver and a display take the rest.
    pub usable_bytes: u64,
    /// Bytes of these that tensors cannot use: context, kernels, and fragmentation.
    pub reserve_bytes: u64,
    /// Peak memory bandwidth, bytes per second.
    pub dram_peak: f64,
    /// Peak rate of the tensor cores, floating-point operations per second.
    pub bf16_peak: f64,
    /// Memory bandwidth that a plan assumes, bytes per second.
    pub dram_ceiling: f64,
    /// Compute rate that a plan assumes, floating-point operations per second.
    pub bf16_ceiling: f64,
}

const GIB: u64 = 1 << 30;

/// Share of the memory available to programs: 9.3 of the 10 GiB of an RTX 3080 with a display.
const USABLE: f64 = 0.93;

/// Bytes that tensors cannot use: an estimate of context and kernels, for all cards.
const RESERVE: u64 = 350_000_000;

/// Seconds that a launch adds to a step: an assumption, not a measurement. Back-to-back kernels of one stream
/// are about 1 us apart, and a driver call takes 4 to 6 us, most of it hidden behind the previous kernel.
pub const LAUNCH_SECS: f64 = 2e-6;

/// GeForce RTX 3080 10 GB. 68 SMs, 272 tensor cores at 1710 MHz, 760 GB/s, 59.5 TFLOP/s: "NVIDIA Ampere GA102 GPU
/// Architecture" (whitepaper, appendix A). Ceilings: 90% and 91% of the peaks: assumed, not measured. Usable: 9.3 GiB.
const RTX3080: Card = Card {
    name: "rtx3080",
    title: "GeForce RTX 3080 10 GB",
    arch: Arch::Sm86,
    sms: 68,
    memory_bytes: 10 * GIB,
    usable_bytes: part(10 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 760e9,
    bf16_peak: 59.5e12,
    dram_ceiling: 690e9,
    bf16_ceiling: 53.6e12,
};

/// GeForce RTX 3090. 82 SMs, 328 tensor cores at 1695 MHz, 936 GB/s, 71 TFLOP/s: the same whitepaper. Ceilings and usable part
/// as on the RTX 3080, which has the same chip.
const RTX3090: Card = Card {
    name: "rtx3090",
    title: "GeForce RTX 3090",
    arch: Arch::Sm86,
    sms: 82,
    memory_bytes: 24 * GIB,
    usable_bytes: part(24 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 936e9,
    bf16_peak: 71.0e12,
    dram_ceiling: 0.91 * 936e9,
    bf16_ceiling: 0.90 * 71.0e12,
};

/// GeForce RTX 4090. 128 SMs, 512 tensor cores at 2520 MHz, 1008 GB/s, 165.2 TFLOP/s: "NVIDIA Ada GPU Architecture"
/// (whitepaper, appendix A). Ceilings and usable part as on the RTX 3080: assumed.
const RTX4090: Card = Card {
    name: "rtx4090",
    title: "GeForce RTX 4090",
    arch: Arch::Sm89,
    sms: 128,
    memory_bytes: 24 * GIB,
    usable_bytes: part(24 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 1008e9,
    bf16_peak: 165.2e12,
    dram_ceiling: 0.91 * 1008e9,
    bf16_ceiling: 0.90 * 165.2e12,
};

/// GeForce RTX 5080. 84 SMs, 336 tensor cores at 2617 MHz, 960 GB/s, 112.6 TFLOP/s: "NVIDIA RTX Blackwell GPU Architecture"
/// (whitepaper, appendix). Ceilings and usable part as on the RTX 3080: assumed.
const RTX5080: Card = Card {
    name: "rtx5080",
    title: "GeForce RTX 5080",
    arch: Arch::Sm120,
    sms: 84,
    memory_bytes: 16 * GIB,
    usable_bytes: part(16 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 960e9,
    bf16_peak: 112.6e12,
    dram_ceiling: 0.91 * 960e9,
    bf16_ceiling: 0.90 * 112.6e12,
};

/// GeForce RTX 5090. 170 SMs, 680 tensor cores at 2407 MHz, 1792 GB/s, 209.5 TFLOP/s: the same whitepaper. Ceilings and usable part
/// as on the RTX 3080: assumed.
const RTX5090: Card = Card {
    name: "rtx5090",
    title: "GeForce RTX 5090",
    arch: Arch::Sm120,
    sms: 170,
    memory_bytes: 32 * GIB,
    usable_bytes: part(32 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 1792e9,
    bf16_peak: 209.5e12,
    dram_ceiling: 0.91 * 1792e9,
    bf16_ceiling: 0.90 * 209.5e12,
};

/// A100 80 GB SXM. 108 SMs, 2039 GB/s, 312 TFLOP/s: "NVIDIA A100 Tensor Core GPU" (datasheet, 80 GB SXM). Ceilings: the parts of
/// the peaks that were measured on the H200 ([`H200`]): assumed.
const A100: Card = Card {
    name: "a100",
    title: "A100 80 GB SXM",
    arch: Arch::Sm80,
    sms: 108,
    memory_bytes: 80 * GIB,
    usable_bytes: part(80 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 2039e9,
    bf16_peak: 312e12,
    dram_ceiling: 0.896 * 2039e9,
    bf16_ceiling: 0.80 * 312e12,
};

/// H100 80 GB SXM. 132 SMs, 3.35 TB/s, 989.4 TFLOP/s: "NVIDIA H100 Tensor Core GPU" (datasheet, SXM5; half of the rate with
/// sparsity). Ceilings: the parts of the peaks that were measured on the H200, which has the same chip: assumed.
const H100: Card = Card {
    name: "h100",
    title: "H100 80 GB SXM",
    arch: Arch::Sm90,
    sms: 132,
    memory_bytes: 80 * GIB,
    usable_bytes: part(80 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 3350e9,
    bf16_peak: 989.4e12,
    dram_ceiling: 0.896 * 3350e9,
    bf16_ceiling: 0.80 * 989.4e12,
};

/// H200 SXM. 132 SMs, 4.8 TB/s, 989.4 TFLOP/s: "NVIDIA H200 Tensor Core GPU" (datasheet, SXM). Memory: 139 GiB as its driver
/// reports it. Ceilings: measured on one, 769 to 798 TFLOP/s for cuBLAS products of 8192^3 random numbers and 4.3 TB/s for
/// copies.
const H200: Card = Card {
    name: "h200",
    title: "H200 SXM",
    arch: Arch::Sm90,
    sms: 132,
    memory_bytes: 139 * GIB,
    usable_bytes: part(139 * GIB, USABLE),
    reserve_bytes: RESERVE,
    dram_peak: 4800e9,
    bf16_peak: 989.4e12,
    dram_ceiling: 4300e9,
    bf16_ceiling: 790e12,
};

/// The cards that a plan can be made for.
pub const CARDS: [Card; 8] = [RTX3080, RTX3090, RTX4090, RTX5080, RTX5090, A100, H100, H200];

impl Card {
    /// The card called `name`; case, spaces and dashes do not matter.
    pub fn find(name: &str) -> Option<&'static Self> {
        let plain = |text: &str| -> String {
            text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        let wanted = plain(name);
        CARDS.iter().find(|card| card.name == wanted)
    }

    /// The card with the name that a driver gives: "NVIDIA GeForce RTX 3080", "NVIDIA H200". Other versions of a card (Ti, SUPER,
    /// Laptop) are other cards.
    pub fn of_label(label: &str) -> Option<&'static Self> {
        let words: Vec<String> = label
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_ascii_lowercase)
            .collect();
        let other = ["ti", "super", "laptop", "max", "pcie", "nvl"];
        if words.iter().any(|word| other.contains(&word.as_str())) {
            return None;
        }
        let pairs = words.windows(2).map(|pair| pair.concat());
        let names: Vec<String> = pairs.chain(words.iter().cloned()).collect();
        CARDS.iter().find(|card| names.iter().any(|name| name == card.name))
    }

    /// The chip that kernel plans depend on.
    pub fn chip(&self) -> Chip {
        Chip { arch: self.arch, multiprocessors: self.sms }
    }

    /// Lower bound of the seconds for `work`: the longer of compute time and memory time at the peak rates.
    pub fn floor_secs(&self, tensor_flops: u64, bytes: u64) -> f64 {
        (tensor_flops as f64 / self.bf16_peak).max(bytes as f64 / self.dram_peak)
    }

    /// Bytes available to tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.usable_bytes - self.reserve_bytes
    }

    /// Predicted seconds for `work`: the longer of compute time and memory time at the ceilings, plus the
    /// launches.
    pub fn predicted_secs(&self, tensor_flops: u64, bytes: u64, launches: u64) -> f64 {
        let compute = tensor_flops as f64 / self.bf16_ceiling;
        let memory = bytes as f64 / self.dram_ceiling;
        compute.max(memory) + launches as f64 * LAUNCH_SECS
    }
}

/// `of * part`, rounded down.
const fn part(of: u64, part: f64) -> u64 {
    (of as f64 * part) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_follow_from_cores_and_clocks() {
        // Tensor cores per SM, multiply-adds of bf16 with f32 sums per core and clock, boost clock: whitepapers.
        for (name, per_sm, per_clock, clock) in [
            ("rtx3080", 4, 64, 1.710e9),
            ("rtx3090", 4, 64, 1.695e9),
            ("rtx4090", 4, 64, 2.520e9),
            ("rtx5080", 4, 64, 2.617e9),
            ("rtx5090", 4, 64, 2.407e9),
            ("a100", 4, 256, 1.410e9),
            ("h100", 4, 512, 1.830e9),
            ("h200", 4, 512, 1.830e9),
        ] {
            let card = Card::find(name).unwrap();
            let peak = f64::from(card.sms * per_sm * per_clock * 2) * clock;
            assert!((card.bf16_peak / peak - 1.0).abs() < 0.01, "{name}: {} {peak}", card.bf16_peak);
        }
    }

    #[test]
    fn ceilings_stay_below_peaks_and_memory_below_what_is_there() {
        for card in &CARDS {
            assert!((0.75..0.95).contains(&(card.bf16_ceiling / card.bf16_peak)), "{}", card.name);
            assert!((0.85..0.95).contains(&(card.dram_ceiling / card.dram_peak)), "{}", card.name);
            assert!(card.usable_bytes < card.memory_bytes && card.reserve_bytes < card.usable_bytes);
        }
        // 9.3 GiB and 0.35 GB.
        let rtx3080 = Card::find("RTX 3080").unwrap();
        assert_eq!((rtx3080.usable_bytes, rtx3080.tensor_bytes()), (9_985_798_963, 9_635_798_963));
        assert!(Card::find("rtx9999").is_none());
    }

    #[test]
    fn a_driver_names_its_card() {
        let name = |label| Card::of_label(label).map(|card| card.name);
        assert_eq!(name("cuda:0 (NVIDIA GeForce RTX 3080)"), Some("rtx3080"));
        assert_eq!(name("cuda:1 (NVIDIA H200)"), Some("h200"));
        assert_eq!(name("NVIDIA A100-SXM4-80GB"), Some("a100"));
        assert_eq!(name("NVIDIA GeForce RTX 3080 Ti"), None);
        assert_eq!(name("Quadro"), None);
    }

    #[test]
    fn work_is_bound_by_the_slower_of_its_two_limits() {
        let card = Card::find("rtx3080").unwrap();
        assert!((card.predicted_secs(53_600_000_000_000, 690, 0) - 1.0).abs() < 1e-9);
        assert!((card.predicted_secs(1, 690_000_000_000, 1000) - 1.002).abs() < 1e-9);
    }
}
