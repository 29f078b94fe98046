//! Which blocks keep what: the least work that fits the memory, with the dry run as the judge.

use super::measure::{Job, Measured, Setup};
use crate::batch::Batch;
use crate::config::ActivationPolicy;
use crate::error::Result;
use crate::model::{Policies, Policy};

/// What the configuration asks for: one policy for all blocks, or none in particular.
pub(super) fn asked(policy: ActivationPolicy) -> Option<Policy> {
    match policy {
        ActivationPolicy::Auto => None,
        ActivationPolicy::KeepAll => Some(Policy::KeepAll),
        ActivationPolicy::DropGateUp => Some(Policy::DropGateUp),
        ActivationPolicy::Checkpoint => Some(Policy::Checkpoint),
    }
}

impl Setup<'_> {
    /// The policies for this job within `limit` bytes, and what a step takes under them. If nothing fits, the ones that
    /// take least memory.
    ///
    /// # Errors
    /// As [`Setup::measure`].
    pub(super) fn choose(&self, job: &Job, limit: Option<u64>) -> Result<(Policies, Measured)> {
        let blocks = self.model.num_hidden_layers();
        if let Some(policy) = asked(self.config.activation_policy) {
            let policies = Policies::uniform(policy, blocks);
            let measured = self.measure(job, &policies)?;
            return Ok((policies, measured));
        }
        let fits = |measured: &Measured| limit.is_none_or(|limit| measured.needed_bytes() <= limit);
        let run = |checkpoint: usize, drop_gate_up: usize| -> Result<(Policies, Measured)> {
            let policies = Policies::lowest(checkpoint, drop_gate_up, blocks);
            let measured = self.measure(job, &policies)?;
            Ok((policies, measured))
        };
        let keep_all = run(0, 0)?;
        if fits(&keep_all.1) {
            return Ok(keep_all);
        }
        let mut best: Option<(Policies, Measured)> = None;
        let mut least = keep_all;
        // For every number of checkpointed blocks the fewest blocks that drop gate and up: the more of the former, the fewer of
        // the latter, so one walk finds all pairs.
        let mut dropped = blocks;
        for checkpoint in 0..=blocks {
            dropped = dropped.min(blocks - checkpoint);
            let mut found = None;
            loop {
                let one = run(checkpoint, dropped)?;
                if one.1.needed_bytes() < least.1.needed_bytes() {
                    least = one.clone();
                }
                if !fits(&one.1) {
                    // One more would have fitted, if any did.
                    dropped = (dropped + 1).min(blocks);
                    break;
                }
                found = Some(one);
                if dropped == 0 {
                    break;
                }
                dropped -= 1;
            }
            if let Some(found) = found
                && best.as_ref().is_none_or(|best| found.1.flops() < best.1.flops())
            {
                best = Some(found);
            }
            if best.is_some() && dropped == 0 {
                break;
            }
        }
        Ok(best.unwrap_or(least))
    }

    /// The most tokens that fit into `limit` bytes where all blocks keep `policy`, up to a part in a thousand; `batch` makes a
    /// pass of so many tokens. None if not even one fits.
    ///
    /// # Errors
    /// As [`Setup::measure`].
    pub(super) fn capacity(
        &self,
        policy: Policy,
        limit: u64,
        batch: impl Fn(usize) -> Batch,
    ) -> Result<Option<usize>> {
        let policies = Policies::uniform(policy, self.model.num_hidden_layers());
        let peak = |tokens: usize| -> Result<u64> {
            Ok(self.measure(&Job::of(vec![batch(tokens)]), &policies)?.needed_bytes())
        };
        let (mut low, mut low_peak) = (1, peak(1)?);
        if low_peak > limit {
            return Ok(None);
        }
        // Memory is close to a line in the number of tokens: two points of it lead near the limit at once.
        let tokens_left =
            |slope: f64, peak: u64| ((limit - peak) as f64 / slope.max(1e-3)).min(MOST_TOKENS as f64);
        let slope = |(low, low_peak): (usize, u64), (high, high_peak): (usize, u64)| {
            high_peak.saturating_sub(low_peak) as f64 / (high - low) as f64
        };
        let (mut high, mut high_peak) = (1024, peak(1024)?);
        while high_peak <= limit {
            if high == MOST_TOKENS {
                return Ok(Some(high));
            }
            let left = tokens_left(slope((low, low_peak), (high, high_peak)), high_peak);
            (low, low_peak) = (high, high_peak);
            high = (high + (1.02 * left) as usize + 64).min(MOST_TOKENS);
            high_peak = peak(high)?;
        }
        while high - low > 1.max(low / 1000) {
            let line = low + tokens_left(slope((low, low_peak), (high, high_peak)), low_peak) as usize;
            // A little beside the line, on the side of the end that is farther: so that both ends close in.
            let beside = 1.max(low / 2000);
            let farther_above = high.saturating_sub(line) > line - low;
            let middle = if farther_above { line + beside } else { line.saturating_sub(beside) };
            let middle = middle.clamp(low + 1, high - 1);
            let at = peak(middle)?;
            match at <= limit {
                true => (low, low_peak) = (middle, at),
                false => (high, high_peak) = (middle, at),
            }
        }
        Ok(Some(low))
    }
}

/// Where [`Setup::capacity`] stops asking.
pub(super) const MOST_TOKENS: usize = 1 << 20;
