//! `sol`: the share of the hardware's speed of light that a run reaches.

use std::fmt;

use super::Notice;
use crate::device::{Card, Device, Machine};
use crate::ops::measured_gemm_rate;

/// The peak rate, the denominator of `sol`. Defined once for steps, results, scores and plans: `sol = model
/// FLOPs / (seconds * peak)`, from 0 to 1, with the model FLOPs of [`crate::model::ModelFlops`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    flops_per_second: f64,
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Source {
    /// The data sheet value of a card: dense bf16 products with f32 sums.
    Card(&'static Card),
    /// The rate of f32 products on the threads of this run, measured at its start.
    Measured,
}

impl Peak {
    /// The peak of a known card.
    pub fn of_card(card: &'static Card) -> Self {
        Self { flops_per_second: card.bf16_peak, source: Source::Card(card) }
    }

    /// The peak of the device of a run. On a CPU it is measured, in a few milliseconds. `None` for an unknown
    /// card (with a note), for the emulator and for dry devices.
    pub fn of(device: &Device, notify: &mut dyn FnMut(Notice)) -> Option<Self> {
        let peak = match device.machine() {
            _ if device.is_card() => Card::of_label(device.label()).map(Self::of_card),
            Machine::Cpu if !device.is_dry() => {
                Some(Self { flops_per_second: device.run(measured_gemm_rate), source: Source::Measured })
            }
            Machine::Cpu | Machine::Gpu => return None,
        };
        notify(Notice::Note(match peak {
            Some(peak) => format!("sol is a share of {peak}"),
            None => format!("sol is left out: the peak of {} is not known", device.label()),
        }));
        peak
    }

    /// `sol` of this work in this time; `None` if the time is 0.
    pub fn share(&self, model_flops: u64, seconds: f64) -> Option<f64> {
        (seconds > 0.0).then(|| model_flops as f64 / (seconds * self.flops_per_second))
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flops_per_second {
            rate if rate < 1e12 => write!(f, "{:.1} GFLOP/s", rate / 1e9)?,
            rate => write!(f, "{:.1} TFLOP/s", rate / 1e12)?,
        }
        match self.source {
            Source::Card(card) => write!(f, ", the peak of the {}", card.title),
            Source::Measured => write!(f, ", f32 products of this processor, measured now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_work_by_time_and_peak() {
        let peak = Peak::of_card(Card::find("rtx3080").unwrap());
        assert_eq!(peak.share(59_500_000_000_000, 2.0), Some(0.5));
        assert_eq!(peak.share(0, 2.0), Some(0.0));
        assert_eq!(peak.share(1, 0.0), None);
        assert_eq!(peak.to_string(), "59.5 TFLOP/s, the peak of the GeForce RTX 3080 10 GB");
    }

    #[test]
    fn the_processor_is_measured_and_nobody_else_has_a_peak() {
        let mut notes = Vec::new();
        let peak = Peak::of(&Device::cpu(1).unwrap(), &mut |notice| notes.push(notice)).unwrap();
        assert!(peak.flops_per_second > 0.0);
        assert_eq!(notes, [Notice::Note(format!("sol is a share of {peak}"))]);
        assert!(
            peak.to_string().ends_with("GFLOP/s, f32 products of this processor, measured now"),
            "{peak}"
        );
        assert_eq!(Peak::of(&Device::dry(), &mut |notice| panic!("{notice:?}")), None);
    }
}
